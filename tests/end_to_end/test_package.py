"""The real package on a board with a real systemd: installed, used, killed, hung, upgraded, removed, purged.

The first installation is from a signed apt repository, with the commands of docs/guide/install.md. All tests run on one
release of Debian, and those that depend most on the release on the other too. A board is a container in which the
package has just been installed. Tests without lasting effects share a container; the others boot their own. The only
network is the container's own, with a mosquitto inside. A recording played fast replaces the synthetic sensor, whose
windows would take too long.
"""

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import threading
import time
import tty
from pathlib import Path

import pytest

from tests.apt_repository import make_repository, throw_away_key
from tests.container import Container, root_of, why_not
from tests.debian_package import build, under_another_version
from tests.motion import RECORDING, ROOT, bundle, long_recording

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SUITES = ["trixie", "bookworm"]
BROKER = '[mqtt]\nhost = "127.0.0.1"\n'
QUICK = """
[sources.demo]
kind = "replay"
path = "/usr/local/share/recording.npy"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
pace = 100
chunk = 10
loop = true
"""
SERIAL = """
[sources.wrist]
kind = "serial"
port = "/dev/ttyUSB0"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
rate = 10
"""
IMU = """
from edged.api import DeviceRequirements
from edged.sources.serial import SerialSource

class Imu(SerialSource, frozen=True, kw_only=True):
    def devices(self):
        return DeviceRequirements(paths=(self.port,), groups=("dialout",))
"""
SETTLE_SECONDS = 60


def on_each_suite(test):
    """Mark a test to run on all of SUITES instead of the first alone."""
    test.on_each_suite = True
    return test


def pytest_generate_tests(metafunc):
    suites = SUITES if hasattr(metafunc.function, "on_each_suite") else SUITES[:1]
    metafunc.parametrize("suite", suites, indirect=True, scope="module")


@pytest.fixture(scope="module")
def suite(request):
    return request.param


@pytest.fixture(scope="module")
def package(suite):
    return build("amd64", suite)


@pytest.fixture(scope="module")
def repository(package, tmp_path_factory):
    """Return the package in an apt repository signed by a throw-away key."""
    folder = tmp_path_factory.mktemp("repository")
    with throw_away_key(folder / "gpg") as environment:
        done = make_repository(folder / "edged", environment, package)
    assert done.returncode == 0, done.stderr
    return folder / "edged"


@pytest.fixture(scope="module")
def installed(suite, repository, tmp_path_factory):
    """Return the files written by the installation as a layer above the root file system."""
    container = Container(tmp_path_factory.mktemp(suite), root_of(suite))
    shutil.copytree(repository, container.root / "srv/edged")
    try:
        container.boot()
        container.run("sh", "-euc", from_repository("file:/srv/edged", suite))
        container.run("systemctl", "is-active", "edged")
        container.power_off()
    finally:
        container.close()
    return container.layer, root_of(suite)


@contextlib.contextmanager
def booted(folder, layers, *options, files=()):
    """Boot a board with a broker, a recording, and further files written before the start."""
    container = Container(folder, *layers)
    write(container, "/etc/edged/conf.d/broker.toml", BROKER)
    write(container, "/etc/edged/conf.d/quick.toml", QUICK)
    for path, text in dict(files).items():
        write(container, path, text)
    shutil.copy(long_recording(folder), container.root / "usr/local/share/recording.npy")
    try:
        container.boot(*options)
        yield container
    finally:
        container.close()


@pytest.fixture(scope="module")
def shared(installed, tmp_path_factory):
    """Return a running board for tests without lasting effects."""
    with booted(tmp_path_factory.mktemp("shared"), installed) as board:
        board.run("useradd", "--groups=edged", "anna")
        board.run("useradd", "otto")
        yield board


@pytest.fixture
def board(installed, tmp_path):
    """Return a running board for this test alone."""
    with booted(tmp_path / "board", installed) as board:
        yield board


def from_repository(uri, suite):
    """Return the commands of docs/guide/install.md for an installation from a repository in a folder of the board."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "docs/guide/install.md").read_text(), re.M | re.S)
    (block,) = [block for block in blocks if "edged.sources" in block]
    for documented, here in {
        "https://packages.example.org/edged": uri,
        "curl -o": "cp /srv/edged/edged-archive-keyring.asc",  # the board has no network
        f" {uri}/edged-archive-keyring.asc": "",
        "Suites: bookworm": f"Suites: {suite}",
        "apt update": "apt-get -o Dir::Etc::sourcelist=/dev/null update",
        "apt install": "apt-get --yes --no-install-recommends install",
    }.items():
        assert documented in block
        block = block.replace(documented, here)
    return block


def install(container, package, *options):
    shutil.copy(package, container.root / "root" / package.name)
    command = ["apt-get", "--quiet", "--yes", "--no-install-recommends", *options, "install", f"/root/{package.name}"]
    return container.run(*command)


def write(container, path, text):
    file = container.root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def results(board, count):
    """The next results on MQTT."""
    command = ["mosquitto_sub", "-h", "127.0.0.1", "-t", "edged/+/pipelines/+/result", "-C", str(count), "-W", "60"]
    return [json.loads(line) for line in board.run(*command).stdout.splitlines()]


def status(board):
    answer = board.run("edgectl", "--json", "status", check=False)
    assert answer.stdout, answer.stderr
    return json.loads(answer.stdout)


def doctor(board, asker="root"):
    """Return the doctor's findings by subject."""
    command = ["su", asker, "-c", "edgectl --json doctor"]
    checks = {}
    for check in json.loads(board.run(*command, check=False).stdout)["checks"]:
        checks.setdefault(check["name"], []).append(check)
    return checks


def show(board, *properties):
    """Properties of the unit."""
    lines = board.run("systemctl", "show", "edged", f"--property={','.join(properties)}").stdout.splitlines()
    values = dict(line.split("=", 1) for line in lines)
    return values[properties[0]] if len(properties) == 1 else values


def journal(board, *matches):
    """Return the entries of the journal with these fields."""
    board.run("journalctl", "--sync")
    lines = board.run("journalctl", "--output=json", "--unit=edged", *matches).stdout.splitlines()
    return [json.loads(line) for line in lines]


def wait_for(board, condition):
    """Wait in the board until a shell's condition holds."""
    loop = f"until {condition}; do sleep 0.1; done"  # a shell can only poll
    board.run("timeout", str(SETTLE_SECONDS), "sh", "-c", loop)


def everything(board):
    """Return every path below the root, without those of a single boot or of other packages."""
    ignored = ("/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/log", "/var/cache", "/var/lib/apt", "/var/tmp",
               "/var/lib/dpkg", "/var/lib/systemd", "/var/lib/mosquitto")  # fmt: skip
    prune = [word for path in ignored for word in ("-path", path, "-prune", "-o")]
    return set(board.run("find", "/", "-xdev", *prune, "-print").stdout.splitlines())


# -- installation ----------------------------------------------------------------------------------------------------


@on_each_suite
def test_it_runs_and_publishes(shared):
    assert show(shared, "ActiveState", "SubState", "NotifyAccess") == {
        "ActiveState": "active",
        "SubState": "running",
        "NotifyAccess": "main",
    }
    first, second = results(shared, 2)
    assert (first["model"], first["pipeline"], second["seq"]) == ("motion", "demo", first["seq"] + 1)


@on_each_suite
def test_a_changed_repository_is_refused(shared):
    """By the verifier of the board's own apt: gpgv on Debian 12, sqv on 13."""
    changed = "cp -r /srv/edged /run/changed; sed -i 's/^Label: .*/Label: other/' /run/changed/dists/*/InRelease"
    listed = "sed 's,/srv/edged,/run/changed,' /etc/apt/sources.list.d/edged.sources > /run/changed.sources"
    shared.run("sh", "-euc", f"{changed}; {listed}; mkdir /run/lists")
    options = ["-o", "Dir::Etc::sourcelist=/run/changed.sources", "-o", "Dir::Etc::sourceparts=/dev/null"]
    refused = shared.run("apt-get", *options, "-o", "Dir::State::lists=/run/lists", "update", check=False)
    assert refused.returncode == 100
    assert "is not signed" in refused.stderr


@on_each_suite
def test_a_plug_in_beside_the_packages_of_debian_is_found(shared):
    """In the folder that pip installs to; there is neither pip nor a network here."""
    page = (ROOT / "docs/plug-ins.md").read_text()
    module = re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1]
    table = re.search(r"^```toml\n(\[sources.*?)^```$", page, re.M | re.S)[1]
    folder = put_plug_in(shared, "thermal-zone", module, "thermal_zone:ThermalZone")
    write(shared, "/root/plug-in.toml", table)
    try:
        assert "1 source" in shared.run("edgectl", "config", "check", "/root/plug-in.toml").stdout
    finally:
        shared.run("sh", "-c", f"rm -r {folder}/thermal_zone* /root/plug-in.toml")


@on_each_suite
def test_systemctl_status_says_what_is_served(shared):
    results(shared, 1)
    said = r"1 of 1 pipelines running: demo (motion 1.0.0, [1-9][0-9]* results, p50 .* ms, p99 .* ms); MQTT connected"
    wait_for(shared, f"systemctl show edged --property=StatusText | grep -q '{said}'")
    assert "credential" not in shared.run("systemctl", "status", "--full", "--lines=100", "edged").stdout


@on_each_suite
def test_it_is_not_root_and_may_little(shared):
    pid = show(shared, "MainPID")
    fields = dict(line.split(":\t", 1) for line in shared.run("cat", f"/proc/{pid}/status").stdout.splitlines())
    assert fields["Uid"].split()[0] != "0"
    assert (int(fields["CapEff"], 16), fields["NoNewPrivs"], fields["Seccomp"]) == (0, "1", "2")
    assert shared.run("stat", "--format=%U:%G %a", "/var/lib/edged").stdout.split() == ["edged:edged", "750"]


def test_the_journal_has_fields(shared):
    results(shared, 1)
    entries = journal(shared, "PIPELINE=demo")
    assert any("pipeline demo is running" in entry["MESSAGE"] for entry in entries)
    assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {"edged.service"}
    assert all("CODE_FILE" in entry for entry in entries)


@on_each_suite
def test_the_doctor_finds_nothing_worse_than_a_wrong_clock(shared):
    results(shared, 1)
    for asker in ("root", "anna"):
        checks = doctor(shared, asker)
        assert [check for each in checks.values() for check in each if check["verdict"] == "fail"] == []
        assert {check["verdict"] for each in checks.values() for check in each if each[0]["name"] != "clock"} == {"ok"}
        assert "the broker accepted a result" in checks["publish"][0]["found"]


def test_the_manual_pages_and_the_completion_are_there(shared):
    for path in ("/usr/share/man/man8/edged.8.gz", "/usr/share/man/man1/edgectl.1.gz"):
        assert (shared.root / path.lstrip("/")).stat().st_size > 500
    assert (shared.root / "usr/share/bash-completion/completions/edgectl").is_file()


def test_memory_that_runs_out_takes_a_child_first(shared):
    assert show(shared, "OOMPolicy", "OOMScoreAdjust", "TasksMax") == {
        "OOMPolicy": "continue",
        "OOMScoreAdjust": "-200",
        "TasksMax": "256",
    }
    assert show(shared, "MemoryMax") != "infinity"


@on_each_suite
def test_systemd_finds_nothing_wrong_with_the_unit(shared):
    verified = shared.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", "edged.service")
    assert "edged" not in verified.stderr
    exposure = shared.run("systemd-analyze", "security", "--no-pager", "edged.service").stdout.splitlines()[-1]
    assert float(exposure.split(":")[1].split()[0]) <= 1.5


@pytest.mark.parametrize("asker", ["root", "anna"])
def test_a_support_bundle(shared, asker):
    file = f"/tmp/{asker}.tar.gz"
    shared.run("su", asker, "-c", f"cd /tmp && edgectl support-bundle --output {file}")
    packed = shared.run("tar", "--list", "--file", file).stdout.splitlines()
    names = {name.removeprefix("edged-support/") for name in packed}
    assert {"status.json", "doctor.json", "configuration.toml", "unit.txt", "package.txt", "spool.json"} <= names


# -- permission ------------------------------------------------------------------------------------------------------


@on_each_suite
def test_a_member_of_the_group_needs_no_sudo(shared):
    assert "motion" in shared.run("su", "anna", "-c", "edgectl models").stdout


def test_everybody_else_is_told_which_group(shared):
    refused = shared.run("su", "otto", "-c", "edgectl models", check=False)
    assert refused.returncode == 5
    assert "usermod -aG edged" in refused.stderr
    examined = shared.run("su", "otto", "-c", "edgectl doctor", check=False)
    assert (examined.returncode, examined.stderr) == (1, "")
    assert "usermod -aG edged" in examined.stdout


def test_who_changes_something_is_no_wrong_number(shared):
    shared.run("su", "anna", "-c", "edgectl reload")
    (entry,) = [entry for entry in journal(shared) if "reload, asked for by" in entry["MESSAGE"]]
    assert "somebody" in entry["MESSAGE"]


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sensor():
    """Return a serial sensor, as the path of its port on this machine."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    port = os.ttyname(slave)
    os.chown(port, 0, 20)  # dialout, on every Debian
    Path(port).chmod(0o660)
    done = threading.Event()
    lines = [line.split(",", 1)[1].rpartition(",")[0] for line in RECORDING.read_text().splitlines()[1:]]

    def measure():
        for line in lines * 100:
            if done.wait(0.02):
                break
            os.write(master, line.encode() + b"\n")

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    yield port
    done.set()
    thread.join()
    os.close(master)
    os.close(slave)


def put_plug_in(board, name, module, target):
    """Put a source into the folder that pip installs to, and return the folder."""
    folder = board.run("python3", "-c", "import site; print(site.getsitepackages()[0])").stdout.strip()
    package = target.partition(":")[0]
    write(board, f"{folder}/{package}.py", module)
    write(board, f"{folder}/{package}-1.dist-info/METADATA", f"Name: {name}\nVersion: 1\n")
    write(board, f"{folder}/{package}-1.dist-info/entry_points.txt", f"[edged.sources]\n{name} = {target}\n")
    return folder


def wrist(board):
    (source,) = [source for source in status(board)["sources"] if source["name"] == "wrist"]
    return source["health"]


def test_the_service_is_let_at_what_its_configuration_names(installed, tmp_path, sensor):
    files = {"/etc/edged/conf.d/sensor.toml": SERIAL}
    binds = (f"--bind={sensor}:/dev/ttyUSB0", f"--bind={sensor}:/dev/imu0")
    with booted(tmp_path / "board", installed, *binds, files=files) as board:
        assert wrist(board)["state"] == "failed"
        assert "sudo edgectl devices allow" in wrist(board)["hint"]
        (access,) = doctor(board)["access"]
        assert (access["verdict"], access["remedy"]) == ("fail", "sudo edgectl devices allow --restart")
        board.run("useradd", "--groups=edged", "anna")
        refused = board.run("su", "anna", "-c", "edgectl devices allow", check=False)
        assert (refused.returncode, "sudo edgectl devices allow" in refused.stderr) == (4, True)

        told = board.run("edgectl", "devices", "allow").stdout
        assert "for source wrist" in told
        assert "daemon-reload" in told
        assert "nothing to change" in board.run("edgectl", "devices", "allow", "--restart").stdout
        wait_for(board, "edgectl sources | grep wrist | grep -q running")
        assert doctor(board)["access"][0]["verdict"] == "ok"
        assert board.run("systemd-analyze", "verify", "--man=no", "edged.service").stderr.count("edged") == 0

        board.run("rm", "/etc/edged/conf.d/sensor.toml")
        assert "removed" in board.run("edgectl", "devices", "allow", "--restart").stdout
        assert show(board, "PrivateDevices") == "yes"

        put_plug_in(board, "imu", IMU, "imu:Imu")
        plug_in = SERIAL.replace('"serial"', '"imu"').replace("/dev/ttyUSB0", "/dev/imu0")
        write(board, "/etc/edged/conf.d/sensor.toml", plug_in)
        assert "/dev/imu0 for source wrist" in board.run("edgectl", "devices", "allow", "--restart").stdout
        wait_for(board, "edgectl sources | grep wrist | grep -q running")
        found = doctor(board)
        assert (found["access"][0]["verdict"], found["device"][0]["found"]) == ("ok", "wrist: /dev/imu0")


# -- failures --------------------------------------------------------------------------------------------------------


def test_killed_it_is_back(board):
    (before,) = results(board, 1)
    board.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "edged")
    wait_for(board, "systemctl show edged --property=NRestarts | grep -qx NRestarts=1")
    wait_for(board, "systemctl is-active --quiet edged")
    (after,) = [result for result in results(board, 3) if result["boot"] != before["boot"]][:1]
    assert after["model"] == "motion"


@on_each_suite
def test_hung_it_is_killed_by_the_watchdog(board):
    write(board, "/etc/systemd/system/edged.service.d/soon.conf", "[Service]\nWatchdogSec=2\n")
    board.run("systemctl", "daemon-reload")
    board.run("systemctl", "restart", "edged")
    board.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "edged")
    wait_for(board, "systemctl show edged --property=NRestarts | grep -qx NRestarts=1")
    wait_for(board, "systemctl is-active --quiet edged")
    assert results(board, 1)[0]["model"] == "motion"
    assert "watchdog" in " ".join(entry["MESSAGE"].lower() for entry in journal(board, "_PID=1"))


def test_a_reload_takes_what_is_sound_and_refuses_what_is_not(board):
    write(board, "/etc/edged/conf.d/second.toml", '[pipelines.second]\nsource = "demo"\nmodel = "motion"\n')
    board.run("systemctl", "reload", "edged")
    assert {result["pipeline"] for result in results(board, 12)} == {"demo", "second"}  # a first window takes 4 s
    write(board, "/etc/edged/conf.d/second.toml", "[pipelines.second]\nsauce = 1\n")
    assert board.run("systemctl", "reload", "edged", check=False).returncode != 0
    assert {result["pipeline"] for result in results(board, 4)} == {"demo", "second"}
    assert "did you mean" in board.run("edgectl", "config", "check", check=False).stdout


def test_a_configuration_that_is_wrong_at_the_start_is_tried_again_until_it_is_repaired(board):
    timer = "[Timer]\nOnActiveSec=\nOnActiveSec=1s\nAccuracySec=100ms\n"
    write(board, "/etc/systemd/system/edged-retry.timer.d/soon.conf", timer)
    write(board, "/etc/edged/conf.d/wrong.toml", "[pipelines.demo]\nsauce = 1\n")
    board.run("systemctl", "daemon-reload")
    assert board.run("systemctl", "restart", "edged", check=False).returncode != 0
    assert any("did you mean" in entry["MESSAGE"] for entry in journal(board))
    board.run("rm", "/etc/edged/conf.d/wrong.toml")
    wait_for(board, "systemctl is-active --quiet edged")
    assert results(board, 1)[0]["pipeline"] == "demo"


def test_a_sensor_that_is_not_there_is_a_state_with_a_remedy(board):
    sensor = '[sources.wrist]\nkind = "serial"\nport = "/dev/ttyUSB7"\nchannels = ["a"]\n'
    write(board, "/etc/edged/conf.d/sensor.toml", sensor)
    board.run("systemctl", "restart", "edged")
    assert results(board, 1)[0]["pipeline"] == "demo"
    (wrist,) = [source for source in status(board)["sources"] if source["name"] == "wrist"]
    assert wrist["health"]["state"] in ("failed", "degraded")
    assert "plug the device in" in wrist["health"]["hint"]
    assert "/dev/ttyUSB7" in board.run("edgectl", "doctor", check=False).stdout


def test_a_secret_comes_as_a_credential(board):
    write(board, "/etc/mosquitto/conf.d/auth.conf", "listener 1883 127.0.0.1\npassword_file /etc/mosquitto/passwd\n")
    board.run("mosquitto_passwd", "-b", "-c", "/etc/mosquitto/passwd", "board", "correct horse")
    board.run("chown", "mosquitto", "/etc/mosquitto/passwd")
    board.run("systemctl", "restart", "mosquitto")
    write(board, "/etc/edged/conf.d/broker.toml", BROKER + 'username = "board"\npassword_file = "mqtt-password"\n')
    write(board, "/etc/credstore/edged.mqtt-password", "correct horse\n")
    board.run("systemctl", "restart", "edged")
    wait_for(board, "edgectl --json status | grep -q '\"connected\": true'")
    assert "correct horse" not in board.run("journalctl").stdout


@on_each_suite
def test_new_models_come_signed_and_prove_themselves_within_the_sandbox(board, tmp_path):
    new = bundle(tmp_path, "1.1.0")
    shutil.copy(new, board.root / "root" / new.name)
    refused = board.run("edgectl", "update-model", f"/root/{new.name}", check=False)
    assert (refused.returncode, "signed" in refused.stdout + refused.stderr) == (6, True)
    board.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/key")
    public = (board.root / "root" / "key.pub").read_text()
    write(board, "/etc/edged/allowed_signers", f'maker@example.org namespaces="edged-bundle" {public}')
    board.run("edgectl", "sign", f"/root/{new.name}", "--key", "/root/key")
    told = board.run("edgectl", "update-model", f"/root/{new.name}").stdout
    assert "version 1.1.0 is signed by maker@example.org" in told
    assert results(board, 1)[0]["version"] == "1.1.0"
    board.run("systemctl", "restart", "edged")
    assert results(board, 1)[0]["version"] == "1.1.0"


def test_a_first_boot_with_no_network_no_clock_and_no_sensor(installed, tmp_path):
    clock = tmp_path / "clock.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", clock, ROOT / "tests/data/clock.c"], check=True)
    files = {
        "/etc/edged/conf.d/broker.toml": '[mqtt]\nhost = "broker.invalid"\n',
        "/etc/edged/conf.d/sensor.toml": SERIAL,
        "/etc/systemd/system/edged.service.d/1970.conf": (
            f"[Service]\nEnvironment=LD_PRELOAD=/usr/local/lib/clock.so CLOCK_SHIFT={-int(time.time())}\n"
        ),
    }
    bind = f"--bind-ro={clock}:/usr/local/lib/clock.so"
    with booted(tmp_path / "board", installed, bind, files=files) as board:
        wait_for(board, "edgectl --json pipelines | grep -q '\"label\"'")
        (demo,) = [each for each in status(board)["pipelines"] if each["name"] == "demo"]
        assert demo["last"]["time"] < 86_400
        assert wrist(board)["state"] == "failed"
        failed = {name for name, checks in doctor(board).items() for each in checks if each["verdict"] == "fail"}
        assert {"device", "access", "broker", "publish"} <= failed


# -- dpkg ------------------------------------------------------------------------------------------------------------


@on_each_suite
def test_an_upgrade_keeps_what_there_is_and_loses_no_message(board, package, tmp_path):
    (before,) = results(board, 1)
    write(board, "/etc/edged/conf.d/mine.toml", "[pipelines.demo.decision]\nthreshold = 0.6\n")
    board.run("sh", "-c", "echo '# mine' >>/etc/edged/edged.toml")
    board.run("systemctl", "stop", "mosquitto")
    wait_for(board, "edgectl --json spool | grep -Eq '\"depth\": ([5-9]|[1-9][0-9])'")
    install(board, under_another_version(package, tmp_path, "99.0"))
    assert show(board, "ActiveState") == "active"
    assert board.run("dpkg-query", "--show", "--showformat=${Version}", "edged").stdout == "99.0"
    assert (board.root / "etc/edged/conf.d/mine.toml").exists()
    assert (board.root / "etc/edged/edged.toml").read_text().endswith("# mine\n")
    waiting = json.loads(board.run("edgectl", "--json", "spool").stdout)["depth"]
    board.run("systemctl", "start", "mosquitto")
    seen = results(board, waiting + 20)
    of_before = [result["seq"] for result in seen if result["boot"] == before["boot"]]
    assert of_before == list(range(of_before[0], of_before[0] + len(of_before)))
    assert len(of_before) >= 5
    assert any(result["boot"] != before["boot"] for result in seen)


def test_a_downgrade(board, package, tmp_path):
    install(board, under_another_version(package, tmp_path, "0.0.1"), "--allow-downgrades")
    assert show(board, "ActiveState") == "active"
    assert results(board, 1)[0]["model"] == "motion"


@on_each_suite
def test_removed_it_leaves_its_state_and_purged_nothing(suite, package, tmp_path):
    board = Container(tmp_path / "bare", root_of(suite))
    try:
        board.boot()
        board.run("groupdel", "render")  # as on a board without udev: the package makes the group
        before = everything(board)
        users = (board.root / "etc/passwd").read_text(), (board.root / "etc/group").read_text()
        install(board, package)
        wait_for(board, "systemctl is-active --quiet edged")
        write(board, "/etc/edged/conf.d/mine.toml", "")
        board.run("apt-get", "--quiet", "--yes", "remove", "edged")
        left = everything(board) - before
        assert {"/etc/edged/edged.toml", "/etc/edged/conf.d/mine.toml", "/var/lib/edged"} <= left
        assert not {path for path in left if path.startswith(("/usr/lib/edged", "/usr/bin/edge"))}
        board.run("apt-get", "--quiet", "--yes", "purge", "edged")
        assert everything(board) - before <= {"/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-"}
        assert ((board.root / "etc/passwd").read_text(), (board.root / "etc/group").read_text()) == users
    finally:
        board.close()


# -- disks ----------------------------------------------------------------------------------------------------------


def test_a_read_only_root_with_the_state_elsewhere(installed, tmp_path):
    state = tmp_path / "state"
    state.mkdir()
    options = ("--read-only", f"--bind={state}:/var/lib/edged", "--tmpfs=/var/log", "--tmpfs=/var/tmp")
    with booted(tmp_path / "board", installed, *options) as board:
        assert results(board, 1)[0]["model"] == "motion"
        assert board.run("touch", "/etc/x", check=False).returncode != 0
        assert doctor(board)["root"][0]["verdict"] == "warn"
        assert doctor(board)["state"][0]["verdict"] == "ok"
        board.run("systemctl", "stop", "mosquitto")
        wait_for(board, "test -e /var/lib/edged/spool/spool.db")
        assert (state / "spool" / "spool.db").is_file()


FSTAB = "tmpfs /var/lib/edged tmpfs size=64k,mode=0755 0 0\n"


@pytest.mark.parametrize("filled", [True, False], ids=["full", "as good as none"])
def test_a_state_partition_that_is_full(installed, tmp_path, filled):
    filler = "[Service]\nExecStartPre=+/bin/sh -c 'head -c 64k /dev/zero >/var/lib/edged/filler || true'\n"
    files = {"/etc/fstab": FSTAB, **({"/etc/systemd/system/edged.service.d/fill.conf": filler} if filled else {})}
    with booted(tmp_path / "board", installed, files=files) as board:
        assert results(board, 1)[0]["model"] == "motion"
        (state,) = doctor(board)["state"]
        assert (state["verdict"], state["remedy"]) == ("fail", "free some space")


def test_a_state_partition_that_is_missing_is_waited_for(installed, tmp_path):
    files = {
        "/etc/fstab": FSTAB.replace("tmpfs", "nosuchfs").replace("size=64k,mode=0755", "nofail"),
        "/etc/systemd/system/edged-retry.timer.d/soon.conf": (
            "[Timer]\nOnActiveSec=\nOnActiveSec=1s\nAccuracySec=100ms\n"
        ),
    }
    with booted(tmp_path / "board", installed, files=files) as board:
        checks = doctor(board)
        assert checks["state"][0]["found"] == "/var/lib/edged is in /etc/fstab, and is not mounted"
        assert checks["unit"][0]["verdict"] == "fail"
        write(board, "/etc/fstab", FSTAB.replace("64k", "64m"))
        board.run("systemctl", "daemon-reload")
        wait_for(board, "systemctl is-active --quiet edged")
        assert results(board, 1)[0]["model"] == "motion"
