"""`edgectl doctor`: checks, verdicts and remedies."""

import json
import os
import pty
import shutil
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from edged.backends.delegates import KNOWN
from edged.config.load import load
from edged.core.device_requirements import DeviceRequirements
from edged.ctl import doctor
from edged.ctl.devices_allow import Access
from edged.ctl.doctor import Check
from edged.ctl.main import main
from edged.models.store import FACTORY, Store
from edged.outbox.options import MqttOptions
from tests.boards import FakeBoard
from tests.bundles import COLOURS, write_bundle
from tests.delegates import faulty_library
from tests.unprivileged import unprivileged

CONFIG = """
[sources.wrist]
kind = "synthetic"
channels = ["c0", "c1", "c2", "c3"]

[pipelines.colour]
source = "wrist"
model = "colours"
sinks = ["stdout"]
"""


@pytest.fixture
def store(tmp_path):
    write_bundle(tmp_path / "factory" / "colours" / "1.0")
    return Store(tmp_path / "factory")


def configured(tmp_path, text):
    (tmp_path / "edged.toml").write_text(text)
    return load([tmp_path / "edged.toml"])


@pytest.mark.parametrize(
    ("version", "verdict"), [((3, 10), "warn"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "warn")]
)
def test_pythons_that_are_tested_with(version, verdict):
    assert doctor.check_python(version).verdict == verdict


# -- the runtime ----------------------------------------------------------------------------------------------------


def test_the_runtime_is_imported_in_a_child():
    check = doctor.check_runtime()
    assert check.verdict == "ok"
    assert check.found.split()[0] in ("ai-edge-litert", "tflite-runtime")


def test_a_runtime_that_kills_its_process():
    check = doctor.check_runtime("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    assert check[1:3] == ("fail", "the import kills the process: SIGILL")
    assert check.remedy == "install a runtime for this processor"


def test_no_runtime_at_all():
    check = doctor.check_runtime("print('ai_edge_litert: no such module'); raise SystemExit(1)")
    assert check == Check("runtime", "fail", "ai_edge_litert: no such module", "pip install ai-edge-litert")


# -- accelerators ---------------------------------------------------------------------------------------------------

MINE = '[delegates.mine]\nkind = "external"\nlibrary = "/opt/mine.so"\ndevice = "/dev/npu0"\n'
VARIANT = {"name": "npu", "delegate": "mine", "file": "model.tflite"}


@pytest.fixture
def board(tmp_path):
    return FakeBoard(tmp_path / "board")


@pytest.fixture
def accelerators(tmp_path, board):
    """Return the doctor's finding on accelerators, on a board with a model with this variant."""

    def accelerators(text, variants=(VARIANT,), running=False, **parts):
        write_bundle(tmp_path / "factory" / "colours" / "1.0", variants=list(variants), **parts)
        config = configured(tmp_path, CONFIG + text)
        return [*doctor.check_delegates(config, Store(tmp_path / "factory"), running=running, root=board.root)]

    return accelerators


def test_no_accelerator_and_none_asked_for(accelerators):
    assert accelerators("") == []
    assert accelerators("", variants=[{**VARIANT, "delegate": "edgetpu"}]) == []


@pytest.mark.parametrize("text", [MINE, MINE + '[models.colours]\ndelegate = "mine"'], ids=["configured", "pinned"])
def test_an_accelerator_that_was_asked_for_and_is_not_there(accelerators, text):
    (check,) = accelerators(text)
    assert (check.verdict, check.found) == ("fail", "mine: there is no external delegate /dev/npu0")


def test_an_accelerator_that_is_there_and_lacks_its_library(accelerators, board):
    board.node("galcore")
    (check,) = accelerators("", variants=[{**VARIANT, "delegate": "vx"}])
    assert check == Check("delegate", "warn", "vx: libvx_delegate.so is not installed", KNOWN["vx"].get)
    assert accelerators('[models.colours]\ndelegate = "cpu"', variants=[{**VARIANT, "delegate": "vx"}]) == []


def test_a_model_that_is_pinned_to_what_it_has_no_variant_for(accelerators, board):
    board.node("npu0")
    board.library("opt/mine.so")
    checks = accelerators(MINE + '[models.colours]\ndelegate = "edgetpu"')
    assert [check.found for check in checks] == [
        "colours is to run on edgetpu, and has no variant for it",
        "edgetpu: there is no Coral Edge TPU",
        "mine is ready, and no model has a variant for it",
    ]


def test_the_daemon_is_not_robbed_of_its_accelerator(accelerators, board):
    board.node("npu0")
    library = board.library("opt/mine.so")
    assert accelerators(MINE, running=True) == [
        Check("delegate", "ok", f"mine: library {library} and device are present")
    ]


def test_an_accelerator_is_loaded_with_the_variant(accelerators, board):
    board.node("npu0")
    library = board.library("opt/mine.so")
    assert accelerators(MINE) == [
        Check(
            "delegate",
            "fail",
            f"mine: {library} is damaged, or for another processor: file too short",
            "install the library for this processor",
        )
    ]


@pytest.mark.parametrize(
    ("options", "share", "expected"),
    [
        ("", 1.0, ("ok", "mine takes 1 of 1 nodes of colours 1.0", "")),
        ('options.take = "none"', None, ("warn", "mine takes 0 of 1 nodes of colours 1.0", "compile or quantise")),
        (
            'options.take = "none"',
            0.5,
            ("fail", "mine takes 0 of 1 nodes of colours 1.0", "compile the model anew"),
        ),
        (
            'options.fail = "prepare"',
            None,
            ("fail", "mine fails to take model.tflite: faulty delegate: prep", "compile"),
        ),
    ],
)
def test_how_much_an_accelerator_takes_of_a_model(accelerators, board, options, share, expected):
    board.node("npu0")
    shutil.copyfile(faulty_library(), board.library("opt/mine.so"))
    limits = {"limits": {"delegated_share": share}} if share else {}
    (check,) = accelerators(MINE + options, **limits)
    assert (check.verdict, check.found[: len(expected[1])], check.remedy[: len(expected[2])]) == expected


# -- the configuration and the models -------------------------------------------------------------------------------


def test_a_configuration_that_fits_its_models(tmp_path, store):
    config = configured(tmp_path, CONFIG)
    assert list(doctor.check_config(config, store)) == [Check("config", "ok", "1 pipeline, 1 source, 1 model, 1 sink")]


def test_a_configuration_without_a_pipeline_may_be_meant_so(tmp_path, store):
    assert [check.verdict for check in doctor.check_config(configured(tmp_path, ""), store)] == ["ok", "warn"]


def test_a_model_that_does_not_fit_fails(tmp_path, store):
    config = configured(tmp_path, CONFIG.replace('"c3"', '"x"'))
    (check,) = doctor.check_config(config, store)
    assert check.verdict == "fail"
    assert "pipelines.colour: found the source 'wrist' does not fit" in check.found
    assert check.remedy


def test_a_model_without_golden_samples_is_a_warning(tmp_path, store):
    (check,) = doctor.check_models_work(configured(tmp_path, CONFIG), store)
    assert check[:3] == ("model", "warn", "colours 1.0: loads, but has no golden samples")


def test_a_model_that_proves_itself(tmp_path):
    config = configured(tmp_path, "[models.motion]")
    (check,) = doctor.check_models_work(config, Store(FACTORY))
    assert check.verdict == "ok"
    assert "motion 1.0.0: right on 16 golden samples, off by at most " in check.found


def test_a_model_that_is_not_what_its_manifest_says(tmp_path):
    outputs = [{**COLOURS["outputs"][0], "shape": [1, 3, 1]}]
    write_bundle(tmp_path / "factory" / "colours" / "1.0", outputs=outputs)
    (check,) = doctor.check_models_work(configured(tmp_path, CONFIG), Store(tmp_path / "factory"))
    assert check.verdict == "fail"
    assert "the manifest says output 0 is" in check.found
    assert check.remedy


# -- the world outside ----------------------------------------------------------------------------------------------


def test_a_port_that_is_there():
    master, slave = pty.openpty()
    name = os.ttyname(slave)
    assert doctor.check_device("wrist", Path(name)) == Check("device", "ok", f"wrist: {name}")
    os.close(master)
    os.close(slave)


def test_a_port_that_is_not_there(tmp_path):
    check = doctor.check_device("wrist", tmp_path / "ttyUSB0")
    assert (check.verdict, check.found) == ("fail", f"wrist: {tmp_path}/ttyUSB0: No such file or directory")
    assert "/dev/serial/by-id" in check.remedy


def test_a_file_is_no_port(tmp_path):
    (tmp_path / "x").touch()
    assert doctor.check_device("wrist", tmp_path / "x").found == f"wrist: {tmp_path}/x is not a device"


def test_only_serial_sources_have_ports(tmp_path):
    config = configured(
        tmp_path, CONFIG + '[sources.usb]\nkind = "serial"\nport = "/dev/nowhere"\nchannels = ["a"]\nrate = 5'
    )
    assert [check.found for check in doctor.check_sources(config, {})] == [
        "usb: /dev/nowhere: No such file or directory"
    ]


CAMERA = """
from edged.api import DeviceRequirements, SourceConfig, SourceInfo

class Camera(SourceConfig, frozen=True, kw_only=True):
    device: str

    def describe(self):
        return SourceInfo(shape=(4,))

    def devices(self):
        return DeviceRequirements(paths=(self.device,))
"""


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("/dev/null", Check("device", "ok", "eye: /dev/null")),
        ("/dev/video77", "eye: /dev/video77: No such file or directory"),
        ("video0", "[sources.eye], kind 'camera': 'video0' is no absolute path of a device"),
    ],
)
def test_the_device_of_a_plug_in_is_looked_at(tmp_path, install_plugin, device, expected):
    install_plugin("camera", CAMERA, camera="camera:Camera")
    config = configured(tmp_path, f'{CONFIG}[sources.eye]\nkind = "camera"\ndevice = "{device}"\n')
    (check,) = doctor.check_sources(config, {})
    assert expected in (check, check.found)
    assert bool(check.remedy) == (check.verdict == "fail")


@pytest.fixture
def root_only():
    """Make a device of root in a folder open to all users."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        device = Path(folder, "spidev0.0")
        try:
            os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
        yield device


def test_a_device_that_belongs_to_root_alone_is_given_away_by_a_udev_rule(root_only):
    device = root_only
    with unprivileged():
        check = doctor.check_device("eye", device)
        own = doctor.check_device("eye", device, DeviceRequirements(paths=(str(device),), udev_rule="MY RULE"))
    assert check.found == f"eye: {device} belongs to root alone"
    assert 'KERNEL=="spidev0.0", GROUP="edged", MODE="0660"' in check.remedy
    assert "\nMY RULE\n" in own.remedy


def test_a_broker_that_listens_and_one_that_does_not():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = MqttOptions(host="127.0.0.1", port=listener.getsockname()[1])
        assert doctor.check_broker(options) == Check("broker", "ok", f"{options.broker} accepts connections")
    check = doctor.check_broker(options)
    assert (check.verdict, check.found) == ("fail", f"{options.broker}: Connection refused")
    assert check.remedy


def test_no_broker_is_a_warning():
    assert doctor.check_broker(MqttOptions()).verdict == "warn"


@pytest.fixture
def fstab(tmp_path):
    (tmp_path / "fstab").write_text(
        "# what is mounted where\nproc /proc proc defaults 0 0\n/dev/mmcblk0p2 / ext4 ro 0 1\n"
    )
    return tmp_path / "fstab"


def test_a_state_folder_with_and_without_room(tmp_path, fstab):
    assert doctor.check_state(tmp_path, fstab, least=1).verdict == "ok"
    check = doctor.check_state(tmp_path, fstab, least=1 << 60)
    assert (check.verdict, check.remedy) == ("fail", "free some space")


def test_a_state_folder_that_is_not_there_yet(tmp_path, fstab):
    assert doctor.check_state(tmp_path / "none", fstab).verdict == "warn"


def test_a_state_partition_that_is_not_mounted(tmp_path, fstab):
    with fstab.open("a") as file:
        file.write(f"/dev/mmcblk0p3 {tmp_path} ext4 defaults,nofail 0 2\n")
    check = doctor.check_state(tmp_path / "edged", fstab)
    assert (check.verdict, check.found) == ("fail", f"{tmp_path} is in /etc/fstab, and is not mounted")
    assert check.remedy.endswith(f"sudo mount {tmp_path}")


def test_a_state_folder_on_a_file_system_that_is_read_only(fstab):
    check = doctor.check_state(Path("/sys"), fstab)
    assert (check.verdict, check.found) in [
        ("fail", "/sys: the file system is read-only"),  # as in a container
        ("fail", "/sys: 0 B free"),
    ]


def test_a_root_that_can_be_written_is_nothing_to_speak_of(tmp_path, fstab):
    assert list(doctor.check_root(tmp_path, fstab)) == []


def test_a_folder_that_is_not_ours(fstab):
    with unprivileged():
        check = doctor.check_state(Path("/usr"), fstab, least=1)
    assert check.verdict == "fail"


# -- the service ----------------------------------------------------------------------------------------------------

UNIT = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "Result": "success",
    "NRestarts": "0",
    "PrivateDevices": "yes",
    "DevicePolicy": "closed",
    "DeviceAllow": "",
}


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, ("ok", "the service is active, and started at boot", "")),
        (
            {"UnitFileState": "disabled"},
            ("warn", "the service is not started at boot", "sudo systemctl enable --now edged"),
        ),
        ({"UnitFileState": "masked"}, ("fail", "the service is masked", "sudo systemctl unmask edged")),
        (
            {"ActiveState": "failed", "Result": "exit-code"},
            ("fail", "the service failed: exit-code", "see why: sudo journalctl -u edged -n 50"),
        ),
        (
            {"ActiveState": "inactive"},
            ("fail", "the service does not run", "sudo systemctl start edged; systemctl status edged"),
        ),
        (
            {"NRestarts": "3"},
            ("warn", "the service is active; it had to be restarted 3 times", "see why: sudo journalctl -u edged"),
        ),
    ],
)
def test_what_systemd_says_of_the_service(properties, expected):
    assert [check[1:] for check in doctor.check_unit(UNIT | properties)] == [expected]


def test_no_systemd_or_no_such_service():
    assert doctor.unit_properties(lambda: "") == doctor.unit_properties(lambda: "LoadState=not-found\n") == {}
    assert list(doctor.check_unit({})) == list(doctor.check_access({}, [NEED])) == []


def test_devices_are_listed_line_by_line():
    said = "LoadState=loaded\nDeviceAllow=char-ttyUSB rw\nDeviceAllow=char-ttyACM rw\n"
    assert doctor.unit_properties(lambda: said)["DeviceAllow"] == "char-ttyUSB rw char-ttyACM rw"
    assert doctor.unit_properties(lambda: "LoadState=loaded\n")["DeviceAllow"] == ""


NEED = Access("char-ttyUSB", "source wrist")


@pytest.mark.parametrize(
    ("properties", "verdict"),
    [
        ({}, "fail"),
        ({"PrivateDevices": "no"}, "fail"),
        ({"PrivateDevices": "no", "DeviceAllow": "char-ttyACM rw"}, "fail"),
        ({"PrivateDevices": "no", "DeviceAllow": "char-ttyUSB rw char-ttyACM rw"}, "ok"),
        ({"PrivateDevices": "no", "DevicePolicy": "auto"}, "ok"),
    ],
)
def test_whether_the_sandbox_lets_the_service_at_what_it_needs(properties, verdict):
    (check,) = doctor.check_access(UNIT | properties, [NEED])
    assert (check.verdict, check.remedy) == (verdict, doctor.COMMAND if verdict == "fail" else "")
    assert list(doctor.check_access(UNIT | properties, [])) == []


def test_a_clock_nobody_vouches_for_is_a_warning():
    assert doctor.check_clock(lambda: True).verdict == "ok"
    assert doctor.check_clock(lambda: False).verdict == "warn"


SPOOL = {
    "depth": 0,
    "in_flight": 0,
    "on_disk": 0,
    "bytes": 0,
    "oldest": None,
    "dropped": 0,
    "parked": 0,
    "drops": {},
    "parks": {},
    "disk": None,
    "rate": 0.0,
    "seconds_to_empty": None,
    "replayed": 0,
    "refused": [],
    "health": {"state": "running", "reason": "", "hint": "", "since": 1.0, "for": 2.0},
}


@pytest.fixture
def daemon(daemon):
    daemon.answers["spool"] = SPOOL
    return daemon


def test_a_daemon_whose_socket_may_not_be_opened_is_a_failure(tmp_path):
    (tmp_path / "run").mkdir(mode=0)
    with unprivileged():
        (check,) = doctor.check_daemon(str(tmp_path / "run"))
    assert check.verdict == "fail"
    assert "not yours to open" in check.found


def test_a_daemon_that_is_not_there_may_be_meant_so(tmp_path):
    (check,) = doctor.check_daemon(str(tmp_path))
    assert check.verdict == "warn"


def test_a_daemon_that_runs(daemon, runtime_dir):
    assert list(doctor.check_daemon(str(runtime_dir))) == [
        Check("daemon", "ok", "edged 0.1.0 runs, up 1 d 2 h"),
        Check("publish", "ok", "the broker accepted a result 4 s ago"),
    ]


@pytest.mark.parametrize(("state", "verdict"), [("starting", "warn"), ("degraded", "fail"), ("failed", "fail")])
def test_a_daemon_that_is_not_well(daemon, runtime_dir, state, verdict):
    daemon.status = daemon.status | {
        "state": state,
        "health": {**daemon.status["health"], "reason": "it has its reasons"},
    }
    check = next(doctor.check_daemon(str(runtime_dir)))
    assert check == Check("daemon", verdict, f"the daemon is {state}: it has its reasons", "see why: edgectl status")


def test_a_daemon_that_refused_its_configuration(daemon, runtime_dir):
    refused = {**daemon.status["config"], "error": {"message": "two problems:\n  a\n  b", "problems": ["a", "b"]}}
    daemon.status = daemon.status | {"config": refused}
    (check,) = [check for check in doctor.check_daemon(str(runtime_dir)) if check.name == "config"]
    assert (check.verdict, check.found) == ("fail", "the daemon refused the last configuration: a; b")
    assert "edgectl config check" in check.remedy


def test_no_daemon_is_a_warning(tmp_path):
    (check,) = doctor.check_daemon(str(tmp_path))
    assert check.verdict == "warn"
    assert "systemctl start edged" in check.remedy


@pytest.mark.parametrize(
    ("connected", "ago", "waiting", "expected"),
    [
        (True, 4.0, 0, ("ok", "the broker accepted a result 4 s ago", "")),
        (True, None, 0, ("ok", "the broker accepted no result yet", "")),
        (True, 3700.0, 0, ("ok", "the broker accepted a result 1 h 1 min ago", "")),
        (
            True,
            3700.0,
            7,
            ("warn", "the broker accepted a result 1 h 1 min ago, and 7 are waiting", "see why: edgectl spool"),
        ),
        (False, None, 7, ("fail", "the broker accepted no result yet; not connected: refused", "is it up?")),
    ],
)
def test_when_a_message_got_through_last(connected, ago, waiting, expected):
    mqtt = {"connected": connected, "last_sent_ago": ago, "health": {"reason": "refused", "hint": "is it up?"}}
    assert doctor.check_publishing(mqtt, waiting)[1:] == expected


def test_what_is_wrong_with_the_spool():
    assert list(doctor.check_spool(SPOOL)) == []
    ill = {"state": "degraded", "reason": "the disk is full", "hint": "free some space"}
    checks = doctor.check_spool({"depth": 9, "parked": 2, "dropped": 3, "health": ill})
    found = [(check.verdict, check.found) for check in checks]
    assert found == [
        ("fail", "the disk is full"),
        ("warn", "the broker refused 2 messages"),
        ("warn", "the spool was full and dropped 3 messages"),
    ]


# -- all checks ------------------------------------------------------------------------------------------------------


def examine(tmp_path, text, *args):
    (tmp_path / "edged.toml").write_text(text)
    folders = ["--state-dir", str(tmp_path), "--runtime-dir", str(tmp_path)]
    return main(["doctor", "--config", str(tmp_path / "edged.toml"), *folders, *args])


def test_a_device_with_nothing_wrong(tmp_path, capsys):
    assert examine(tmp_path, '[models.motion]\n[log]\nlevel = "info"') == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("● ok    model     motion 1.0.0") for line in lines)
    assert not any("fail" in line for line in lines)


def test_a_failed_check_shows_in_the_exit_code_and_in_json(tmp_path, capsys):
    assert examine(tmp_path, "[log]\nlevel = 3", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    failed = [check for check in answer["checks"] if check["verdict"] == "fail"]
    assert [check["found"] for check in failed] == [
        f'{tmp_path}/edged.toml: log.level: found 3; allowed: "debug" or "error" or "info" or "warning"'
    ]


# -- the board ------------------------------------------------------------------------------------------------------


def test_a_board_that_says_nothing_of_itself(tmp_path):
    assert list(doctor.check_hardware(tmp_path)) == []


@pytest.mark.parametrize(
    ("file", "text", "verdict", "found"),
    [
        ("devices/platform/soc/soc:firmware/get_throttled", "0", "ok", "neither undervoltage nor throttling"),
        ("devices/platform/soc/soc:firmware/get_throttled", "50000", "warn", "since it was switched on: the supply"),
        ("devices/platform/soc/soc:firmware/get_throttled", "1", "fail", "the supply voltage is too low"),
        ("class/thermal/thermal_zone0/temp", "50499", "ok", "50 °C"),
        ("class/thermal/thermal_zone0/temp", "80100", "warn", "80 °C"),
        ("block/mmcblk0/device/life_time", "0x02 0x01", "ok", "mmcblk0: about 20 % of the lifetime"),
        ("block/mmcblk0/device/life_time", "0x0b 0x01", "warn", "mmcblk0: about 110 % of the lifetime"),
    ],
)
def test_what_a_board_says_of_itself(tmp_path, file, text, verdict, found):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    (check,) = doctor.check_hardware(tmp_path)
    assert (check.verdict, check.found[: len(found)], bool(check.remedy)) == (verdict, found, verdict != "ok")
