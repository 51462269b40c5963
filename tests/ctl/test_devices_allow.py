"""`edgectl devices allow`: devices of a configuration, and the drop-in that permits them to the service."""

import json
import os
import pty
from pathlib import Path

import pytest

from edged.config.load import load
from edged.core.errors import ConfigError, ControlError, EdgedError, StoreError
from edged.ctl import devices_allow as allow
from edged.ctl import exit_codes as exits
from edged.ctl.devices_allow import Access, driver_of, drop_in, module_of, put, wanted
from edged.ctl.main import main
from edged.models.store import Store
from tests.boards import FakeBoard
from tests.bundles import write_bundle
from tests.unprivileged import unprivileged

PIPELINE = """
[sources.made-up]
kind = "synthetic"
channels = ["c0", "c1", "c2", "c3"]

[pipelines.colour]
source = "made-up"
model = "colours"
sinks = ["stdout"]
"""
BY_ID = "/dev/serial/by-id/usb-Demo_Motion_Sensor-if00"


@pytest.fixture
def board(tmp_path):
    return FakeBoard(tmp_path / "board")


@pytest.fixture
def needs(tmp_path, board):
    """Return the devices of a configuration on a board with files of these drivers."""

    def needs(text, drivers=None, variants=()):
        write_bundle(tmp_path / "factory" / "colours" / "1.0", variants=list(variants))
        (tmp_path / "edged.toml").write_text(PIPELINE + text)
        known = {str(board.root / path) if path.startswith("dev") else path: name
                 for path, name in (drivers or {}).items()}  # fmt: skip
        config = load([tmp_path / "edged.toml"])
        return wanted(config, Store(tmp_path / "factory"), board.root, lambda node: known.get(str(node), ""))

    return needs


def serial(port):
    return f'[sources.wrist]\nkind = "serial"\nport = "{port}"\nchannels = ["a"]\nrate = 10\n'


def variant(delegate):
    return {"name": "npu", "delegate": delegate, "file": "model.tflite"}


USB_SERIAL = Access("char-ttyUSB", "source wrist", module="usbserial")
USB_MODEM = Access("char-ttyACM", "source wrist", module="cdc_acm")

# -- ports ----------------------------------------------------------------------------------------------------------


def test_what_is_made_up_needs_nothing(needs):
    assert needs("") == []
    assert drop_in([]) == ""


@pytest.mark.parametrize(
    ("port", "drivers", "expected"),
    [
        ("/dev/ttyUSB0", {"/dev/ttyUSB0": "ttyUSB"}, [USB_SERIAL]),
        ("/dev/ttyUSB0", {}, [USB_SERIAL]),
        ("/dev/ttyACM3", {}, [USB_MODEM]),
        (BY_ID, {BY_ID: "ttyACM"}, [USB_MODEM]),
        (BY_ID, {}, [USB_SERIAL, USB_MODEM]),
        ("/dev/ttyAMA0", {"/dev/ttyAMA0": "ttyAMA"}, [Access("/dev/ttyAMA0", "source wrist")]),
        ("/dev/ttyS0", {"/dev/ttyS0": "misc"}, [Access("/dev/ttyS0", "source wrist")]),
        ("/dev/ttyAMA0", {}, [Access("/dev/ttyAMA0", "source wrist")]),
        ("/dev/100%", {"/dev/100%": "misc"}, [Access("/dev/100%%", "source wrist")]),
    ],
)
def test_a_port_is_let_in_by_its_driver_where_it_comes_and_goes_else_by_its_file(needs, port, drivers, expected):
    assert needs(serial(port), drivers) == expected


@pytest.mark.parametrize("device", ["/dev/video0", "/dev/v4l/by-id/usb-Webcam-video-index0"])
@pytest.mark.parametrize("is_there", [True, False])
def test_cameras_are_let_in_by_their_driver(needs, device, is_there):
    table = f'[sources.yard]\nkind = "camera"\ndevice = "{device}"\n'
    drivers = {device: "video4linux"} if is_there else {}
    assert needs(table, drivers) == [Access("char-video4linux", "source yard", module="videodev", groups=("video",))]


def test_a_program_is_let_at_the_devices_in_its_options(needs):
    table = (
        '[sources.yard]\nkind = "command"\ncommand = ["rpicam-vid"]\ndevice_files = ["/dev/video0", "/dev/media0"]\n'
    )
    assert needs(table) == [Access("/dev/video0", "source yard"), Access("/dev/media0", "source yard")]


def test_two_ports_of_one_kind_are_let_in_once(needs):
    assert needs(serial("/dev/ttyUSB0") + serial("/dev/ttyUSB1").replace("wrist", "ankle")) == [USB_SERIAL]


def test_a_link_says_what_it_leads_to(needs, tmp_path):
    (tmp_path / "wrist").symlink_to("/dev/ttyUSB7")
    assert needs(serial(tmp_path / "wrist")) == [USB_SERIAL]


@pytest.mark.parametrize("port", ["/dev/tty\\nExecStart=/bin/evil", "/dev/tty A0"])
def test_nothing_else_gets_into_the_unit(needs, port):
    with pytest.raises(EdgedError, match=r"systemd allows device files only|no absolute path of a device"):
        needs(serial(port), {port.replace("\\n", "\n"): "misc"})


# -- plug-ins --------------------------------------------------------------------------------------------------------

BAROMETER = """
from edged.api import DeviceRequirements, SourceConfig, SourceInfo

class Barometer(SourceConfig, frozen=True, kw_only=True):
    def describe(self):
        return SourceInfo(shape=(1,), channels=("pressure",))

    def devices(self):
        return {devices}
"""
I2C = 'DeviceRequirements(paths=("/dev/i2c-1",), groups=("daemon",), drivers={"i2c": "i2c_dev"})'


@pytest.fixture
def barometer(install_plugin):
    """Install a plug-in with these devices, and return the table of a source of this kind."""

    def barometer(devices):
        install_plugin("barometer", BAROMETER.replace("{devices}", devices), barometer="barometer:Barometer")
        return '[sources.attic]\nkind = "barometer"\n'

    return barometer


@pytest.mark.parametrize(
    ("devices", "drivers", "expected"),
    [
        ("DeviceRequirements()", {}, []),
        (
            'DeviceRequirements(paths=("/dev/i2c-1",))',
            {},
            [Access("/dev/i2c-1", "source attic")],
        ),
        (I2C, {}, [Access("char-i2c", "source attic", module="i2c_dev", groups=("daemon",))]),
        (I2C, {"/dev/i2c-1": "i2c"}, [Access("char-i2c", "source attic", module="i2c_dev", groups=("daemon",))]),
        (
            'DeviceRequirements(drivers={"usb_device": ""}, hotplug=True)',
            {},
            [Access("char-usb_device", "source attic", netlink=True)],
        ),
    ],
    ids=["none", "a file", "absent", "there", "usb"],
)
def test_the_devices_of_a_plug_in_are_allowed(needs, barometer, devices, drivers, expected):
    assert needs(barometer(devices), drivers) == expected


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ("1 / 0", "devices() fails: ZeroDivisionError('division by zero')"),
        ("exit(3)", "devices() fails: SystemExit(3)"),
        ("['/dev/i2c-1']", "devices() returns list in place of DeviceRequirements"),
        ("DeviceRequirements(paths=('i2c-1',))", "'i2c-1' is no absolute path of a device"),
    ],
)
def test_a_plug_in_that_does_not_state_its_devices_is_named(needs, barometer, devices, reason):
    with pytest.raises(ConfigError) as refused:
        needs(barometer(devices))
    assert refused.value.message == f"[sources.attic], kind 'barometer': {reason}"
    assert refused.value.hint


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ('DeviceRequirements(paths=("/etc/shadow",))', "source attic uses '/etc/shadow', and systemd allows"),
        ('DeviceRequirements(paths=("/dev/x",), groups=("nobody-has-it",))', "source attic needs the group nobody-has"),
    ],
)
def test_a_plug_in_gets_no_more_than_devices_and_groups_of_the_board(needs, barometer, devices, reason):
    with pytest.raises(ControlError, match=reason):
        needs(barometer(devices))


def test_devices_allow_shows_the_device_of_a_plug_in(tmp_path, capsys, barometer):
    (tmp_path / "edged.toml").write_text(barometer('DeviceRequirements(paths=("/dev/i2c-1",))'))
    files = ["--config", str(tmp_path / "edged.toml"), "--state-dir", str(tmp_path)]
    assert main(["devices", "allow", "--dry-run", *files]) == exits.DONE
    assert "DeviceAllow=/dev/i2c-1 rw\n" in capsys.readouterr().out


def test_two_sources_of_one_driver_bring_the_groups_of_both(needs, install_plugin):
    code = BAROMETER.replace("{devices}", 'DeviceRequirements(drivers={"ttyUSB": "usbserial"}, groups=("daemon",))')
    install_plugin("barometer", code, barometer="barometer:Barometer")
    (access,) = needs(serial("/dev/ttyUSB0") + '[sources.attic]\nkind = "barometer"\n')
    assert access == USB_SERIAL._replace(groups=("daemon",))


# -- accelerators ---------------------------------------------------------------------------------------------------


def test_an_accelerator_that_no_model_may_use_is_not_let_in(needs, board):
    board.node("galcore")
    assert needs("", {"dev/galcore": "galcore"}) == []
    assert needs('[models.colours]\ndelegate = "cpu"\n', {"dev/galcore": "galcore"}, [variant("vx")]) == []


@pytest.mark.parametrize(
    ("text", "variants"),
    [
        ("", [variant("vx")]),
        ('[models.colours]\ndelegate = "vx"\n', []),
        ("[delegates.vx]\nlibrary = 'libmine.so'\n", []),
    ],
    ids=["of a variant", "pinned", "configured"],
)
def test_an_accelerator_that_a_model_may_use(needs, board, text, variants):
    board.node("galcore")
    assert needs(text, {"dev/galcore": "galcore"}, variants) == [Access("char-galcore", "delegate vx")]


def test_of_a_driver_with_files_of_all_kinds_one_file_is_let_in(needs, board):
    board.node("npu0")
    text = '[delegates.mine]\nkind = "external"\nlibrary = "/opt/mine.so"\ndevice = "/dev/npu0"\n'
    assert needs(text, {"dev/npu0": "misc"}) == [Access("/dev/npu0", "delegate mine")]


def test_on_usb_it_is_let_in_before_it_is_plugged_in_and_heard_of(needs, board):
    usb = Access("char-usb_device", "delegate edgetpu", netlink=True)
    assert needs("", variants=[variant("edgetpu")]) == [usb]
    board.node("apex_0")
    assert needs("", {"dev/apex_0": "apex"}, [variant("edgetpu")]) == [Access("char-apex", "delegate edgetpu")]
    board.usb("1-1", "1a6e:089a", 3)
    assert needs("", {"dev/apex_0": "apex"}, [variant("edgetpu")]) == [usb, Access("char-apex", "delegate edgetpu")]


# -- the kernel's data ----------------------------------------------------------------------------------------------


def test_the_driver_of_a_device(tmp_path):
    table = tmp_path / "devices"
    table.write_text("Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n136 nonsense\n")
    master, slave = pty.openpty()
    assert driver_of(Path(os.ttyname(slave)), table) == "pts"
    os.close(master)
    os.close(slave)
    table.write_text("Character devices:\n  1 mem\n  1 mom\n")
    assert driver_of(Path("/dev/null"), table) == "misc"
    assert driver_of(table, table) == driver_of(tmp_path / "none", table) == ""


def test_the_module_of_a_device(tmp_path):
    number = Path("/dev/null").stat().st_rdev
    folder = tmp_path / f"dev/char/{os.major(number)}:{os.minor(number)}/device/driver"
    folder.mkdir(parents=True)
    assert module_of(Path("/dev/null"), tmp_path) == ""
    (folder / "module").symlink_to("../../../module/galcore")
    assert module_of(Path("/dev/null"), tmp_path) == "galcore"


# -- the drop-in ----------------------------------------------------------------------------------------------------


def test_what_systemd_is_told():
    text = drop_in([USB_SERIAL, Access("char-usb_device", "delegate edgetpu", groups=("uucp",), netlink=True)])
    assert [line for line in text.splitlines() if not line.startswith("#")] == [
        "[Unit]",
        "Wants=modprobe@usbserial.service",
        "After=modprobe@usbserial.service",
        "",
        "[Service]",
        "PrivateDevices=no",
        "DevicePolicy=closed",
        "DeviceAllow=char-ttyUSB rw",
        "DeviceAllow=char-usb_device rw",
        "SupplementaryGroups=uucp",
        "RestrictAddressFamilies=AF_NETLINK",
    ]
    assert "[Unit]" not in drop_in([Access("/dev/ttyAMA0", "source wrist")])


def test_it_is_written_once_and_goes_when_nothing_is_needed(tmp_path):
    file = tmp_path / "edged.service.d" / "devices.conf"
    assert put("", file) is False
    assert put("[Service]\n", file) is True
    assert (file.read_text(), oct(file.stat().st_mode), oct(file.parent.stat().st_mode)) == (
        "[Service]\n",
        "0o100644",
        "0o40755",
    )
    assert put("[Service]\n", file) is False
    (file.parent / "override.conf").touch()
    assert put("", file) is True
    assert [each.name for each in file.parent.iterdir()] == ["override.conf"]


def test_a_disk_that_refuses_is_told(tmp_path):
    (tmp_path / "edged.service.d").touch()
    with pytest.raises(StoreError, match=r"edged\.service\.d"):
        put("[Service]\n", tmp_path / "edged.service.d" / "devices.conf")


def test_who_is_not_root_is_told_so():
    with unprivileged(), pytest.raises(ControlError, match="cannot be written without root") as refused:
        put("[Service]\n", allow.DROP_IN)
    assert refused.value.hint == "run sudo edgectl devices allow"


# -- the verb -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "the configuration names no device, and the sandbox hides all devices\n"),
        (serial("/dev/ttyUSB0"), "DeviceAllow=char-ttyUSB rw\n"),
    ],
)
def test_a_dry_run_shows_the_drop_in(tmp_path, capsys, text, shown):
    (tmp_path / "edged.toml").write_text(text)
    files = ["--config", str(tmp_path / "edged.toml"), "--state-dir", str(tmp_path)]
    assert main(["devices", "allow", "--dry-run", *files]) == exits.DONE
    assert capsys.readouterr().out.endswith(shown)
    assert main(["devices", "allow", "--dry-run", "--json", *files]) == exits.DONE
    assert (json.loads(capsys.readouterr().out)["text"] == "") == (text == "")
