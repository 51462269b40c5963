import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import BundleError
from edged.core.references import MAX_REFERENCE_BYTES, MAX_REFERENCE_JSON
from edged.core.types import TensorSpec
from edged.models.references import read_references

OUTPUT = TensorSpec(name="vector", shape=(1, 1, 2), dtype="float32")


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("r.npz", npz(alice=np.array([1.0, 2.0]), bob=np.array([[3, 4], [5, 6]], np.uint8))),
        ("r.json", json.dumps({"alice": [1, 2], "bob": [[3, 4], [5, 6]]}).encode()),
    ],
)
def test_a_file_holds_vectors_by_name(name: str, data: bytes) -> None:
    references = read_references(name, data, OUTPUT)
    assert references.names == ("alice", "bob")
    assert references.vectors.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert references.counts == (1, 2)


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("r.npz", b"", "not a zip file"),
        ("r.npz", npz(alice=np.array([1.0, 2.0]))[:-30], "not a zip file"),
        ("r.npz", npz(alice=np.array(["x"])), "alice holds <U1"),
        ("r.npz", npz(alice=np.array([{}], dtype=object)), "alice holds object"),
        ("r.npz", npz(alice=np.zeros((1, 1, 2))), "vectors are rows of numbers"),
        ("r.npz", npz(alice=np.zeros((MAX_REFERENCE_BYTES, 2), np.int8)), "more than is left of"),
        ("r.npz", npz(alice=np.zeros(3)), r"have 3 elements, and the output 'vector' 2"),
        ("r.npz", npz(alice=np.array([np.inf, 0])), "NaN or infinite"),
        ("r.json", b"[1, 2]", "Expected `object`"),
        ("r.json", b'{"alice": [1, [2]]}', "'alice' is neither a vector nor rows of equal length"),
        ("r.json", b'{"alice": ["1"]}', "Expected `float | array`, got `str`"),
        ("r.json", b'{"alice": [1e300, 0]}', "NaN or infinite"),
        ("r.json", b"{}", "there are no vectors"),
        ("r.json", b" " * (MAX_REFERENCE_JSON + 1), "4194304 are allowed: make an .npz file"),
    ],
)
def test_an_unsound_file_is_refused(name: str, data: bytes, problem: str) -> None:
    with pytest.raises(BundleError, match=problem):
        read_references(name, data, OUTPUT)


def test_an_array_smaller_than_its_header_says_is_refused() -> None:
    whole = io.BytesIO()
    np.save(whole, np.array([1.0, 2.0]))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("alice.npy", whole.getvalue()[:-8])
    with pytest.raises(BundleError, match="not the size its header says"):
        read_references("r.npz", file.getvalue(), OUTPUT)


@given(st.sampled_from(["r.npz", "r.json"]), st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(name: str, data: bytes) -> None:
    with pytest.raises(BundleError):
        read_references(name, data, OUTPUT)
