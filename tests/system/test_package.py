"""The real package on a board with a real systemd: installed, used, killed, hung, upgraded, removed, purged.

Each test boots a container of its own in which the package has just been installed. There is no network but the
container's own, with a mosquitto in it.
"""

import json
import shutil
import subprocess

import pytest

from tests.container import Container, root_of, why_not
from tests.debian_package import build, under_another_version
from tests.motion import bundle

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

BROKER = '[mqtt]\nhost = "127.0.0.1"\n'
SETTLE_SECONDS = 60


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def suite(request):
    return request.param


@pytest.fixture(scope="module")
def package(suite):
    return build("amd64", suite)


@pytest.fixture(scope="module")
def installed(suite, package, tmp_path_factory):
    """What the installation wrote, as a layer, above the root file system it wrote it to."""
    container = Container(tmp_path_factory.mktemp(suite), root_of(suite))
    try:
        container.boot()
        install(container, package)
        container.run("systemctl", "is-active", "edged")
        container.power_off()
    finally:
        container.close()
    return container.layer, root_of(suite)


@pytest.fixture
def board(installed, tmp_path):
    """A running board with the package installed and a broker configured."""
    container = Container(tmp_path / "board", *installed)
    write(container, "/etc/edged/conf.d/broker.toml", BROKER)
    try:
        container.boot()
        yield container
    finally:
        container.close()


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


def status(board, check=True):
    answer = board.run("edgectl", "--json", "status", check=False)
    return json.loads(answer.stdout)


def show(board, *properties):
    """Properties of the unit."""
    lines = board.run("systemctl", "show", "edged", f"--property={','.join(properties)}").stdout.splitlines()
    values = dict(line.split("=", 1) for line in lines)
    return values[properties[0]] if len(properties) == 1 else values


def journal(board, *matches):
    """Entries of the journal with the fields that are asked for."""
    board.run("journalctl", "--sync")
    lines = board.run("journalctl", "--output=json", "--unit=edged", *matches).stdout.splitlines()
    return [json.loads(line) for line in lines]


def wait_for(board, condition):
    """Wait in the board until a shell's condition holds."""
    loop = f"until {condition}; do sleep 0.1; done"  # a shell can await nothing better
    board.run("timeout", str(SETTLE_SECONDS), "sh", "-c", loop)


def everything(board):
    """Every path below the root, but for those that live and die with a boot or belong to others."""
    ignored = ("/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/log", "/var/cache", "/var/lib/apt", "/var/tmp",
               "/var/lib/dpkg", "/var/lib/systemd", "/var/lib/mosquitto")  # fmt: skip
    prune = [word for path in ignored for word in ("-path", path, "-prune", "-o")]
    return set(board.run("find", "/", "-xdev", *prune, "-print").stdout.splitlines())


# -- as it is installed ---------------------------------------------------------------------------------------------


def test_it_runs_and_publishes(board):
    assert show(board, "ActiveState", "SubState", "NotifyAccess") == {
        "ActiveState": "active",
        "SubState": "running",
        "NotifyAccess": "main",
    }
    first, second = results(board, 2)
    assert (first["model"], first["pipeline"], second["seq"]) == ("motion", "demo", first["seq"] + 1)


def test_systemctl_status_says_what_is_served(board):
    results(board, 1)
    wait_for(board, "systemctl show edged --property=StatusText | grep -q '1 of 1 pipelines running'")
    assert "MQTT connected" in show(board, "StatusText")


def test_it_is_not_root_and_may_little(board):
    pid = show(board, "MainPID")
    fields = dict(line.split(":\t", 1) for line in board.run("cat", f"/proc/{pid}/status").stdout.splitlines())
    assert fields["Uid"].split()[0] != "0"
    assert (int(fields["CapEff"], 16), fields["NoNewPrivs"], fields["Seccomp"]) == (0, "1", "2")
    assert board.run("stat", "--format=%U:%G %a", "/var/lib/edged").stdout.split() == ["edged:edged", "750"]


def test_the_journal_has_fields(board):
    results(board, 1)
    entries = journal(board, "PIPELINE=demo")
    assert any("pipeline demo is running" in entry["MESSAGE"] for entry in entries)
    assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {"edged.service"}
    assert all("CODE_FILE" in entry for entry in entries)


def test_the_doctor_finds_nothing_worse_than_a_wrong_clock(board):
    answer = json.loads(board.run("edgectl", "--json", "doctor", check=False).stdout)
    assert [check for check in answer["checks"] if check["verdict"] == "fail"] == []


def test_the_manual_pages_and_the_completion_are_there(board):
    for path in ("/usr/share/man/man8/edged.8.gz", "/usr/share/man/man1/edgectl.1.gz"):
        assert (board.root / path.lstrip("/")).stat().st_size > 500
    assert (board.root / "usr/share/bash-completion/completions/edgectl").is_file()


# -- who may use it -------------------------------------------------------------------------------------------------


def test_a_member_of_the_group_needs_no_sudo(board):
    board.run("useradd", "--groups=edged", "anna")
    assert "motion" in board.run("su", "anna", "-c", "edgectl models").stdout


def test_everybody_else_is_told_which_group(board):
    board.run("useradd", "otto")
    refused = board.run("su", "otto", "-c", "edgectl models", check=False)
    assert refused.returncode == 5
    assert "usermod -aG edged" in refused.stderr


# -- what befalls it ------------------------------------------------------------------------------------------------


def test_killed_it_is_back(board):
    (before,) = results(board, 1)
    board.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "edged")
    wait_for(board, "systemctl show edged --property=NRestarts | grep -qx NRestarts=1")
    wait_for(board, "systemctl is-active --quiet edged")
    (after,) = [result for result in results(board, 3) if result["boot"] != before["boot"]][:1]
    assert after["model"] == "motion"


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
    assert {result["pipeline"] for result in results(board, 4)} == {"demo", "second"}
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
    assert "plug it in" in wrist["health"]["hint"]
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


# -- its life with dpkg ---------------------------------------------------------------------------------------------


def test_an_upgrade_keeps_what_there_is_and_loses_no_message(board, package, tmp_path):
    (before,) = results(board, 1)
    write(board, "/etc/edged/conf.d/mine.toml", "[pipelines.demo.decision]\nthreshold = 0.6\n")
    board.run("systemctl", "stop", "mosquitto")
    wait_for(board, "edgectl --json spool | grep -Eq '\"depth\": ([5-9]|[1-9][0-9])'")
    install(board, under_another_version(package, tmp_path, "99.0"))
    assert show(board, "ActiveState") == "active"
    assert board.run("dpkg-query", "--show", "--showformat=${Version}", "edged").stdout == "99.0"
    assert (board.root / "etc/edged/conf.d/mine.toml").exists()
    board.run("systemctl", "start", "mosquitto")
    seen = results(board, 20)
    of_before = [result["seq"] for result in seen if result["boot"] == before["boot"]]
    assert of_before == list(range(of_before[0], of_before[0] + len(of_before)))
    assert len(of_before) >= 5
    assert any(result["boot"] != before["boot"] for result in seen)


def test_a_downgrade(board, package, tmp_path):
    install(board, under_another_version(package, tmp_path, "0.0.1"), "--allow-downgrades")
    assert show(board, "ActiveState") == "active"
    assert results(board, 1)[0]["model"] == "motion"


def test_removed_it_leaves_its_state_and_purged_nothing(suite, package, tmp_path):
    board = Container(tmp_path / "bare", root_of(suite))
    try:
        board.boot()
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
    board = Container(tmp_path / "board", *installed)
    write(board, "/etc/edged/conf.d/broker.toml", BROKER)
    try:
        board.boot("--read-only", f"--bind={state}:/var/lib/edged", "--tmpfs=/var/log", "--tmpfs=/var/tmp")
        assert results(board, 1)[0]["model"] == "motion"
        assert board.run("touch", "/etc/x", check=False).returncode != 0
        board.run("systemctl", "stop", "mosquitto")
        wait_for(board, "test -e /var/lib/edged/spool/spool.db")
        assert (state / "spool" / "spool.db").is_file()
    finally:
        board.close()


@pytest.mark.parametrize("filled", [True, False], ids=["full", "as good as none"])
def test_a_state_partition_that_is_full(installed, tmp_path, filled):
    board = Container(tmp_path / "board", *installed)
    write(board, "/etc/edged/conf.d/broker.toml", BROKER)
    unit = "[Mount]\nWhat=tmpfs\nWhere=/var/lib/edged\nType=tmpfs\nOptions=size=64k,mode=0755\n"
    write(board, "/etc/systemd/system/var-lib-edged.mount", unit + "[Install]\nWantedBy=local-fs.target\n")
    if filled:
        text = "[Service]\nExecStartPre=+/bin/sh -c 'head -c 64k /dev/zero >/var/lib/edged/filler || true'\n"
        write(board, "/etc/systemd/system/edged.service.d/fill.conf", text)
    subprocess.run(
        ["systemctl", f"--root={board.root}", "enable", "var-lib-edged.mount"], check=True, capture_output=True
    )
    try:
        board.boot()
        assert results(board, 1)[0]["model"] == "motion"
        (state,) = [each for each in json.loads(board.run("edgectl", "--json", "doctor", check=False).stdout)["checks"]
                    if each["name"] == "state"]  # fmt: skip
        assert (state["verdict"], state["remedy"]) == ("fail", "free some space")
    finally:
        board.close()
