import io
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core import container as containers
from edged.core.delta import FULL, SAME, SUBTRACT, DeltaEntry, DeltaHead, pack, read_head, rebuild, subtract, write
from edged.core.errors import BundleError
from tests.containers import colours, container, entry

BASE = "b" * 64
OLD = {"labels.txt": b"red\ngreen\n", "model.tflite": b"the old model" * 50_000}
NEW = {"labels.txt": b"red\ngreen\n", "model.tflite": b"the new model" * 50_000 + b", and more"}


def of(files: dict[str, bytes], signatures: bytes = b"signed by Alice\n") -> bytes:
    """The container of a version."""
    manifest = colours(files={name: entry(content) for name, content in files.items()})
    return container(manifest, signatures=signatures, body=b"".join(files[name] for name in sorted(files)))


class Version:
    """Version on the board, in memory."""

    def __init__(self, files: dict[str, bytes], digest: str = BASE) -> None:
        self.digest = digest
        self._contents = [files[name] for name in sorted(files)]

    def read(self, file: int, offset: int, size: int) -> bytes:
        return self._contents[file][offset : offset + size] if file < len(self._contents) else b""


def delta(new: dict[str, bytes], *files: tuple[int, int, bytes]) -> bytes:
    return write(containers.read_head(of(new)), BASE, files)


SOUND = delta(NEW, (SAME, 0, b""), (SUBTRACT, 1, pack([subtract(NEW["model.tflite"], OLD["model.tflite"])])))


def rebuilt(data: bytes, base: Version | None = None) -> bytes:
    return b"".join(rebuild(io.BytesIO(data), base or Version(OLD)))


def refusal(data: bytes, base: Version | None = None) -> str:
    with pytest.raises(BundleError) as caught:
        rebuilt(data, base)
    assert caught.value.hint
    return caught.value.message


def test_the_container_is_rebuilt_to_the_last_byte():
    assert rebuilt(SOUND) == of(NEW)
    assert len(SOUND) < len(of(NEW)) / 100


def test_the_head_says_how_long_it_is_and_how_each_file_is_made():
    head = read_head(SOUND)
    assert head.base == BASE
    assert [each[:2] for each in head.entries] == [(SAME, 0), (SUBTRACT, 1)]
    assert head.size == len(SOUND)
    assert head.version == containers.read_head(of(NEW))


def test_a_file_less_another():
    assert subtract(b"\x05\x01\x07", b"\x03\x02") == b"\x02\xff\x07"
    assert subtract(b"\x05", b"\x05\x09") == b"\x00"


@given(method=st.sampled_from([FULL, SUBTRACT]), old=st.binary(max_size=300), new=st.binary(min_size=1, max_size=300))
def test_any_file_is_rebuilt_from_any_other(method, old, new):
    packed = pack([new if method == FULL else subtract(new, old)])
    made = rebuilt(delta({"model.tflite": new}, (method, 0, packed)), Version({"model.tflite": old}))
    assert made == of({"model.tflite": new})


def test_what_cannot_be_packed_fits():
    noise = random.Random(1).randbytes(1 << 20)
    packed = pack([noise])
    assert len(packed) > len(noise)
    assert rebuilt(delta({"model.tflite": noise}, (FULL, 0, packed))) == of({"model.tflite": noise})


# Refusals


def test_another_base_is_refused_by_name():
    said = refusal(SOUND, Version(OLD, digest="c" * 64))
    assert said == "the delta builds on version bbbbbbbbbbbb, but the base is cccccccccccc"


def test_a_rotten_base_makes_a_container_that_its_reader_refuses():
    made = rebuilt(SOUND, Version({**OLD, "model.tflite": OLD["model.tflite"][:-1] + b"?"}))
    reader = containers.ContainerReader()
    with pytest.raises(BundleError, match=r"model\.tflite: the \d+ bytes from \d+ on are damaged"):
        list(reader.feed(made))


def test_a_file_the_base_does_not_have_counts_as_zeros():
    files = {"model.tflite": bytes(1000)}
    assert rebuilt(delta(files, (SAME, 63, b""))) == of(files)


@pytest.mark.parametrize("place", [0, 10, 49, 50, 60, len(SOUND) - 200, len(SOUND) - 1])
def test_one_that_breaks_off_is_refused(place):
    assert refusal(SOUND[:place]) == "the delta breaks off"


@given(place=st.integers(0, len(SOUND) - 1), bit=st.integers(0, 7))
def test_one_with_a_bit_flipped_is_refused_or_makes_a_container_that_is(place, bit):
    """A bit may also be harmless: a number of the base's file that is not used."""
    flipped = bytearray(SOUND)
    flipped[place] ^= 1 << bit
    reader = containers.ContainerReader()
    try:
        for piece in rebuild(io.BytesIO(flipped), Version(OLD)):
            list(reader.feed(piece))
        reader.close()
    except BundleError:
        return
    assert reader.head is not None
    assert read_head(bytes(flipped)).version.digest == reader.head.digest


@given(st.binary(max_size=200))
def test_anything_else_is_refused(data):
    for garbage in (data, SOUND[:50] + data, SOUND[:-50] + data):
        with pytest.raises(BundleError):
            rebuilt(garbage[: len(SOUND) - 1])


def test_a_container_is_no_delta():
    assert refusal(of(NEW)) == "not a delta of version 1: the file does not begin with edgd 1"


def test_a_bomb_is_given_no_room():
    huge = pack([bytes(64 << 20)])
    assert refusal(delta({"model.tflite": b"tiny"}, (FULL, 0, huge[:60]))) == "the delta is damaged"
    with pytest.raises(BundleError, match=r"model\.tflite: \d+ bytes are more than 4 can be packed to"):
        delta({"model.tflite": b"tiny"}, (FULL, 0, huge))


@pytest.mark.parametrize(
    ("packed", "what"),
    [
        (pack([b"too short"]), "less"),
        (pack([b"model" * 100 + b"!"]), "more"),
        (pack([b"model" * 100]) + b"!", "behind"),
        (b"\xff" * 20, "no LZMA"),
        (b"", "nothing"),
    ],
)
def test_packed_data_that_are_not_the_file_s_are_refused(packed, what):
    assert refusal(delta({"model.tflite": b"model" * 100}, (FULL, 0, packed))) == "the delta is damaged", what


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "the delta makes 0 files, and the manifest lists 1"),
        ([(3, 0, b"")], "model.tflite: the delta has an unknown method for this file"),
        ([(SAME, 0, b"x")], "model.tflite: the delta has an unknown method for this file"),
    ],
)
def test_a_head_that_contradicts_its_manifest_is_refused(files, reason):
    with pytest.raises(BundleError) as caught:
        delta({"model.tflite": b"model"}, *files)
    assert caught.value.message == reason


def test_a_head_that_claims_gigabytes_is_refused_before_they_are_read():
    start = struct.pack("<8sIIH32s", b"edgd\0\0\0\1", 0xFFFFFFFF, 0, 1, bytes(32))
    assert refusal(start) == "the delta's head has 4294967351 bytes"


def test_a_head_is_made_of_what_was_written():
    head = containers.read_head(of({"model.tflite": b"model"}))
    packed = pack([b"model"])
    assert read_head(write(head, BASE, [(FULL, 0, packed)])) == DeltaHead(
        head, BASE, (DeltaEntry(FULL, 0, len(packed)),)
    )
