from typing import Any

import pytest

from edged.core.description import PipelineOutput, Value, pipeline_output
from edged.core.detection_spec import DetectObjects, ObjectDecision, SsdPostprocess
from edged.core.manifest import Classify, DetectAnomaly, File, Input, Manifest, Regress, WindowSpec
from edged.core.manifest_parts import Decision
from edged.core.types import TensorSpec


def manifest(postprocess: Any, labels: tuple[str, ...] = ()) -> Manifest:
    tensor = TensorSpec(name="x", shape=(1, 2), dtype="int8")
    return Manifest(
        schema="edged.manifest/1",
        name="model",
        version="1",
        files={"model.tflite": File(bytes=1, sha256="0" * 64)},
        window=WindowSpec(length=1, hop=1, sample_shape=(2,)),
        inputs=(Input(tensor=tensor),),
        outputs=(tensor,),
        labels=labels,
        postprocess=postprocess,
    )


@pytest.mark.parametrize(
    ("model", "output"),
    [
        (manifest(Classify(), ("a", "b")), PipelineOutput("p", "classification", labels=("a", "b"))),
        (
            manifest(Regress(names=("level", "flow"), units=("m",))),
            PipelineOutput("p", "regression", values=(Value("level", "m"), Value("flow", ""))),
        ),
        (manifest(DetectAnomaly(decision=Decision(threshold=1.0))), PipelineOutput("p", "anomaly")),
        (
            manifest(
                DetectObjects(decoder=SsdPostprocess(), decision=ObjectDecision(threshold=0.5, background=("b",))),
                ("a", "???", "b"),
            ),
            PipelineOutput("p", "detection", labels=("a",), zones=("picture",)),
        ),
        (None, PipelineOutput("p", "unknown")),
    ],
)
def test_what_a_pipeline_says_follows_from_its_model(model: Manifest | None, output: PipelineOutput) -> None:
    assert pipeline_output("p", model) == output
