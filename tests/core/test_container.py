import hashlib
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.container import ContainerReader, Piece, measure, read_head, write
from edged.core.errors import BundleError
from edged.core.manifest import File
from tests.containers import CHUNK, MODEL, NOTES, colours, container

SOUND = container(signatures=b"signed by Alice\n")
MANIFEST = json.dumps(colours()).encode()
HEAD = 16 + len(MANIFEST) + len(b"signed by Alice\n")


def read(data: bytes, size: int = 1 << 20) -> list[Piece]:
    """Read a whole container, fed `size` bytes at a time."""
    reader = ContainerReader()
    pieces = [piece for start in range(0, len(data), size) for piece in reader.feed(data[start : start + size])]
    reader.close()
    return pieces


def contents(pieces: list[Piece]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for piece in pieces:
        assert piece.offset == len(found.get(piece.name, b""))
        found[piece.name] = found.get(piece.name, b"") + piece.data
    return found


def test_the_head():
    head = read_head(SOUND)
    assert (head.manifest.name, head.manifest.version) == ("colours", "1.0")
    assert (head.data, head.signatures) == (MANIFEST, b"signed by Alice\n")
    assert head.digest == hashlib.sha256(MANIFEST).hexdigest()
    assert (head.length, head.size) == (HEAD, len(SOUND))


def test_the_files_come_in_the_order_of_their_names_and_in_chunks():
    pieces = read(SOUND)
    assert [(piece.name, piece.offset, len(piece.data)) for piece in pieces] == [
        ("model.tflite", 0, len(MODEL)),
        ("notes.bin", 0, CHUNK),
        ("notes.bin", CHUNK, 100),
    ]
    assert contents(pieces) == {"model.tflite": MODEL, "notes.bin": NOTES}


@given(cuts=st.lists(st.integers(0, len(SOUND)), max_size=20))
def test_it_does_not_matter_how_it_is_cut_up(cuts):
    reader = ContainerReader()
    places = [0, *sorted(cuts), len(SOUND)]
    pieces = [piece for begin, end in pairwise(places) for piece in reader.feed(SOUND[begin:end])]
    reader.close()
    assert contents(pieces) == {"model.tflite": MODEL, "notes.bin": NOTES}


def test_byte_by_byte():
    small = container({**colours(), "files": {"model.tflite": colours()["files"]["model.tflite"]}}, body=MODEL)
    assert contents(read(small, 1)) == {"model.tflite": MODEL}


def test_the_head_is_there_before_any_file():
    reader = ContainerReader()
    assert list(reader.feed(SOUND[: HEAD - 1])) == []
    assert reader.head is None
    assert list(reader.feed(SOUND[HEAD - 1 : HEAD])) == []
    assert reader.head is not None
    assert (reader.verified, reader.complete) == (HEAD, False)


def test_a_damaged_chunk_costs_that_chunk():
    """Earlier chunks stay verified, and the chunk may be fed again any number of times."""
    second = HEAD + len(MODEL) + CHUNK
    damaged = bytearray(SOUND)
    damaged[second + 5] ^= 1
    reader = ContainerReader()
    for _ in range(3):
        with pytest.raises(BundleError, match=f"notes.bin: the 100 bytes from {CHUNK} on are damaged") as refused:
            list(reader.feed(damaged[reader.verified :]))
        assert refused.value.retryable
        assert reader.verified == second
    assert list(reader.feed(SOUND[reader.verified :])) == [Piece("notes.bin", CHUNK, NOTES[CHUNK:])]
    assert reader.complete
    reader.close()


def test_a_head_that_is_refused_may_be_fed_again_from_the_beginning():
    reader = ContainerReader()
    for bad in (b"<!DOCTYPE html><html>", container(b"{" + b" " * 100), b"edgm\0\0\0\2" + bytes(8)):
        with pytest.raises(BundleError):
            list(reader.feed(bad))
        assert (reader.verified, reader.head) == (0, None)
    assert [piece.name for piece in reader.feed(SOUND)] == ["model.tflite", "notes.bin", "notes.bin"]


def test_a_file_whose_chunks_are_right_and_whose_digest_is_not():
    manifest = colours()
    manifest["files"]["notes.bin"]["sha256"] = "0" * 64
    with pytest.raises(BundleError, match=r"notes.bin: the chunks match .* whole file does not") as refused:
        read(container(manifest))
    assert not refused.value.retryable


@pytest.mark.parametrize("length", [0, 15, 16, 100, HEAD, HEAD + 1, HEAD + len(MODEL), len(SOUND) - 1])
def test_a_container_that_breaks_off(length):
    with pytest.raises(BundleError, match=f"breaks off after {length} bytes") as refused:
        read(SOUND[:length])
    assert refused.value.retryable


def test_a_container_that_goes_on():
    with pytest.raises(BundleError, match=f"follows the end of the container at byte {len(SOUND)}"):
        read(SOUND + b"x")


def test_no_more_is_held_than_a_chunk():
    """Held bytes that are not yet verified are less than a chunk."""
    reader = ContainerReader()
    for start in range(0, len(SOUND), 1000):
        list(reader.feed(SOUND[start : start + 1000]))
        assert start + 1000 - reader.verified < CHUNK + 1000


# Writing


def test_what_is_written_is_what_was_made_by_hand():
    assert b"".join(write(MANIFEST, b"signed by Alice\n", [MODEL, NOTES[:1000], NOTES[1000:]])) == SOUND


@pytest.mark.parametrize(
    ("manifest", "body", "reason"),
    [
        (MANIFEST, [MODEL], "breaks off"),
        (MANIFEST, [MODEL, NOTES, b"x"], "follows the end"),
        (MANIFEST, [NOTES, MODEL], "model.tflite: the .* are damaged"),
        (b"{}", [], "missing required field"),
    ],
)
def test_what_nobody_could_read_is_not_written(manifest, body, reason):
    with pytest.raises(BundleError, match=reason):
        list(write(manifest, b"", body))


def test_a_file_is_measured():
    digests = tuple(hashlib.sha256(part).hexdigest() for part in (NOTES, NOTES[:CHUNK], NOTES[CHUNK:]))
    assert measure(NOTES) == File(bytes=CHUNK + 100, sha256=digests[0], chunks=digests[1:])
    assert len(measure(bytes(CHUNK)).chunks) == 1


def test_an_empty_file_has_no_place_in_a_bundle():
    with pytest.raises(BundleError, match="has 0 bytes"):
        measure(b"")


# Arbitrary input


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(BundleError):
        read(data)


@given(data=st.binary(max_size=200))
def test_random_bytes_behind_a_sound_prefix_are_refused(data):
    with pytest.raises(BundleError):
        read(b"edgm\0\0\0\1" + len(data).to_bytes(4, "little") + bytes(4) + data)


@given(position=st.integers(0, len(SOUND) - 1), bit=st.integers(0, 7))
def test_a_bit_flipped_anywhere_is_refused_or_harmless(position, bit):
    """A bit in the signatures is left to verification of signatures; a bit in the manifest makes another version."""
    data = bytearray(SOUND)
    data[position] ^= 1 << bit
    try:
        found = contents(read(bytes(data)))
    except BundleError:
        return
    assert position < HEAD
    assert read_head(bytes(data)).digest != read_head(SOUND).digest or position >= 16 + len(MANIFEST)
    assert sorted(found.values()) == sorted([MODEL, NOTES])


@given(begin=st.integers(0, len(SOUND)), end=st.integers(0, len(SOUND)), patch=st.binary(max_size=40))
def test_a_stretch_replaced_is_refused_or_harmless(begin, end, patch):
    begin, end = min(begin, end), max(begin, end)
    try:
        found = contents(read(SOUND[:begin] + patch + SOUND[end:]))
    except BundleError:
        return
    assert sorted(found.values()) == sorted([MODEL, NOTES])
