import grp
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.api import DeviceError
from edged.backends.delegates import KNOWN, Delegate, DelegateOptions, delegates, identity, resolve, survey, unknown
from tests.boards import FakeBoard

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
EDGETPU = Delegate(name="edgetpu", kind="edgetpu")
TEFLON = Delegate(name="teflon", kind="teflon")


@pytest.fixture
def board(tmp_path):
    return FakeBoard(tmp_path)


def surveyed(board, delegate):
    return survey(delegate, board.root, board.may_open)


def resolved(board, delegate, **wishes):
    return resolve(delegate, root=board.root, may_open=board.may_open, **wishes)


def ids(board, delegate):
    return [device.id for device in surveyed(board, delegate).devices]


def test_an_empty_board_has_nothing_and_says_so_of_each(board):
    found = {name: surveyed(board, delegate) for name, delegate in delegates({}).items()}
    assert {name: each.state for name, each in found.items()} == {
        "edgetpu": "no device",
        "teflon": "no device",
        "armnn": "no library",
        "vx": "no device",
        "ethosu": "no device",
        "neutron": "no device",
        "qnn": "no device",
        "gpu": "no device",
    }
    assert all(each.problem and each.hint for each in found.values())


@pytest.mark.parametrize(
    ("kind", "library", "node", "driver"),
    [
        ("teflon", "usr/lib/teflon/libteflon.so", "dri/renderD128", "etnaviv"),
        ("teflon", "usr/lib/libteflon.so", "accel/accel0", "rocket"),
        ("vx", "usr/lib/libvx_delegate.so", "galcore", ""),
        ("ethosu", "usr/lib/libethosu_delegate.so", "ethosu0", ""),
        ("neutron", "usr/lib64/libneutron_delegate.so", "neutron0", ""),
        ("qnn", "usr/local/lib/libQnnTFLiteDelegate.so", "fastrpc-cdsp", ""),
        ("gpu", "lib/libtensorflowlite_gpu_delegate.so", "dri/renderD128", "panfrost"),
        ("gpu", "lib/libtensorflowlite_gpu_delegate.so", "mali0", ""),
    ],
)
def test_a_delegate_whose_device_has_a_file_of_its_own(board, kind, library, node, driver):
    path = board.library(library)
    file = board.node(node, driver=driver, family="drm" if node.startswith("dri") else "accel")
    found = surveyed(board, Delegate(name=kind, kind=kind))
    assert (found.state, found.library) == ("ready", path)
    assert [(each.id, each.node) for each in found.devices] == [(file.name, str(file))]
    delegation = resolved(board, Delegate(name=kind, kind=kind))
    assert (delegation.library, delegation.device, delegation.options) == (path, file.name, dict(KNOWN[kind].options))


def test_a_graphics_chip_is_no_neural_accelerator(board):
    board.node("dri/renderD128", driver="v3d", family="drm")
    board.node("dri/renderD129", driver="etnaviv", family="drm")
    board.node("dri/renderD130")
    assert ids(board, TEFLON) == ["renderD129"]


def test_arm_nn_needs_no_device(board):
    library = board.library("usr/lib/libarmnnDelegate.so")
    delegation = resolved(board, Delegate(name="armnn", kind="armnn"))
    assert (delegation.library, delegation.device) == (library, "")
    assert delegation.options == {"backends": "CpuAcc,GpuAcc,CpuRef"}


def test_edge_tpus_before_and_after_their_firmware(board):
    board.library("usr/lib/libedgetpu.so.1")
    board.usb("2-1", "18d1:9302", 5, bus=2)
    board.usb("1-1.4", "1a6e:089a", 9)
    board.usb("1-1.3", "1a6e:089a", 12)
    board.usb("1-1", "0424:2514", 2)  # the hub
    board.node("apex_1")
    board.node("apex_0")
    found = surveyed(board, EDGETPU)
    assert [(each.id, each.identity) for each in found.devices[:3]] == [
        ("usb:0", "1-1.4/9"),
        ("usb:1", "1-1.3/12"),
        ("usb:2", "2-1/5"),
    ]
    assert [each.node.rpartition("/dev/")[2] for each in found.devices[2:]] == ["bus/usb/002/005", "apex_0", "apex_1"]


@given(
    st.lists(st.binary(max_size=300) | st.sampled_from([b"1a6e", b"089a", b"1", b"-1", b"999"]), min_size=4, max_size=4)
)
def test_whatever_sysfs_says_is_borne(tmp_path_factory, contents):
    board = FakeBoard(tmp_path_factory.mktemp("board"))
    board.usb("1-1", "1a6e:089a", 3)
    for name, content in zip(("idVendor", "idProduct", "busnum", "devnum"), contents, strict=True):
        (board.root / "sys/bus/usb/devices/1-1" / name).write_bytes(content)
    assert surveyed(board, EDGETPU).state in ("no device", "no library")


@pytest.mark.parametrize(
    ("wanted", "there", "taken"),
    [
        ("", ["usb:0", "usb:1", "pci:0"], "usb:0"),
        ("usb:1", ["usb:1"], "usb:1"),
        ("pci", ["pci:0"], "pci:0"),
    ],
)
def test_one_edge_tpu_of_several(board, wanted, there, taken):
    board.library("usr/lib/libedgetpu.so.1")
    board.usb("1-1", "1a6e:089a", 3)
    board.usb("1-2", "1a6e:089a", 4)
    board.node("apex_0")
    delegate = Delegate(name="coral", kind="edgetpu", device=wanted, options={"device": "usb:7"})
    assert ids(board, delegate) == there
    delegation = resolved(board, delegate)
    assert (delegation.name, delegation.device, delegation.options) == ("coral", taken, {"device": taken})


def test_an_edge_tpu_by_its_id(board):
    board.library("usr/lib/libedgetpu.so.1")
    locked = board.usb("1-1", "1a6e:089a", 3)
    board.usb("1-2", "1a6e:089a", 4)
    assert resolved(board, EDGETPU, device="usb:1").options == {"device": "usb:1"}
    board.locked.add(locked)
    assert resolved(board, EDGETPU).device == "usb:1"
    with pytest.raises(DeviceError, match="the device usb:0 is not present, or may not be opened"):
        resolved(board, EDGETPU, device="usb:0")


def test_an_edge_tpu_that_is_plugged_in_anew_is_another(board):
    board.usb("1-1", "18d1:9302", 3)
    assert identity(EDGETPU, board.root, board.may_open) == "1-1/3"
    board.unplug_usb("1-1")
    assert identity(EDGETPU, board.root, board.may_open) == ""
    (board.root / "sys/bus/usb/devices/1-1:1.0").rmdir()
    board.usb("1-1", "1a6e:089a", 4)
    assert identity(EDGETPU, board.root, board.may_open) == "1-1/4"


def test_a_device_file_that_was_made_anew_is_another(board):
    delegate = Delegate(name="vx", kind="vx")
    before, node = board.node("galcore"), board.root / "dev/new"
    first = identity(delegate, board.root, board.may_open)
    assert first == identity(delegate, board.root, board.may_open) != ""
    node.touch()
    node.replace(before)
    assert identity(delegate, board.root, board.may_open) not in ("", first)


def test_what_needs_no_device_is_always_the_same(board):
    armnn = Delegate(name="armnn", kind="armnn")
    assert identity(armnn, board.root, board.may_open) == "armnn"


# Missing parts


def test_no_device(board):
    board.library("usr/lib/libedgetpu.so.1")
    with pytest.raises(DeviceError, match=r"edgetpu: there is no Coral Edge TPU \(plug it in") as refused:
        resolved(board, EDGETPU)
    assert refused.value.retryable
    with pytest.raises(DeviceError, match="coral: there is no Coral Edge TPU usb:1"):
        resolved(board, Delegate(name="coral", kind="edgetpu", device="usb:1"))


def test_no_library(board):
    board.usb("1-1", "1a6e:089a", 3)
    with pytest.raises(DeviceError, match=r"edgetpu: libedgetpu\.so\.1 or .* is not installed \(install libedgetpu1"):
        resolved(board, EDGETPU)


def test_no_driver(board):
    board.library("usr/lib/libedgetpu.so.1")
    board.pci("0000:01:00.0", "1ac1:089a")
    board.pci("0000:00:00.0", "8086:1237")
    found = surveyed(board, EDGETPU)
    assert (found.state, found.hint) == ("no driver", "install and load the kernel modules gasket and apex")
    with pytest.raises(DeviceError, match="edgetpu: pci:0 is present, but has no driver"):
        resolved(board, EDGETPU)
    board.node("apex_0")
    assert surveyed(board, EDGETPU).state == "ready"
    assert ids(board, EDGETPU) == ["pci:0"]


@AS_ROOT
def test_no_permission_and_a_udev_rule_is_needed(board):
    board.library("usr/lib/libedgetpu.so.1")
    node = board.usb("1-1", "1a6e:089a", 3)
    board.locked.add(node)
    node.chmod(0o664)
    os.chown(node, 0, 0)
    found = surveyed(board, EDGETPU)
    assert (found.state, found.problem) == ("no permission", f"edged may not open {node}")
    assert 'ATTR{idVendor}=="1a6e", ATTR{idProduct}=="089a", GROUP="plugdev", MODE="0660"' in found.hint
    assert "sudo usermod -aG plugdev edged" in found.hint
    with pytest.raises(DeviceError, match="edgetpu: edged may not open "):
        resolved(board, EDGETPU)


@AS_ROOT
def test_no_permission_and_a_group_has_it(board):
    board.library("usr/lib/teflon/libteflon.so")
    node = board.node("dri/renderD128", driver="etnaviv", family="drm")
    board.locked.add(node)
    node.chmod(0o660)
    os.chown(node, 0, grp.getgrnam("video").gr_gid)
    found = surveyed(board, TEFLON)
    assert (found.state, found.problem) == (
        "no permission",
        f"{node} belongs to the group video, and edged is not in that group",
    )
    assert found.hint == "add the daemon's user to the group: sudo usermod -aG video edged, and restart the daemon"


def test_a_device_whose_file_is_hidden_from_us(board):
    board.library("usr/lib/libedgetpu.so.1")
    board.usb("1-1", "1a6e:089a", 3).unlink()
    found = surveyed(board, EDGETPU)
    assert found.problem.startswith("usb:0 is present, but has no file ")
    assert "container" in found.hint


# The configuration's own


def test_tables_change_what_is_known_and_add_to_it():
    table = delegates(
        {
            "teflon": DelegateOptions(library="/opt/libteflon.so"),
            "second": DelegateOptions(kind="edgetpu", device="usb:1"),
            "mine": DelegateOptions(kind="external", library="/opt/mine.so", options={"speed": "high"}),
        }
    )
    assert [*table][-2:] == ["second", "mine"]
    assert table["teflon"] == Delegate(name="teflon", kind="teflon", library="/opt/libteflon.so")
    assert table["second"].runs("edgetpu")
    assert table["second"].runs("second")
    assert not table["second"].runs("teflon")


def test_an_external_delegate_with_a_device_that_comes_and_goes(board):
    library = board.library("opt/mine.so")
    mine = Delegate(name="mine", kind="external", library="/opt/mine.so", device="/dev/npu0", options={"speed": "high"})
    with pytest.raises(DeviceError, match="mine: there is no external delegate /dev/npu0"):
        resolved(board, mine)
    board.node("npu0")
    delegation = resolved(board, mine)
    assert (delegation.device, delegation.library, delegation.options) == ("npu0", library, {"speed": "high"})


def test_a_library_by_its_name_is_looked_for(board):
    mine = Delegate(name="mine", kind="external", library="libmine.so.2")
    with pytest.raises(DeviceError, match=r"mine: libmine\.so\.2 is not installed"):
        resolved(board, mine)
    library = board.library("usr/local/lib/libmine.so.2")
    assert resolved(board, mine).library == library


def test_the_table_has_the_last_word_on_options(board):
    board.library("usr/lib/libQnnTFLiteDelegate.so")
    board.node("fastrpc-cdsp")
    qnn = Delegate(name="qnn", kind="qnn", options={"library_path": "/opt/htp.so", "log_level": "1"})
    assert resolved(board, qnn, options={"log_level": "5", "htp_precision": "0"}).options == {
        "backend_type": "htp",
        "htp_precision": "0",
        "library_path": "/opt/htp.so",
        "log_level": "1",
    }


def test_a_mistyped_name_is_answered_with_what_it_resembles():
    assert unknown("edgtpu", delegates({})) == 'did you mean "edgetpu"?'
    assert "[delegates.hailo]" in unknown("hailo", delegates({}))


def test_looking_imports_nothing_of_weight():
    code = "import sys, edged.backends.delegates; print(sorted({'numpy', 'ctypes', 'asyncio'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
