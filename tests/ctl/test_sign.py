"""`edgectl sign` and `edgectl verify`, with real keys."""

import json
import stat
import subprocess

import pytest

from edged.core.signatures import parse
from edged.ctl.main import main
from edged.models.bundle import examine, open_folder
from tests.bundles import write_bundle
from tests.containers import container
from tests.signing import make_key, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("alice", "bob")}


@pytest.fixture
def allowed(tmp_path, keys):
    file = tmp_path / "allowed_signers"
    file.write_text("".join(f"{name}@example.com {public(key)}\n" for name, key in keys.items()))
    return str(file)


@pytest.fixture
def bundle(tmp_path):
    file = tmp_path / "colours.edgm"
    file.write_bytes(container())
    return file


def test_what_is_signed_can_be_verified(bundle, keys, allowed, capsys):
    before = examine(bundle)
    assert main(["sign", str(bundle), "--key", str(keys["alice"])]) == 0
    assert "is signed by SHA256:" in capsys.readouterr().out
    after = examine(bundle)
    assert (after.data, after.size) == (before.data, before.size + len(after.signatures))
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o644
    assert main(["verify", str(bundle), "--allowed-signers", allowed]) == 0
    assert capsys.readouterr().out == f"colours 1.0 ({after.digest[:12]}) is sound and signed by alice@example.com\n"


def test_signatures_add_up_and_each_key_has_one(bundle, keys, allowed, capsys):
    for name in ("alice", "bob", "alice"):
        assert main(["sign", str(bundle), "--key", str(keys[name])]) == 0
    assert len(parse(examine(bundle).signatures)) == 2
    capsys.readouterr()
    assert main(["verify", str(bundle), "--allowed-signers", allowed, "--threshold", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signers"] == ["bob@example.com", "alice@example.com"]


def test_whose_signatures_count_is_what_the_configuration_says(tmp_path, bundle, keys, allowed, capsys):
    assert main(["sign", str(bundle), "--key", str(keys["alice"])]) == 0
    config = tmp_path / "edged.toml"
    config.write_text('[updates]\nallowed_signers = "allowed_signers"\n')
    assert main(["--config", str(config), "verify", str(bundle)]) == 0
    config.write_text('[updates]\nallowed_signers = "allowed_signers"\nthreshold = 2\n')
    capsys.readouterr()
    assert main(["--config", str(config), "verify", str(bundle)]) == 1
    assert "1 of the 2 signatures needed" in capsys.readouterr().out
    assert main(["--config", str(config), "verify", str(bundle), "--threshold", "1"]) == 0
    assert main(["--config", str(tmp_path / "none.toml"), "verify", str(bundle)]) == 4
    complaint = capsys.readouterr().err
    assert "every digest is right, but whose signatures count is not known" in complaint
    assert "name them: --allowed-signers FILE" in complaint


def test_a_folder(tmp_path, keys, allowed):
    folder = write_bundle(tmp_path / "colours")
    assert main(["sign", str(folder), "--key", str(keys["alice"])]) == 0
    assert open_folder(folder).manifest.name == "colours"
    assert main(["verify", str(folder), "--allowed-signers", allowed]) == 0


def test_a_key_in_an_agent(bundle, keys, allowed, tmp_path, monkeypatch):
    """The public half names the key, as for keys on hardware tokens and forwarded keys."""
    socket = str(tmp_path / "agent")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE)
    try:
        agent.stdout.readline()  # the agent listens once it prints its socket
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        subprocess.run(["ssh-add", "-q", keys["alice"]], check=True, timeout=120)
        alone = tmp_path / "alice.pub"
        alone.write_bytes(keys["alice"].with_suffix(".pub").read_bytes())
        assert main(["sign", str(bundle), "--key", str(alone)]) == 0
        assert main(["verify", str(bundle), "--allowed-signers", allowed]) == 0
    finally:
        agent.terminate()
        agent.communicate(timeout=120)


def test_a_key_that_is_not_there_changes_nothing(bundle, tmp_path, capfd):
    before = bundle.read_bytes()
    assert main(["sign", str(bundle), "--key", str(tmp_path / "absent")]) == 4
    complaints = capfd.readouterr().err
    assert "No such file or directory" in complaints  # ssh-keygen's own words
    assert "edgectl: ssh-keygen did not sign with" in complaints
    assert bundle.read_bytes() == before
    assert list(tmp_path.iterdir()) == [bundle]


def test_what_is_not_sound_is_not_signed(tmp_path, keys, capsys):
    file = tmp_path / "bad.edgm"
    file.write_bytes(container()[:-1])
    assert main(["sign", str(file), "--key", str(keys["alice"])]) == 4
    assert "breaks off" in capsys.readouterr().err
    assert file.read_bytes() == container()[:-1]


def test_verify_tells_what_is_wrong_and_what_to_do(bundle, keys, allowed, capsys):
    assert main(["verify", str(bundle), "--allowed-signers", allowed]) == 1
    sound, *told = capsys.readouterr().out.splitlines()
    assert sound.endswith(": every digest is right")
    assert told == ["the bundle is not signed", "  -> sign the bundle: edgectl sign BUNDLE --key ~/.ssh/id_ed25519"]
    main(["sign", str(bundle), "--key", str(keys["alice"])])
    capsys.readouterr()
    revoked = ["--revoked", str(keys["alice"].with_suffix(".pub")), "--json"]
    assert main(["verify", str(bundle), "--allowed-signers", allowed, *revoked]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["valid"] is False
    assert "is revoked" in told["problem"]


def test_an_unsigned_bundle_is_reported_with_its_digest_also_without_a_configuration(bundle, tmp_path, capsys):
    nowhere = ["--config", str(tmp_path / "none.toml")]
    assert main([*nowhere, "verify", str(bundle)]) == 1
    assert "every digest is right\nthe bundle is not signed\n" in capsys.readouterr().out
    assert main([*nowhere, "verify", "--json", str(bundle)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["valid"], told["digest"]) == (False, examine(bundle).digest)


def test_verify_looks_at_every_byte(bundle, keys, allowed, capsys):
    main(["sign", str(bundle), "--key", str(keys["alice"])])
    data = bytearray(bundle.read_bytes())
    data[-1] ^= 1
    bundle.write_bytes(data)
    capsys.readouterr()
    assert main(["verify", str(bundle), "--allowed-signers", allowed]) == 1
    assert "notes.bin: the 100 bytes from 262144 on are damaged" in capsys.readouterr().out


def test_a_list_that_is_not_there_is_not_the_bundle_s_fault(bundle, keys, tmp_path, capsys):
    main(["sign", str(bundle), "--key", str(keys["alice"])])
    assert main(["verify", str(bundle), "--allowed-signers", str(tmp_path / "absent")]) == 4
    assert "the file of allowed signers cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["0", "17", "two"])
def test_a_threshold_that_makes_no_sense(bundle, allowed, threshold):
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(bundle), "--allowed-signers", allowed, "--threshold", threshold])
    assert stopped.value.code == 2
