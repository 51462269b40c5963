from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edged.core.errors import BundleError, ModelError
from edged.core.manifest_outcomes import ClassifyMany, check_multilabel
from edged.core.manifest_parts import Decision
from edged.core.multilabel import LabelRule
from edged.core.tensors import dequantise
from edged.core.types import Labels, Score, TensorSpec

NAMES = ("speech", "music", "silence")
FLOATS = TensorSpec(name="scores", shape=(1, 3), dtype="float32")
BYTES = TensorSpec(name="scores", shape=(1, 3), dtype="int8", scale=1 / 256, zero_point=-128)


def rule(output: TensorSpec = FLOATS, labels: tuple[str, ...] = NAMES, **keys: Any) -> LabelRule:
    many = ClassifyMany(decision=Decision(threshold=0.5), **keys)
    check_multilabel(many, (output,), labels)
    return LabelRule(many, (output,), labels, many.decision)


def test_all_labels_over_their_threshold_are_told_best_first() -> None:
    outcome = rule()([np.array([[0.6, 0.9, 0.1]], np.float32)], None, 0.0, None)
    scores = (Score("music", pytest.approx(0.9)), Score("speech", pytest.approx(0.6)))
    assert outcome == Labels(scores, ("speech", "music"), changed=True)


def test_only_the_best_count_of_too_many() -> None:
    outcome = rule(top_k=1)([np.array([[0.6, 0.9, 0.7]], np.float32)], None, 0.0, None)
    assert ([score.label for score in outcome.scores], outcome.decisions) == (["music"], ("music",))


def test_no_label_may_apply() -> None:
    assert rule()([np.zeros((1, 3), np.float32)], None, 0.0, None) == Labels((), (), changed=False)


def test_quantised_logits_become_probabilities() -> None:
    logits = TensorSpec(name="scores", shape=(1, 3), dtype="int8", scale=0.5, zero_point=0)
    outcome = rule(logits, activation="sigmoid")([np.array([[2, 0, -2]], np.int8)], None, 0.0, None)
    assert {score.label: score.score for score in outcome.scores} == pytest.approx({"speech": 0.7310586, "music": 0.5})


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_what_is_not_finite_is_an_error(value: float, word: str) -> None:
    with pytest.raises(ModelError, match=word):
        rule()([np.array([[0.1, value, 0.2]], np.float32)], None, 0.0, None)


@given(arrays(np.int8, (1, 3)))
def test_scores_are_those_of_all_labels_over_the_threshold(stored: NDArray[np.int8]) -> None:
    real = dequantise(BYTES, stored)[0].tolist()
    outcome = rule(BYTES)([stored], None, 0.0, None)
    expected = {name: score for name, score in zip(NAMES, real, strict=True) if score >= 0.5}
    assert {score.label: score.score for score in outcome.scores} == expected
    assert set(outcome.decisions) == expected.keys()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_any_finite_scores_have_an_outcome(scores: list[float]) -> None:
    rule(activation="sigmoid")([np.array([scores], np.float32)], None, 0.0, None)


@pytest.mark.parametrize(
    ("many", "labels", "problem"),
    [
        (ClassifyMany(decision=Decision()), NAMES, "need a threshold other than 0"),
        (ClassifyMany(decision=Decision(threshold=0.5)), ("a", "b"), "2 labels for 3 scores"),
        (ClassifyMany(decision=Decision(threshold=0.5)), ("a", "b", "a"), "'a' occurs twice"),
        (ClassifyMany(decision=Decision(threshold=0.5, thresholds={"d": 0.5})), NAMES, "no label 'd' exists"),
        (ClassifyMany(decision=Decision(threshold=0.5, k=2)), NAMES, r"k \(2\) is more than n \(1\)"),
        (ClassifyMany(output=1, decision=Decision(threshold=0.5)), NAMES, "no output 1 exists"),
    ],
)
def test_contradictions_are_refused(many: ClassifyMany, labels: tuple[str, ...], problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        check_multilabel(many, (FLOATS,), labels)
