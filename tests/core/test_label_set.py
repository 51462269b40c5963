import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.decider import Decider
from edged.core.errors import ConfigError
from edged.core.label_set import LabelSetDecider
from edged.core.manifest_parts import Decision

LABELS = ("speech", "music", "silence")


def decided(decision: Decision, *windows: list[float]) -> list[tuple[str, ...]]:
    decider = LabelSetDecider(decision, LABELS)
    found = []
    for time, window in enumerate(windows):
        scores = np.array(window, np.float32)
        before = decider.decided
        changed = decider.update(scores, np.flatnonzero(scores >= decider.thresholds).tolist(), float(time))
        assert changed == (before != decider.decided)
        found.append(decider.decided)
    return found


def test_several_labels_are_decided_at_once() -> None:
    assert decided(Decision(threshold=0.5), [0.9, 0.6, 0.1], [0.4, 0.5, 0.1], [0, 0, 0]) == [
        ("speech", "music"),
        ("music",),
        (),
    ]


def test_each_label_must_be_a_candidate_in_k_of_n_windows() -> None:
    rule = Decision(threshold=0.5, k=2, n=3)
    assert decided(rule, [0.9, 0.9, 0], [0.9, 0, 0], [0, 0.9, 0], [0, 0, 0]) == [
        (),
        ("speech",),
        ("speech", "music"),
        (),
    ]


def test_a_candidate_may_fall_by_the_hysteresis_and_others_may_not() -> None:
    assert decided(Decision(threshold=0.5, hysteresis=0.2), [0.5, 0.4, 0], [0.4, 0.4, 0]) == [("speech",), ("speech",)]


def test_thresholds_of_single_labels_and_the_background_hold() -> None:
    rule = Decision(threshold=0.5, thresholds={"music": 0.8}, background=("silence",))
    assert decided(rule, [0.6, 0.6, 0.9], [0.1, 0.8, 0.9]) == [("speech",), ("music",)]


def test_a_label_without_a_threshold_is_never_decided() -> None:
    assert decided(Decision(thresholds={"music": 0.2}), [1, 1, 1]) == [("music",)]


def test_a_decision_about_an_unknown_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="names the label 'song'"):
        LabelSetDecider(Decision(threshold=0.5, thresholds={"song": 0.5}), LABELS)


def test_all_is_forgotten_on_a_reset() -> None:
    decider = LabelSetDecider(Decision(threshold=0.5, k=2, n=2), LABELS)
    loud = np.array([1, 0, 0], np.float32)
    decider.update(loud, [0], 0.0)
    decider.reset()
    assert not decider.update(loud, [0], 1.0)


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30),
    st.builds(
        Decision,
        threshold=st.floats(0.125, 1),
        hysteresis=st.floats(0, 0.5),
        n=st.just(4),
        k=st.integers(1, 4),
        min_duration=st.integers(0, 3).map(float),
        cooldown=st.integers(0, 3).map(float),
    ),
)
def test_a_single_label_is_decided_as_by_the_decider_of_one_label(scores: list[float], rule: Decision) -> None:
    one, many = Decider(rule, ("a",)), LabelSetDecider(rule, ("a",))
    for time, score in enumerate(scores):
        one.update([score], 0, float(time))
        window = np.array([score], np.float32)
        many.update(window, np.flatnonzero(window >= many.thresholds).tolist(), float(time))
        assert (one.decided is not None) == bool(many.decided)
