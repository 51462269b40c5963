import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edged.core.errors import ConfigError, ModelError
from edged.core.manifest import (
    SCHEMA,
    Channel,
    Classify,
    DetectAnomaly,
    File,
    Input,
    Manifest,
    Postprocess,
    Regress,
    WindowSpec,
    check,
)
from edged.core.manifest_parts import Decision
from edged.core.postprocess import FEW, Decider, Postprocessor, best
from edged.core.tensors import dequantise
from edged.core.types import Anomaly, Classification, Regression, Score, TensorSpec

FLOATS = TensorSpec(name="scores", shape=(1, 3), dtype="float32")
BYTES = TensorSpec(name="scores", shape=(1, 3), dtype="int8", scale=1 / 256, zero_point=-128)


def manifest(output: TensorSpec, rule: Postprocess, labels: tuple[str, ...] = ()) -> Manifest:
    size = int(np.prod(output.shape))
    made = Manifest(
        schema=SCHEMA,
        name="m",
        version="1",
        files={"model.tflite": File(bytes=1, sha256="0" * 64)},
        window=WindowSpec(length=size, hop=1, channels=(Channel(name="x"),)),
        inputs=(Input(tensor=TensorSpec(name="x", shape=(1, size), dtype="float32")),),
        outputs=(output,),
        labels=labels,
        postprocess=rule,
    )
    check(made)
    return made


def classify(output: TensorSpec, stored: Any, labels: tuple[str, ...] = ("a", "b", "c"), **rule: Any) -> Classification:
    postprocess = Postprocessor(manifest(output, Classify(**rule), labels), None)
    outcome = postprocess([np.array(stored, dtype=output.dtype).reshape(output.shape)], None, 0.0)
    assert isinstance(outcome, Classification)
    return outcome


def test_the_best_label_comes_first() -> None:
    assert classify(BYTES, [-128, 64, -64]) == Classification(
        label="b",
        score=0.75,
        scores=(Score("b", 0.75), Score("c", 0.25), Score("a", 0.0)),
        decision="b",
        changed=True,
    )


def test_only_the_best_k_are_told() -> None:
    assert [score.label for score in classify(BYTES, [-128, 64, -64], top_k=2).scores] == ["b", "c"]


def test_of_equals_the_first_comes_first() -> None:
    assert [score.label for score in classify(BYTES, [5, 7, 7]).scores] == ["b", "c", "a"]


def test_a_label_that_is_missing_is_told_by_its_index() -> None:
    assert [score.label for score in classify(BYTES, [1, 2, 3], labels=()).scores] == ["2", "1", "0"]


@pytest.mark.parametrize(
    ("activation", "scores"),
    [
        ("none", [200.0, 0.0, -200.0]),
        ("softmax", [1.0, 0.0, 0.0]),
        ("sigmoid", [1.0, 0.5, 0.0]),
    ],
)
def test_logits_become_probabilities_without_overflow(activation: str, scores: list[float]) -> None:
    with np.errstate(all="raise", under="ignore"):
        outcome = classify(FLOATS, [200.0, 0.0, -200.0], activation=activation)
    assert [score.score for score in outcome.scores] == scores


def test_softmax_works_on_what_a_quantised_output_stands_for() -> None:
    logits = TensorSpec(name="scores", shape=(1, 3), dtype="int8", scale=0.5, zero_point=10)
    outcome = classify(logits, [10, 12, 8], activation="softmax")
    assert [score.score for score in outcome.scores] == pytest.approx([0.6652409, 0.2447285, 0.0900306])


def test_a_wake_word_has_one_label_and_one_score() -> None:
    word = TensorSpec(name="word", shape=(1, 1), dtype="uint8", scale=1 / 256)
    model = manifest(word, Classify(decision=Decision(threshold=0.9, k=2, n=3)), ("hey",))
    postprocess = Postprocessor(model, None)
    heard = [
        postprocess([np.array([[stored]], dtype=np.uint8)], None, float(time))
        for time, stored in enumerate([0, 250, 251, 252, 3, 2])
    ]
    assert [outcome.decision for outcome in heard] == [None, None, "hey", "hey", "hey", None]
    assert [outcome.changed for outcome in heard] == [False, False, True, False, False, True]
    assert heard[0].scores == (Score("hey", 0.0),)


@given(
    arrays(np.int8, st.integers(1, 40), elements=st.integers(-5, 5) | st.just(-128))
    | arrays(np.uint8, st.integers(1, 40), elements=st.integers(0, 9)),
    st.integers(1, 50),
)
def test_the_best_are_those_of_a_stable_sort(stored: NDArray, k: int) -> None:
    values = stored.tolist()
    assert best(stored, k) == sorted(range(len(values)), key=lambda index: (-values[index], index))[:k]


OUTPUTS = st.sampled_from(
    [
        TensorSpec(name="y", shape=(1, 5), dtype="int8", scale=1 / 256, zero_point=-128),
        TensorSpec(name="y", shape=(5,), dtype="uint8", scale=0.1, zero_point=77),
        TensorSpec(name="y", shape=(1, 5), dtype="int8"),
        TensorSpec(name="y", shape=(1, 5, 1), dtype="int16", scale=0.1, zero_point=0),
        TensorSpec(name="y", shape=(1, 5), dtype="float16"),
        FLOATS,
    ]
)
RULES = st.builds(
    Classify,
    activation=st.sampled_from(["none", "softmax", "sigmoid"]),
    top_k=st.integers(1, 6),
    decision=st.sampled_from([Decision(), Decision(threshold=0.6, thresholds={"0": 0.0}, hysteresis=0.1, k=2, n=3)]),
)


def outcome_of(postprocess: Postprocessor, stored: NDArray, time: float) -> Any:
    """Return the outcome in full precision, or the error."""
    try:
        with np.errstate(all="ignore"):
            return repr(postprocess([stored], None, time))
    except ModelError as error:
        return error.message


@given(OUTPUTS, RULES, st.data())
def test_few_labels_are_handled_as_many_are(output: TensorSpec, rule: Classify, data: st.DataObject) -> None:
    model = manifest(output, rule)
    few = Postprocessor(model, None)
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr("edged.core.postprocess.FEW", 0)
        many = Postprocessor(model, None)
    for time in range(4):
        stored = data.draw(arrays(output.dtype, output.shape))
        assert outcome_of(few, stored, time) == outcome_of(many, stored, time)


@given(OUTPUTS, st.data())
def test_values_of_a_regression_are_those_of_the_formula(output: TensorSpec, data: st.DataObject) -> None:
    names = tuple("vwxyz"[: int(np.prod(output.shape))])
    stored = data.draw(arrays(output.dtype, output.shape))
    with np.errstate(all="ignore"):
        real = dequantise(output, stored).reshape(-1)
        regress = Postprocessor(manifest(output, Regress(names=names)), None)
    if np.isfinite(real).all():
        assert regress([stored], None, 0.0) == Regression(dict(zip(names, real.tolist(), strict=True)))


@given(st.sampled_from(["int8", "uint8"]), st.integers(1, 12), st.data())
def test_the_best_of_many_labels_have_the_values_of_the_formula(dtype: str, k: int, data: st.DataObject) -> None:
    output = TensorSpec(name="y", shape=(1, FEW + 8), dtype=dtype, scale=0.1, zero_point=3)
    stored = data.draw(arrays(dtype, FEW + 8))
    real = dequantise(output, stored)
    order = sorted(range(len(stored)), key=lambda index: (-int(stored[index]), index))[:k]
    outcome = classify(output, stored, labels=(), top_k=k)
    assert outcome.scores == tuple(Score(str(index), float(real[index])) for index in order)


@pytest.mark.parametrize("count", [FEW, FEW + 1])
def test_the_way_of_few_labels_ends_without_a_seam(count: int) -> None:
    output = TensorSpec(name="y", shape=(1, count), dtype="int8", scale=0.5, zero_point=0)
    stored = np.zeros(count)
    stored[[3, 9]] = 2, 2
    outcome = classify(output, stored, labels=(), top_k=3)
    assert outcome.scores == (Score("3", 1.0), Score("9", 1.0), Score("0", 0.0))


def test_regression_gives_values_by_name() -> None:
    output = TensorSpec(name="y", shape=(1, 2), dtype="int8", scale=0.5, zero_point=-10)
    postprocess = Postprocessor(manifest(output, Regress(names=("speed", "load"))), None)
    assert postprocess([np.array([[-10, 90]], dtype=np.int8)], None, 0.0) == Regression({"speed": 0.0, "load": 50.0})


REBUILT = TensorSpec(name="rebuilt", shape=(1, 4), dtype="int8", scale=0.5, zero_point=0)
SCORE = TensorSpec(name="score", shape=(1, 1), dtype="float32")


@pytest.mark.parametrize(
    ("score", "value"),
    [("mean_squared_error", 3.375), ("mean_absolute_error", 1.25)],
)
def test_an_anomaly_is_how_badly_the_input_was_rebuilt(score: str, value: float) -> None:
    detect = DetectAnomaly(score=score, decision=Decision(threshold=1.0))
    postprocess = Postprocessor(manifest(REBUILT, detect), None)
    prepared = np.array([[0.0, 1.0], [2.0, 0.5]], dtype=np.float32)
    outcome = postprocess([np.array([[0, 4, 5, 8]], dtype=np.int8)], prepared, 0.0)  # 0, 2, 2.5 and 4 in real values
    assert outcome == Anomaly(value, 1.0, True, True)
    assert prepared.tolist() == [[0.0, 1.0], [2.0, 0.5]]


def test_an_anomaly_is_decided_over_time() -> None:
    detect = DetectAnomaly(score="output", decision=Decision(threshold=1.0, hysteresis=0.5, k=2, n=2))
    postprocess = Postprocessor(manifest(SCORE, detect), None)
    outcomes = [
        postprocess([np.array([[score]], dtype=np.float32)], None, float(time))
        for time, score in enumerate([0.5, 1.0, 0.75, 0.25, 0.75])
    ]
    assert outcomes == [
        Anomaly(0.5, 1.0, False, False),
        Anomaly(1.0, 1.0, False, False),
        Anomaly(0.75, 1.0, True, True),
        Anomaly(0.25, 1.0, False, True),
        Anomaly(0.75, 1.0, False, False),
    ]


@pytest.mark.parametrize(
    ("output", "rule", "stored"),
    [
        (FLOATS, Classify(), [0.1, np.nan, 0.2]),
        (FLOATS, Classify(top_k=1), [0.1, 0.3, np.nan]),
        (FLOATS, Classify(activation="softmax"), [0.1, np.nan, 0.2]),
        (FLOATS, Regress(names=("x", "y", "z")), [0.0, np.nan, 0.0]),
        (SCORE, DetectAnomaly(score="output", decision=Decision(threshold=1.0)), [np.nan]),
    ],
)
def test_nan_is_an_error_and_never_a_decision(output: TensorSpec, rule: Postprocess, stored: list[float]) -> None:
    postprocess = Postprocessor(manifest(output, rule), None)
    with pytest.raises(ModelError, match="the model's output is NaN") as caught:
        postprocess([np.array([stored], dtype=np.float32)], None, 0.0)
    assert caught.value.hint


def test_an_infinite_output_is_an_error() -> None:
    with pytest.raises(ModelError, match="the model's output is infinite"):
        classify(FLOATS, [0.0, np.inf, 0.0])


@given(arrays(np.float32, (1, 3)))
def test_an_outcome_is_sound_json_or_an_error(stored: NDArray) -> None:
    try:
        outcome = classify(FLOATS, stored)
    except ModelError:
        assert not np.isfinite(stored).all()
        return
    assert None not in [score["score"] for score in json.loads(msgspec.json.encode(outcome))["scores"]]


# Decisions as tables: time, scores of a, b and c, and the decision.
Table = list[tuple[float, tuple[float, float, float], str | None]]

THE_BEST_LABEL: Table = [
    (0, (0.5, 0.3, 0.2), "a"),
    (1, (0.1, 0.6, 0.3), "b"),
    (2, (0.4, 0.4, 0.2), "a"),
    (3, (-1.0, -2.0, -0.5), "c"),
]
THE_BEST_LABEL_UNLESS_BACKGROUND: Table = [
    (0, (0.5, 0.3, 0.2), None),
    (1, (0.1, 0.6, 0.3), "b"),
    (2, (0.4, 0.3, 0.3), None),
]
A_THRESHOLD: Table = [
    (0, (0.5, 0.3, 0.2), None),
    (1, (0.6, 0.3, 0.1), "a"),
    (2, (0.59, 0.3, 0.1), None),
    (3, (0.7, 0.8, 0.9), "c"),
]
A_THRESHOLD_OF_ITS_OWN: Table = [
    (0, (0.5, 0.2, 0.3), None),
    (1, (0.5, 0.25, 0.25), "b"),
    (2, (0.7, 0.3, 0.0), "a"),
]
A_THRESHOLD_BELOW_THE_BACKGROUND: Table = [
    (0, (0.7, 0.2, 0.1), None),
    (1, (0.6, 0.3, 0.1), "b"),
]
HYSTERESIS: Table = [
    (0, (0.5, 0.0, 0.0), None),
    (1, (0.75, 0.0, 0.0), "a"),
    (2, (0.5, 0.0, 0.0), "a"),
    (3, (0.49, 0.0, 0.0), None),
    (4, (0.5, 0.0, 0.0), None),
]
HYSTERESIS_THAT_FLOAT32_DOES_NOT_HOLD: Table = [
    (0, (0.85, 0.0, 0.0), "a"),
    (1, (0.1, 0.0, 0.0), "a"),
    (2, (0.09, 0.0, 0.0), None),
]
HYSTERESIS_AGAINST_THE_BEST: Table = [
    (0, (0.5, 0.4, 0.1), "a"),
    (1, (0.4, 0.5, 0.1), "b"),
    (2, (0.2, 0.5, 0.3), "b"),
]
TWO_OF_THREE: Table = [
    (0, (0.9, 0.0, 0.0), None),
    (1, (0.0, 0.9, 0.0), None),
    (2, (0.9, 0.0, 0.0), "a"),
    (3, (0.0, 0.0, 0.9), None),
    (4, (0.9, 0.0, 0.0), "a"),
    (5, (0.0, 0.0, 0.0), None),
    (6, (0.0, 0.0, 0.0), None),
]
A_MAJORITY_OF_THE_BEST: Table = [
    (0, (0.5, 0.3, 0.2), None),
    (1, (0.6, 0.3, 0.1), "a"),
    (2, (0.1, 0.8, 0.1), "a"),
    (3, (0.2, 0.7, 0.1), "b"),
]
A_MINIMUM_DURATION: Table = [
    (0.0, (0.9, 0.0, 0.0), None),
    (1.0, (0.9, 0.0, 0.0), None),
    (2.0, (0.9, 0.0, 0.0), "a"),
    (3.0, (0.0, 0.0, 0.0), None),
    (4.0, (0.9, 0.0, 0.0), None),
    (5.5, (0.9, 0.0, 0.0), None),
    (6.0, (0.9, 0.0, 0.0), "a"),
]
A_COOLDOWN: Table = [
    (0, (0.9, 0.0, 0.0), "a"),
    (1, (0.0, 0.0, 0.0), None),
    (2, (0.9, 0.0, 0.0), None),
    (2.5, (0.9, 0.6, 0.0), "b"),
    (3, (0.9, 0.6, 0.0), "a"),
    (4, (0.9, 0.0, 0.0), "a"),
    (5, (0.0, 0.6, 0.0), None),
    (6, (0.0, 0.0, 0.0), None),
    (7, (0.0, 0.6, 0.0), "b"),
]
ALL_OF_IT: Table = [
    (0, (0.0, 0.9, 0.0), None),
    (1, (0.0, 0.9, 0.0), None),
    (2, (0.0, 0.0, 0.0), "b"),
    (3, (0.0, 0.0, 0.0), None),
    (4, (0.0, 0.9, 0.0), None),
    (5, (0.0, 0.9, 0.0), None),
    (6, (0.0, 0.9, 0.0), None),
    (7, (0.0, 0.9, 0.0), "b"),
]


@pytest.mark.parametrize(
    ("decision", "table"),
    [
        pytest.param(Decision(), THE_BEST_LABEL, id="the best label"),
        pytest.param(Decision(background=("a",)), THE_BEST_LABEL_UNLESS_BACKGROUND, id="unless background"),
        pytest.param(
            Decision(background=("a",), thresholds={"a": 0.0}), THE_BEST_LABEL_UNLESS_BACKGROUND, id="the long way"
        ),
        pytest.param(Decision(threshold=0.6), A_THRESHOLD, id="threshold"),
        pytest.param(Decision(threshold=0.6, thresholds={"b": 0.25}), A_THRESHOLD_OF_ITS_OWN, id="own threshold"),
        pytest.param(
            Decision(threshold=0.3, background=("a",)), A_THRESHOLD_BELOW_THE_BACKGROUND, id="below the background"
        ),
        pytest.param(Decision(threshold=0.75, hysteresis=0.25), HYSTERESIS, id="hysteresis"),
        pytest.param(
            Decision(threshold=0.85, hysteresis=0.75), HYSTERESIS_THAT_FLOAT32_DOES_NOT_HOLD, id="hysteresis in float32"
        ),
        pytest.param(Decision(hysteresis=0.25), HYSTERESIS_AGAINST_THE_BEST, id="hysteresis against the best"),
        pytest.param(Decision(threshold=0.5, k=2, n=3), TWO_OF_THREE, id="k of n"),
        pytest.param(Decision(k=2, n=3), A_MAJORITY_OF_THE_BEST, id="k of n of the best"),
        pytest.param(Decision(threshold=0.5, min_duration=2.0), A_MINIMUM_DURATION, id="minimum duration"),
        pytest.param(Decision(threshold=0.5, cooldown=2.0), A_COOLDOWN, id="cooldown"),
        pytest.param(Decision(threshold=0.5, k=2, n=3, min_duration=1.0, cooldown=4.0), ALL_OF_IT, id="all of it"),
    ],
)
def test_what_is_decided_when(decision: Decision, table: Table) -> None:
    decider = Decider(decision, ("a", "b", "c"))
    before = None
    for time, scores, label in table:
        changed = decider.update(np.array(scores, dtype=np.float32), int(np.argmax(scores)), time)
        decided = None if decider.decided is None else "abc"[decider.decided]
        assert (time, decided) == (time, label)
        assert changed == (decided != before)
        before = decided


SCORE_LISTS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75, 0.9]), min_size=3, max_size=3)


@given(
    st.builds(
        Decision,
        threshold=st.sampled_from([0.0, 0.5, 0.6]),
        thresholds=st.sampled_from([{}, {"b": 0.25}, {"a": 0.0}]),
        hysteresis=st.sampled_from([0.0, 0.1, 0.25]),
        k=st.integers(1, 2),
        n=st.integers(2, 3),
        cooldown=st.sampled_from([0.0, 2.0]),
        background=st.sampled_from([(), ("c",)]),
    ),
    st.lists(SCORE_LISTS, max_size=8),
)
def test_scores_in_a_list_are_decided_as_in_an_array(decision: Decision, windows: list[list[float]]) -> None:
    of_lists, of_arrays = (Decider(decision, ("a", "b", "c")) for _ in range(2))
    for time, window in enumerate(windows):
        scores = np.array(window, np.float32)
        best = int(scores.argmax())
        changed = of_arrays.update(scores, best, time)
        assert of_lists.update(scores.tolist(), best, time) == changed
        assert of_lists.decided == of_arrays.decided


def test_a_reset_forgets_what_was_decided_and_what_was_seen() -> None:
    decider = Decider(Decision(threshold=0.5, k=2, n=2), ("a",))
    high = np.array([0.9], dtype=np.float32)
    assert [decider.update(high, 0, 0.0), decider.update(high, 0, 1.0)] == [False, True]
    decider.reset()
    assert decider.decided is None
    assert decider.update(high, 0, 2.0) is False


def test_what_the_configuration_decides_replaces_what_the_manifest_says() -> None:
    model = manifest(FLOATS, Classify(decision=Decision(threshold=0.9)), ("a", "b", "c"))
    outputs = [np.array([[0.2, 0.6, 0.2]], dtype=np.float32)]
    assert Postprocessor(model, None)(outputs, None, 0.0).decision is None
    assert Postprocessor(model, Decision(threshold=0.5))(outputs, None, 0.0).decision == "b"


@pytest.mark.parametrize(
    ("rule", "decision", "words"),
    [
        (Classify(), Decision(background=("silence",)), "names the label 'silence'"),
        (Classify(), Decision(thresholds={"d": 0.5}), "names the label 'd'"),
        (Classify(), Decision(k=3, n=2), "needs 3 of the last 2 windows"),
        (Regress(names=("x", "y", "z")), Decision(threshold=0.5), "makes no decisions"),
        (DetectAnomaly(decision=Decision(threshold=1.0)), Decision(thresholds={"a": 0.5}), "names the label 'a'"),
    ],
)
def test_a_decision_that_cannot_be_is_refused(rule: Postprocess, decision: Decision, words: str) -> None:
    model = manifest(FLOATS, rule, ("a", "b", "c") if isinstance(rule, Classify) else ())
    with pytest.raises(ConfigError, match=words) as caught:
        Postprocessor(model, decision)
    assert caught.value.hint


def test_many_values_are_an_array() -> None:
    spec = TensorSpec(name="y", shape=(1, 1001), dtype="float32")
    postprocess = Postprocessor(manifest(spec, Regress()), None)
    outcome = postprocess([np.arange(1001, dtype=np.float32)], None, 0.0)
    assert outcome == Regression([float(value) for value in range(1001)])
    with pytest.raises(ModelError, match="NaN"):
        postprocess([np.full(1001, np.nan, np.float32)], None, 0.0)


@pytest.mark.parametrize("decision", [Decision(), Decision(thresholds={"wake": 0.0}, threshold=0.5)])
def test_a_single_label_without_a_threshold_is_refused_for_it_would_always_be_decided(decision: Decision) -> None:
    with pytest.raises(ConfigError, match="no threshold for the only label 'wake', which would therefore always be"):
        Decider(decision, ("wake",))
    Decider(Decision(thresholds={"wake": 0.5}), ("wake",))
