"""Hostile containers and manifests. Each is refused with a specific message, and the disk stays clean."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.container import ContainerReader
from edged.core.errors import BundleError
from edged.models.bundle import unpack
from tests.containers import CHUNK, MODEL, NOTES, PlainDisk, colours, container, entry

SOUND = container()
HEAD = len(SOUND) - len(MODEL) - len(NOTES)


class Hostile(NamedTuple):
    """A name, a function that makes the container, and a pattern of the message."""

    name: str
    make: Callable[[], bytes]
    message: str


def flipped(at: int) -> bytes:
    data = bytearray(SOUND)
    data[at] ^= 1
    return bytes(data)


def with_file(name: str, content: bytes = b"x", **changes: Any) -> bytes:
    """Return a container with a further file in the manifest, `changes` in its entry, and the content at the end."""
    files = {**colours()["files"], name: entry(content) | changes}
    return container(colours(files=files), body=MODEL + NOTES + content)


def with_notes(**changes: Any) -> bytes:
    """Return a container with a changed entry of notes.bin."""
    files = {**colours()["files"], "notes.bin": entry(NOTES) | changes}
    return container(colours(files=files))


def with_tensor(**changes: Any) -> bytes:
    """Another output tensor."""
    return container(colours(outputs=[colours()["outputs"][0] | changes]))


def replaced(old: bytes, new: bytes) -> bytes:
    """The text of the manifest changed."""
    data = json.dumps(colours()).encode()
    assert old in data
    return container(data.replace(old, new, 1))


DIGESTS = entry(NOTES)["chunks"]

HOSTILE = [
    # Other content
    Hostile("nothing", lambda: b"", "the container breaks off after 0 bytes"),
    Hostile("a page of a captive portal", lambda: b"<!DOCTYPE html><title>Welcome</title>", "not a container"),
    Hostile("cut in the magic", lambda: SOUND[:5], "breaks off after 5 bytes"),
    Hostile("cut in the lengths", lambda: SOUND[:13], "breaks off after 13 bytes"),
    Hostile("a version to come", lambda: container(magic=b"edgm\0\0\0\2"), "has version 2, but this edged"),
    # Wrong lengths
    Hostile("no manifest", lambda: container(b""), "manifest has 0 bytes"),
    Hostile("a manifest of 4 GiB", lambda: container(lengths=(0xFFFFFFFF, 0)), "manifest has 4294967295 bytes"),
    Hostile("a manifest just too long", lambda: container(b" " * ((1 << 20) + 1)), "manifest has 1048577 bytes"),
    Hostile("signatures of 4 GiB", lambda: container(lengths=(9, 0xFFFFFFFF)), "signatures have 4294967295 bytes"),
    Hostile("signatures just too long", lambda: container(signatures=bytes(65537)), "signatures have 65537 bytes"),
    Hostile("a manifest one byte shorter than it is", lambda: container(lengths=(HEAD - 17, 1)), "truncated"),
    Hostile("a manifest one byte longer than it is", lambda: container(lengths=(HEAD - 15, 0)), "trailing characters"),
    Hostile("more signatures than there are", lambda: container(lengths=(HEAD - 16, 1000), body=MODEL[:50]),
            f"breaks off after {HEAD + 50} bytes"),
    # Cut off, or too much
    Hostile("cut in the manifest", lambda: SOUND[:100], "breaks off after 100 bytes"),
    Hostile("cut after the head", lambda: SOUND[:HEAD], f"breaks off after {HEAD} bytes"),
    Hostile("cut in a file", lambda: SOUND[: HEAD + 500], f"breaks off after {HEAD + 500} bytes"),
    Hostile("cut between files", lambda: SOUND[: HEAD + len(MODEL)], f"breaks off after {HEAD + len(MODEL)} bytes"),
    Hostile("without its last byte", lambda: SOUND[:-1], f"breaks off after {len(SOUND) - 1} bytes"),
    Hostile("one byte more", lambda: SOUND + b"\0", f"follows the end of the container at byte {len(SOUND)}"),
    Hostile("sent for ever", lambda: container(signatures=b"x") * 50, f"the container at byte {len(SOUND) + 1}"),
    # Files that differ from the signed files
    Hostile("a bit of a model flipped", lambda: flipped(HEAD + 700), f"model.tflite: the {len(MODEL)} bytes from 0 on"),
    Hostile("the last bit of all", lambda: flipped(-1), f"notes.bin: the 100 bytes from {CHUNK} on are damaged"),
    Hostile("two files that changed places", lambda: container(colours(files={"a": entry(NOTES),
            "model.tflite": entry(MODEL)})), "a: the 262144 bytes from 0 on are damaged"),
    Hostile("one chunk for another", lambda: with_notes(chunks=DIGESTS[::-1]), "notes.bin: the 262144 bytes from 0 on"),
    Hostile("chunks of another file", lambda: with_notes(sha256="0" * 64), "the digest of the whole file does not"),
    # Entries of files
    Hostile("no digests of chunks", lambda: with_notes(chunks=[]), "notes.bin: a container needs the digests of its"),
    Hostile("a digest too few", lambda: with_notes(chunks=DIGESTS[:1]), "have 2 chunks, but 1 digests are given"),
    Hostile("a digest too many", lambda: with_notes(chunks=[*DIGESTS, "0" * 64]), "but 3 digests are given"),
    Hostile("too many digests for any file", lambda: with_notes(chunks=["0" * 64] * 1025),
            r"`\$\.files\[\.\.\.\]\.chunks`"),
    Hostile("one chunk, two digests", lambda: with_file("x", sha256="0" * 64), "x: the digest of the only chunk"),
    Hostile("digests that are no digests", lambda: with_notes(sha256="0" * 63), r"`\$\.files\[\.\.\.\]\.sha256`"),
    Hostile("an empty file", lambda: with_file("empty", b""), r"\$\.files\[\.\.\.\]\.bytes"),
    Hostile("a terabyte", lambda: with_notes(bytes=1 << 40), r"\$\.files\[\.\.\.\]\.bytes"),
    Hostile("half a byte", lambda: with_notes(bytes=0.5), r"\$\.files\[\.\.\.\]\.bytes"),
    Hostile("many large files", lambda: container(colours(files={name: {"bytes": 1 << 28, "sha256": "0" * 64}
            for name in ("model.tflite", "b", "c")})), "files: have more than 536870912 bytes together"),
    Hostile("five thousand files", lambda: container(colours(files={f"f{number}": entry(b"x")
            for number in range(5000)})), r"`\$\.files`"),
    # Names outside of the folder, or of internal files
    Hostile("a path out of the folder", lambda: with_file("../evil"), r"`\$\.files`"),
    Hostile("the manifest itself", lambda: with_file("manifest.json"), "files: manifest.json cannot be listed"),
    Hostile("its signatures", lambda: with_file("manifest.json.sig"), "files: manifest.json.sig cannot be listed"),
    Hostile("a name twice", lambda: replaced(b'"notes.bin"', b'"model.tflite"'), "'model.tflite' occurs twice"),
    Hostile("a model that is not there", lambda: container(colours(model="other")), "model: other is not in files"),
    Hostile("samples that are not there", lambda: container(colours(golden={})), "golden.file: golden.npz is not in"),
    Hostile("samples that are the model", lambda: container(colours(golden={"file": "model.tflite"})),
            "golden.file: is the model itself"),
    Hostile("a model named like a path", lambda: container(colours(model="/dev/zero")), r"`\$\.model`"),
    Hostile("a bundle named like a path", lambda: container(colours(name="../../etc")), r"`\$\.name`"),
    Hostile("a version with a command in it", lambda: container(colours(version="1;reboot")), r"`\$\.version`"),
    # Text that is no manifest
    Hostile("a list", lambda: container(b"[1, 2]"), r"manifest\.json"),
    Hostile("a number", lambda: container(b"7"), r"manifest\.json"),
    Hostile("brackets without end", lambda: replaced(b'"red"', b"[" * 900_000), r"`\$\.labels\[0\]`"),
    Hostile("brackets without end, passed over", lambda: container(b'{"postprocess": {"x": ' + b"[" * 100_000),
            r"manifest\.json"),
    Hostile("bytes that are not UTF-8", lambda: replaced(b"red", b"\xff\xfe"), "(?i)utf-8"),
    Hostile("half a surrogate", lambda: replaced(b"red", rb"\ud800"), r"manifest\.json"),
    Hostile("a byte order mark", lambda: container(b"\xef\xbb\xbf{}"), r"manifest\.json"),
    Hostile("NaN", lambda: replaced(b'"length": 1', b'"length": NaN'), r"manifest\.json"),
    Hostile("a large rate", lambda: container(colours(window=colours()["window"] | {"rate": 1e308})), "window.rate"),
    Hostile("a field nobody knows", lambda: container(colours(exec="reboot")), "`exec`"),
    Hostile("a schema to come", lambda: container(colours(schema="edged.manifest/9")), "edged.manifest/9"),
    Hostile("nothing in it", lambda: container(b"{}"), r"manifest\.json"),
    # Contracts that would break the daemon
    Hostile("a tensor of a terabyte", lambda: with_tensor(shape=[1 << 20, 1 << 20]), "tensor 'y': has more than"),
    Hostile("a tensor with a name of pages", lambda: with_tensor(name="y" * 100_000), "tensor has 100000 characters"),
    Hostile("a tensor of no size", lambda: with_tensor(shape=[1, -3]), r"the shape \[1, -3\] is impossible"),
    Hostile("a tensor of objects", lambda: with_tensor(dtype="object"), "the dtype 'object' is none of"),
    Hostile("fewer labels than scores", lambda: container(colours(labels=["red"])), "1 labels for 3 scores"),
    Hostile("a window of a gigabyte", lambda: container(colours(window={"length": 10**6, "hop": 1,
            "sample_shape": [1000]})), "window: has more than 16777216 elements"),
    Hostile("years of probation", lambda: container(colours(probation={"seconds": 1e9})), "probation.seconds"),
]  # fmt: skip


def test_what_is_sound_is_unpacked(tmp_path):
    """Or else all those below might be refused for the wrong reason."""
    head = unpack(io.BytesIO(SOUND), tmp_path / "colours", PlainDisk())
    assert head.manifest.name == "colours"
    assert (tmp_path / "colours" / "notes.bin").read_bytes() == NOTES


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.name)
def test_what_is_hostile_is_refused_and_leaves_no_trace(tmp_path, hostile):
    with pytest.raises(BundleError, match=hostile.message) as refused:
        unpack(io.BytesIO(hostile.make()), tmp_path / "colours", PlainDisk())
    assert refused.value.hint
    assert list(tmp_path.rglob("*")) == []


def test_each_is_told_apart():
    assert len({hostile.name for hostile in HOSTILE}) == len(HOSTILE)
    assert len({_refusal(hostile.make()) for hostile in HOSTILE}) == len(HOSTILE)


def _refusal(data: bytes) -> str:
    reader = ContainerReader()
    try:
        list(reader.feed(data))
        reader.close()
    except BundleError as error:
        return error.message
    return "accepted"


# Arbitrary changes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_manifests(draw: st.DrawFn) -> dict[str, Any]:
    """Return a sound manifest with a value, at any depth, replaced or removed."""
    manifest = colours(probation={"windows": 3}, limits={"seconds": 1}, needs={"runtimes": {"fake": {"below": "2"}}})
    place: Any = manifest
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = draw(st.sampled_from(list(keys)))
        if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        if draw(st.booleans()):
            place[key] = draw(json_values)
        else:
            del place[key]
        return manifest


@given(manifest=changed_manifests())
def test_any_manifest_is_refused_or_good(tmp_path_factory, manifest):
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        unpack(io.BytesIO(container(manifest)), folder / "it", PlainDisk())
    except BundleError:
        assert list(folder.iterdir()) == []
    else:
        assert {path.name for path in (folder / "it").iterdir()} == {"manifest.json", "model.tflite", "notes.bin"}


@given(cuts=st.lists(st.tuples(st.integers(0, len(SOUND)), st.integers(0, 3000), st.binary(max_size=20)), max_size=3))
def test_any_container_is_refused_or_as_it_was(tmp_path_factory, cuts):
    """Stretches taken out and others put in."""
    folder = tmp_path_factory.mktemp("fuzz")
    data = SOUND
    for at, count, patch in cuts:
        data = data[:at] + patch + data[at + count :]
    try:
        unpack(io.BytesIO(data), folder / "it", PlainDisk())
    except BundleError:
        assert list(folder.iterdir()) == []
    else:
        assert _contents(folder / "it") == {"model.tflite": MODEL, "notes.bin": NOTES}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not re.match(r"manifest\.json", path.name)}
