from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from edged.core.embedding import EmbeddingRule
from edged.core.errors import BundleError, ConfigError, ModelError
from edged.core.manifest_outcomes import MAX_EMBEDDING, Embed, check_embedding
from edged.core.manifest_parts import Decision
from edged.core.references import MAX_VECTORS, Neighbours, References, unit
from edged.core.types import Embedding, TensorSpec

OUTPUT = TensorSpec(name="vector", shape=(1, 2), dtype="float32")
NAMED = References({"alice": np.array([[1, 0]], np.float32), "bob": np.array([[0, 1], [0, 2]], np.float32)})


def rule(references: References | None = NAMED, threshold: float = 0.0, **keys: Any) -> EmbeddingRule:
    decision = Decision(threshold=threshold, **{key: keys.pop(key) for key in ("k", "n", "hysteresis") if key in keys})
    embed = Embed(references="references.npz" if references else None, decision=decision, **keys)
    check_embedding(embed, (OUTPUT,), ["references.npz"])
    return EmbeddingRule(embed, (OUTPUT,), decision, references)


def seen(rule: EmbeddingRule, *vectors: list[float]) -> list[Embedding]:
    return [rule([np.array([vector], np.float32)], None, float(time), None) for time, vector in enumerate(vectors)]


def test_a_vector_is_told_as_bytes() -> None:
    assert seen(rule(None), [1.5, -2]) == [Embedding(np.array([1.5, -2], "<f4").tobytes())]


def test_a_vector_is_told_as_numbers_or_left_out() -> None:
    assert seen(rule(vector="array"), [0.5, 0])[0].vector == [0.5, 0]
    assert seen(rule(vector="none"), [0.5, 0])[0].vector is None


def test_a_vector_is_scaled_to_length_1_if_wished() -> None:
    assert seen(rule(None, vector="array", normalise=True), [3, 4])[0].vector == pytest.approx([0.6, 0.8])


def test_a_quantised_vector_becomes_real() -> None:
    output = TensorSpec(name="vector", shape=(1, 1, 2), dtype="uint8", scale=0.5, zero_point=10)
    embedding = EmbeddingRule(Embed(vector="array"), (output,), Decision(), None)
    assert embedding([np.array([[[12, 8]]], np.uint8)], None, 0.0, None) == Embedding([1.0, -1.0])


def test_the_nearest_reference_is_decided() -> None:
    first, second = seen(rule(vector="none"), [5, 0], [0, 5])
    assert first == Embedding(None, "alice", 0.0, "alice", anomalous=False, changed=True)
    assert second == Embedding(None, "bob", 0.0, "bob", anomalous=False, changed=True)


def test_the_nearest_of_several_vectors_of_a_name_counts() -> None:
    found = seen(rule(vector="none", metric="euclidean"), [0, 1.5], [0, 3])
    assert [(each.nearest, each.distance) for each in found] == [("bob", 0.5), ("bob", 1.0)]


def test_a_vector_far_from_all_references_is_anomalous() -> None:
    near, far = seen(rule(vector="none", threshold=0.5), [1, 0], [-1, 0])
    assert (near.decision, near.anomalous) == ("alice", False)
    assert far == Embedding(None, "bob", 1.0, None, anomalous=True, changed=True)


def test_anomalies_and_names_are_decided_over_several_windows() -> None:
    found = seen(rule(threshold=0.5, k=2, n=2), [1, 0], [1, 0], [-1, 0], [-1, 0])
    assert [(each.decision, each.anomalous) for each in found] == [
        (None, False),
        ("alice", False),
        (None, False),
        (None, True),
    ]


def test_a_single_reference_without_a_threshold_is_always_decided() -> None:
    alone = References({"alice": np.array([[1, 0]], np.float32)})
    assert [each.decision for each in seen(rule(alone), [1, 0], [-1, 0])] == ["alice", "alice"]


def test_a_vector_of_zeros_is_at_distance_1() -> None:
    assert seen(rule(vector="none"), [0, 0])[0].distance == 1.0


def test_what_is_not_finite_is_an_error() -> None:
    with pytest.raises(ModelError, match="NaN"):
        seen(rule(), [np.nan, 0])


def test_a_decision_by_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="no labels to decide by"):
        EmbeddingRule(Embed(references="r.npz"), (OUTPUT,), Decision(thresholds={"alice": 0.5}), NAMED)


VECTORS = arrays(np.float32, (7, 3), elements=st.floats(-1000, 1000, width=32))


@given(VECTORS, arrays(np.float32, 3, elements=st.floats(-1000, 1000, width=32)))
def test_distances_are_those_of_each_vector_by_itself(rows: NDArray[np.float32], vector: NDArray[np.float32]) -> None:
    references = References({"a": rows[:1], "b": rows[1:4], "c": rows[4:]})
    found = Neighbours(references, "euclidean", normalise=False).distances(vector)
    each = np.linalg.norm(rows.astype(np.float64) - vector, axis=1)
    assert found == pytest.approx([each[:1].min(), each[1:4].min(), each[4:].min()], rel=1e-4, abs=1e-3)
    cosine = Neighbours(references, "cosine", normalise=False).distances(vector)
    assert np.all((cosine >= 0) & (cosine <= 2.0001))


@given(VECTORS)
def test_unit_vectors_have_length_1_or_0(rows: NDArray[np.float32]) -> None:
    lengths = np.linalg.norm(unit(rows), axis=1)
    assert np.all((np.abs(lengths - 1) < 1e-3) | (lengths == 0))


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        ({}, "no vectors"),
        ({"a": np.zeros((1, 2)), "b": np.zeros((1, 3))}, "'b' has 3 elements, and others have 2"),
        ({"a": np.zeros((0, 2))}, "neither a vector nor rows"),
        ({"a": np.zeros((1, 1, 2))}, "neither a vector nor rows"),
        ({"a": np.array([[np.nan, 0]])}, "NaN or infinite"),
        ({"": np.zeros((1, 2))}, "0 characters"),
        ({"a" * 201: np.zeros((1, 2))}, "201 characters"),
        ({"a": np.zeros((MAX_VECTORS + 1, 1))}, "more than 10000 vectors"),
    ],
)
def test_unsound_references_are_refused(vectors: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        References(vectors)


@pytest.mark.parametrize(
    ("embed", "problem"),
    [
        (Embed(decision=Decision(threshold=0.5)), "without references decides nothing"),
        (Embed(vector="none"), "no result but the vector"),
        (Embed(references="missing.npz"), "missing.npz is not in files"),
        (Embed(references="r.txt"), "neither .npz nor .json"),
        (Embed(references="r.npz", decision=Decision(background=("a",))), "no labels, only a threshold"),
        (Embed(references="r.npz", decision=Decision(threshold=-1.0)), "never below 0"),
        (Embed(references="r.npz", decision=Decision(k=2)), r"k \(2\) is more than n"),
        (Embed(output=1), "no output 1 exists"),
    ],
)
def test_contradictions_are_refused(embed: Embed, problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        check_embedding(embed, (OUTPUT,), ["r.npz", "r.txt"])


def test_an_output_that_is_no_vector_is_refused() -> None:
    picture = TensorSpec(name="picture", shape=(1, 224, 224), dtype="float32")
    with pytest.raises(BundleError, match=f"has 50176 elements, and a vector of {MAX_EMBEDDING}"):
        check_embedding(Embed(), (picture,), [])
