"""`edgectl devices`: present devices, and remarks on missing ones."""

import errno
import json

import pytest

from edged.backends.delegates import DelegateOptions, delegates, survey
from edged.ctl import devices
from edged.ctl import exit_codes as exits
from edged.ctl.devices_cameras import camera_lines, camera_rows
from edged.ctl.main import main
from tests.boards import FakeBoard
from tests.fake_camera import FakeKernel


@pytest.fixture
def board(tmp_path):
    return FakeBoard(tmp_path / "board")


def rows(board, configured=()):
    table = delegates(dict(configured))
    return devices.rows_of(survey(delegate, board.root, board.may_open) for delegate in table.values())


def test_a_board_with_some_accelerators(board):
    board.library("usr/lib/libedgetpu.so.1")
    board.usb("1-1", "1a6e:089a", 3)
    board.node("apex_0")
    board.locked.add(board.node("galcore"))
    board.library("usr/lib/libvx_delegate.so")
    configured = {"mine": DelegateOptions(kind="external", library="/opt/mine.so")}
    shown = [line.replace(str(board.root), "") for line in devices.lines(rows(board, configured), configured)]
    assert shown == [
        "  DELEGATE  STATE          DEVICES       DESCRIPTION                           LIBRARY",
        "● edgetpu   ready          usb:0, pci:0  Coral Edge TPU                        /usr/lib/libedgetpu.so.1",
        "○ teflon    no device      -             NPU by Mesa Teflon (Vivante, RK3588)  -",
        "● armnn     no library     -             Arm CPU and Mali GPU by Arm NN        -",
        "● vx        no permission  galcore       NXP i.MX 8M Plus NPU                  /usr/lib/libvx_delegate.so",
        "      edged may not open /dev/galcore",
        "      -> put into /etc/udev/rules.d/99-edged.rules:",
        '      -> KERNEL=="galcore", GROUP="render", MODE="0660"',
        "      -> then: sudo udevadm control --reload && sudo udevadm trigger && sudo usermod -aG render edged, and "
        "restart the daemon",
        "○ ethosu    no device      -             Arm Ethos-U (NXP i.MX 93)             -",
        "○ neutron   no device      -             NXP eIQ Neutron (i.MX 95)             -",
        "○ qnn       no device      -             Qualcomm Hexagon by QNN               -",
        "○ gpu       no device      -             GPU by the TFLite GPU delegate        -",
        "● mine      no library     -             external delegate                     -",
        "      /opt/mine.so is not installed",
        "      -> install it, or correct `library`",
    ]


def test_in_json(board):
    board.library("usr/lib/libedgetpu.so.1")
    node = board.usb("1-1", "1a6e:089a", 3)
    assert rows(board)[0] == {
        "name": "edgetpu",
        "kind": "edgetpu",
        "title": "Coral Edge TPU",
        "state": "ready",
        "library": str(board.root / "usr/lib/libedgetpu.so.1"),
        "devices": [{"id": "usb:0", "node": str(node), "state": "ready", "problem": "", "hint": ""}],
        "problem": "",
        "hint": "",
    }


def test_cameras_with_formats_and_controls():
    kernel = FakeKernel({"MJPG": {(640, 480): (30, 15)}, "H264": {(640, 480): ()}}, {"Brightness": (-64, 64, 0)})
    rows = camera_rows(["/dev/video0"], kernel)
    assert [*camera_lines(rows)] == [
        "  CAMERA       STATE  DESCRIPTION",
        "● /dev/video0  ready  Fake Camera",
        "      mjpeg: 640x480 at 15/30",
        "      H264 (edged cannot read it): 640x480",
        "      controls: brightness -64 to 64",
    ]
    assert json.loads(json.dumps(rows))[0]["controls"] == [
        {"name": "brightness", "least": -64, "most": 64, "step": 1, "default": 0}
    ]
    assert not kernel.is_open


def test_cameras_that_cannot_be_asked():
    kernel = FakeKernel({}, {})
    kernel.fails[0] = errno.EACCES
    shown = [*camera_lines(camera_rows(["/dev/video0"], kernel))]
    assert shown[1:3] == ["● /dev/video0  no permission  -", "      not allowed to open /dev/video0"]
    kernel.fails[0] = errno.ENOTTY
    assert [*camera_lines(camera_rows(["/dev/video0"], kernel))] == []
    kernel.fails.clear()
    kernel.capabilities = 0
    assert camera_rows(["/dev/video0"], kernel) == []


def here(tmp_path, *words):
    return main(["--config", str(tmp_path / "edged.toml"), "--runtime-dir", str(tmp_path), *words])


def test_on_this_machine_with_no_daemon_and_no_configuration(tmp_path, capsys):
    assert here(tmp_path, "devices", "--json") == exits.DONE
    found = [row["name"] for row in json.loads(capsys.readouterr().out) if row["kind"] != "camera"]
    assert found == ["edgetpu", "teflon", "armnn", "vx", "ethosu", "neutron", "qnn", "gpu"]


def test_a_library_that_does_not_work_is_told_by_loading_it(tmp_path, capsys):
    (tmp_path / "mine.so").write_text("#!/bin/sh\n" * 10)
    table = f'[delegates.mine]\nkind = "external"\nlibrary = "{tmp_path}/mine.so"\n'
    (tmp_path / "edged.toml").write_text(table)
    assert here(tmp_path, "devices", "--json") == exits.DONE
    assert json.loads(capsys.readouterr().out)[-1]["state"] == "ready"
    assert here(tmp_path, "devices", "--probe", "--json") == exits.BAD
    mine = json.loads(capsys.readouterr().out)[-1]
    assert (mine["state"], mine["hint"]) == ("fails", "install the library for this processor")
    assert "is damaged, or for another processor" in mine["problem"]


def test_what_uses_them_is_told_by_the_daemon(daemon, edgectl):
    used = json.loads(edgectl("devices", "--json")[1])
    assert [(row["name"], [model["name"] for model in row["models"]]) for row in used if row["models"]] == [
        ("edgetpu", ["motion"])
    ]
    _, output, _ = edgectl("devices")
    assert "      motion: accelerated, for 1 h 2 min, 93% of the time off the processor\n" in output


def test_nothing_is_loaded_while_the_daemon_may_have_it(daemon, edgectl):
    code, output, complaints = edgectl("devices", "--probe")
    assert (code, output) == (exits.FAILED, "")
    assert "the daemon runs, and may use the devices" in complaints


def test_nothing_is_loaded_beside_a_daemon_of_another_version(daemon, edgectl):
    daemon.status = "an answer of another shape"
    code, output, complaints = edgectl("devices", "--probe")
    assert (code, output) == (exits.FAILED, "")
    assert "the daemon runs, and may use the devices" in complaints
