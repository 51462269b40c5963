import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edged.core.delta import read_head
from edged.core.errors import BundleError
from edged.models.bundle import digest, unpack
from edged.models.delta import DeltaCheck, expand, make_delta
from tests.containers import PlainDisk, colours, entry
from tests.real_models import real_model

RNG = np.random.default_rng(5)
WEIGHTS = RNG.integers(-128, 128, 600_000, np.int8)
TUNED = np.concatenate([WEIGHTS[:500_000], WEIGHTS[500_000:] + RNG.integers(-1, 2, 100_000, np.int8)])


def version(folder: Path, model: bytes, **parts: object) -> Path:
    """Return the folder of a bundle with this model and some labels."""
    contents = {"model.tflite": model, "labels.bin": b"red green blue"}
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    made = {name: entry(content) for name, content in contents.items()}
    manifest = colours(files=made, preprocess=[{"step": "standardise"}], **parts)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return version(tmp_path / "old", WEIGHTS.tobytes())


@pytest.fixture
def new(tmp_path: Path) -> Path:
    folder = version(tmp_path / "new", TUNED.tobytes(), version="1.1")
    (folder / "manifest.json.sig").write_bytes(b"signed by Alice\n")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_new_version_is_unpacked_from_the_old_one_and_a_delta(tmp_path, old, new):
    delta = make_delta(old, new)
    assert delta is not None
    assert len(delta) < 0.1 * TUNED.size
    head = unpack(expand(io.BytesIO(delta), old), tmp_path / "made", PlainDisk())
    assert files(tmp_path / "made") == files(new)
    assert head.digest == digest(new)
    assert read_head(delta).base == digest(old)


def test_a_delta_that_would_save_little_is_not_made(tmp_path, old):
    other = version(tmp_path / "other", RNG.bytes(600_000))
    assert make_delta(old, other) is None


def test_a_model_of_another_name_is_still_the_model(tmp_path, old):
    folder = tmp_path / "renamed"
    folder.mkdir()
    (folder / "tuned.tflite").write_bytes(TUNED.tobytes())
    made = {"tuned.tflite": entry(TUNED.tobytes())}
    manifest = colours(files=made, model="tuned.tflite", preprocess=[{"step": "standardise"}])
    (folder / "manifest.json").write_text(json.dumps(manifest))
    delta = make_delta(old, folder)
    assert delta is not None
    unpack(expand(io.BytesIO(delta), old), tmp_path / "made", PlainDisk())
    assert files(tmp_path / "made") == files(folder)


def test_it_is_read_a_little_at_a_time_like_any_file(old, new):
    delta = make_delta(old, new)
    assert delta is not None
    at_once = expand(io.BytesIO(delta), old).read()
    stream = expand(io.BytesIO(delta), old)
    assert b"".join(iter(lambda: stream.read(7001), b"")) == at_once


def test_a_base_that_has_rotted_leaves_nothing(tmp_path, old, new):
    delta = make_delta(old, new)
    assert delta is not None
    with (old / "model.tflite").open("r+b") as file:
        file.write(b"rot")
    with pytest.raises(BundleError, match=r"model\.tflite: .* damaged"):
        unpack(expand(io.BytesIO(delta), old), tmp_path / "made", PlainDisk())
    assert not (tmp_path / "made").exists()


def test_a_base_that_has_lost_a_file_asks_for_the_full_bundle(tmp_path, old, new):
    delta = make_delta(old, new)
    assert delta is not None
    (old / "model.tflite").unlink()
    with pytest.raises(BundleError, match="No such file or directory") as caught:
        unpack(expand(io.BytesIO(delta), old), tmp_path / "made", PlainDisk())
    assert caught.value.hint == "fetch or send the full bundle"


# Arrival


def test_its_head_is_approved_before_the_rest_is_paid_for(old, new):
    delta = make_delta(old, new)
    assert delta is not None
    seen = []
    check = DeltaCheck(lambda head: seen.append(head.base))
    for start in range(0, len(delta), 100):
        check.feed(delta[start : start + 100])
        if check.total is None:
            assert check.verified == 0
    assert seen == [digest(old)]
    assert (check.total, check.verified) == (len(delta), len(delta))


def test_one_that_is_not_approved_begins_anew(old, new):
    delta = make_delta(old, new)
    assert delta is not None

    def refuse(head: object) -> None:
        raise BundleError("nobody trusted signed it", hint="sign it")

    check = DeltaCheck(refuse)
    for _ in range(2):
        with pytest.raises(BundleError, match="nobody trusted"):
            check.feed(delta)
        assert (check.total, check.verified) == (None, 0)


# Cost


def test_a_fine_tuned_last_layer_moves_at_most_an_eighth_of_the_bytes(tmp_path):
    """MobileNet v2 with a last layer of a third of the file, each of its weights moved by about one step."""
    data = np.fromfile(real_model("tf2_mobilenet_v2_1.0_224_ptq.tflite"), np.int8)
    tuned = data.copy()
    layer = tuned[LAST_LAYER]
    layer += np.rint(RNG.normal(0, 1, layer.size)).astype(np.int8)
    delta = make_delta(version(tmp_path / "a", data.tobytes()), version(tmp_path / "b", tuned.tobytes()))
    assert delta is not None
    assert len(delta) <= 0.12 * data.size


LAST_LAYER = slice(5916, 5916 + 1001 * 1280)

REBUILD = """
import re, sys
from pathlib import Path
from edged.models.delta import expand

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

before = peak()
container = expand(open(sys.argv[1], "rb"), Path(sys.argv[2]))
while container.read(1 << 16):
    pass
print(peak() - before)
"""


def test_16_megabytes_are_rebuilt_in_less_than_8(tmp_path):
    data = (np.arange(16 << 20) >> 10).astype(np.int8)
    tuned = data.copy()
    tuned[:500_000] = RNG.integers(-128, 128, 500_000, np.int8)
    old = version(tmp_path / "old", data.tobytes())
    delta = make_delta(old, version(tmp_path / "new", tuned.tobytes()))
    assert delta is not None
    (tmp_path / "delta").write_bytes(delta)
    command = [sys.executable, "-c", REBUILD, str(tmp_path / "delta"), str(old)]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    grown = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    assert int(grown) < 8 << 20
