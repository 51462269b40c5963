"""Substitutes for a bundle in uploads: deltas and bare model files, through the socket and through an `ssh`."""

import hashlib
import subprocess
import sys

import pytest

from edged.core import delta
from edged.core.container import read_head
from edged.core.errors import BundleError
from edged.ctl.upload import open_upload
from tests.bundles import DATA
from tests.containers import CONTENTS, colours, container
from tests.receiving import Board
from tests.web_server import WebServer

BUNDLE = container(colours(version="2.0"))
SERVES, UNKNOWN = "a" * 64, "b" * 64
EDGECTL = f'{sys.executable} -c "import sys; from edged.ctl.main import main; sys.exit(main())"'
MODEL = DATA / "float.tflite"


@pytest.fixture
def board(tmp_path):
    with Board(tmp_path) as running:
        yield running


@pytest.fixture
def runtime_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "colours-2.0.edgm"
    path.write_bytes(BUNDLE)
    return path


@pytest.fixture(params=["socket", "ssh"])
def update(request, edgectl, board, tmp_path):
    """Return a function that calls update-model: exit code, steps without times, and error output."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nEDGED_RUNTIME_DIR={board.runtime_dir} {EDGECTL} receive --stdio\n")
    ssh.chmod(0o755)
    there = ("--ssh", str(ssh), "--host", "board") if request.param == "ssh" else ()

    def update(*words):
        code, output, complaints = edgectl(*there, "update-model", *map(str, words))
        return code, [line.split(" s  ")[-1] for line in output.splitlines()], complaints

    return update


def write_delta(path, base):
    """Write a delta that claims to make BUNDLE."""
    files = [(delta.FULL, 0, delta.pack([CONTENTS[name]])) for name in sorted(CONTENTS)]
    path.write_bytes(delta.write(read_head(BUNDLE), base, files))
    return path


def test_a_delta_that_cannot_be_rebuilt_is_followed_by_the_bundle(update, board, file):
    write_delta(file.with_suffix(".edgd"), SERVES)
    code, steps, _ = update(file)
    assert code == 0
    assert any("a delta for colours 2.0 to" in step for step in steps)
    assert "the full bundle is needed: it cannot be rebuilt" in steps
    assert [content for content, _ in board.updater.installed] == [BUNDLE]


def test_a_delta_to_what_is_not_there_is_not_sent(update, board, file):
    write_delta(file.with_suffix(".edgd"), UNKNOWN)
    code, steps, _ = update(file)
    assert code == 0
    assert "a delta for colours 2.0 cannot be used: the base version is not" in steps[0]
    assert [content for content, _ in board.updater.installed] == [BUNDLE]
    assert board.gone()


def test_a_delta_may_lie_anywhere(update, board, file, tmp_path):
    elsewhere = write_delta(tmp_path / "small.edgd", UNKNOWN)
    code, steps, _ = update(file, "--delta", elsewhere)
    assert (code, "a delta for colours 2.0 cannot be used" in steps[0]) == (0, True)


def test_a_delta_to_something_else_is_refused_where_it_is_named_and_else_left_alone(update, board, file, tmp_path):
    other = container(colours(version="3.0"))
    (tmp_path / "other.edgm").write_bytes(other)
    beside = write_delta(tmp_path / "other.edgd", SERVES)
    code, steps, _ = update(tmp_path / "other.edgm", "--delta", beside)
    assert (code, f"{beside} is not a delta for this colours 3.0" in steps[0]) == (6, True)
    assert update(tmp_path / "other.edgm")[0] == 0
    assert [content for content, _ in board.updater.installed] == [other]


def test_a_bare_file(update, board):
    code, steps, _ = update(MODEL, "--model", "colours", "--version", "1.7")
    assert code == 0
    assert "a bare model for colours to" in steps[0]
    [(content, options)] = board.updater.installed
    assert content == MODEL.read_bytes()
    assert (options.bare.model, options.bare.version) == ("colours", "1.7")
    assert board.gone()


def test_a_bare_file_that_serves_already_is_not_sent(update, board, file):
    board.door.files["colours"] = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    code, steps, _ = update(MODEL, "--model", "colours")
    assert (code, board.updater.installed) == (0, [])
    assert "this colours is " in steps[-1]


def test_a_bare_file_where_only_signed_versions_may_come_in(update, board):
    board.door.open = False
    code, steps, _ = update(MODEL, "--model", "colours")
    assert code == 6
    assert "only signed versions may come in here" in steps[-2]
    assert steps[-1] == "  -> pack and sign it"
    assert board.parts() == []


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ([MODEL], 4, "a bare .tflite file names no model\n  say so with --model NAME"),
        (["x.edgm", "--version", "1.1"], 4, "say so with --model NAME"),
        ([MODEL, "--model", "no such name!"], 4, "--model no such name!"),
        ([MODEL, "--model", "colours", "--version", "new"], 4, "--version new"),
        ([MODEL, "--model", "colours", "--delta", "x.edgd"], 4, "there are no deltas of bare files"),
        (["https://x/y.edgm", "--delta", "y.edgd"], 4, "--delta names a file, and a URL is fetched by the device"),
    ],
    ids=str,
)
def test_what_does_not_go_together(edgectl, board, words, code, text):
    ended, output, complaints = edgectl("update-model", *map(str, words))
    assert (ended, output) == (code, "")
    assert text in complaints


def test_what_is_no_model_file_is_not_sent(edgectl, board, file):
    code, output, _ = edgectl("update-model", str(file), "--model", "colours")
    assert code == 6
    assert output.startswith("not a .tflite file: it has no TFL3 in its head\n")


def test_a_bare_file_on_standard_input(board, runtime_dir):
    done = subprocess.run(
        ["sh", "-c", f"{EDGECTL} --runtime-dir {runtime_dir} update-model - --model colours"],
        input=MODEL.read_bytes(),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert board.updater.installed[0][0] == MODEL.read_bytes()


def test_a_bare_file_from_a_url(edgectl, board):
    with WebServer(MODEL.read_bytes()) as server:
        code, _, complaints = edgectl("update-model", server.url("/colours.tflite"), "--model", "colours")
    assert (code, complaints) == (0, "")
    [(content, options)] = board.updater.installed
    assert (content, options.bare.model) == (MODEL.read_bytes(), "colours")


@pytest.mark.parametrize("base", [SERVES, UNKNOWN])
def test_the_device_fetches_the_bundle_beside_a_delta_that_comes_to_nothing(edgectl, board, tmp_path, base):
    small = write_delta(tmp_path / "small.edgd", base).read_bytes()
    with WebServer(BUNDLE) as server:
        server.orders.append(lambda handler: handler.answer(200, {}, small))
        code, output, _ = edgectl("update-model", server.url("/colours.edgd?token=1"))
    assert code == 0, output
    assert [asked.path for asked in server.requests] == ["/colours.edgd?token=1", "/colours.edgm?token=1"]
    assert "the full bundle is needed: " in output
    assert [content for content, _ in board.updater.installed] == [BUNDLE]
    assert board.gone()


def test_the_hint_to_pack_a_folder_can_be_pasted(tmp_path):
    (tmp_path / "my model").mkdir()
    with pytest.raises(BundleError) as refused:
        open_upload(str(tmp_path / "my model"))
    assert refused.value.hint == f"make one file of it: edgectl pack '{tmp_path / 'my model'}'"
