import json

import pytest

from edged.core.errors import ModelError
from edged.core.manifest import Manifest, decode
from edged.core.model_requirements import require
from tests.containers import colours

LITERT = {"ai-edge-litert": {"at_least": "2.3", "below": "3"}}
EITHER = {**LITERT, "tflite-runtime": {}}


def needing(**needs) -> Manifest:
    return decode(json.dumps(colours(needs=needs)).encode())


@pytest.mark.parametrize(
    ("needs", "runtime"),
    [
        ({}, "fake"),
        ({"runtimes": LITERT}, "ai-edge-litert 2.3.0"),
        ({"runtimes": LITERT}, "ai-edge-litert 2.99"),
        ({"runtimes": LITERT}, "ai-edge-litert 2.4.0rc1"),
        ({"runtimes": EITHER}, "tflite-runtime 2.14.0"),
        ({"runtimes": {"fake": {}}}, "fake"),
        ({"delegates": ["edgetpu", "cpu"]}, "fake"),
        ({"memory_bytes": 1000}, "fake"),
    ],
)
def test_what_is_needed_is_there(needs, runtime):
    require(needing(**needs), runtime, {"cpu"}, 1000)


@pytest.mark.parametrize(
    ("needs", "runtime", "reason"),
    [
        ({"runtimes": LITERT}, "ai-edge-litert 2.2.9", "needs ai-edge-litert 2.3 or above and below 3; this device"),
        ({"runtimes": LITERT}, "ai-edge-litert 3.0.0", "needs ai-edge-litert 2.3"),
        ({"runtimes": LITERT}, "tflite-runtime 2.14.0", "this device has tflite-runtime 2.14.0"),
        ({"runtimes": EITHER}, "fake", "below 3 or tflite-runtime; this device has fake"),
        ({"runtimes": {"fake": {"below": "2"}}}, "fake", "needs fake below 2"),
        ({"delegates": ["edgetpu"]}, "fake", "runs on edgetpu; this device can run it on cpu"),
        ({"memory_bytes": 1001}, "fake", "needs 1001 bytes of memory; 1000 are free"),
    ],
)
def test_what_is_needed_is_not_there(needs, runtime, reason):
    with pytest.raises(ModelError, match=reason) as refused:
        require(needing(**needs), runtime, {"cpu"}, 1000)
    assert refused.value.hint
    assert refused.value.retryable == ("memory_bytes" in needs)
