"""Real keys, signatures and revocation lists: the answers of ssh-keygen and the resulting messages."""

import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edged.core.errors import BundleError, ConfigError
from edged.models.signatures import Trust
from tests.bundles import write_bundle
from tests.signing import make_key, public, sign, signature


def unix(year: int, month: int = 1, day: int = 1) -> float:
    return datetime(year, month, day, tzinfo=UTC).timestamp()


NOW = unix(2026)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Keys of Alice (with two), Bob, and Mallory, who is not trusted."""
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("alice", "alice-token", "bob", "mallory")}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_bundle(tmp_path_factory.mktemp("bundle")) / "manifest.json").read_bytes()


@pytest.fixture(scope="module")
def signed(keys: dict[str, Path], manifest: bytes) -> Callable[..., bytes]:
    """Signatures over the manifest, each made once."""
    made: dict[tuple[str, str], bytes] = {}

    def by(*names: str, namespace: str = "edged-bundle") -> bytes:
        for name in names:
            if (name, namespace) not in made:
                made[name, namespace] = sign(manifest, keys[name], namespace)
        return b"".join(made[name, namespace] for name in names)

    return by


@pytest.fixture
def trust(tmp_path: Path, keys: dict[str, Path]) -> Callable[..., Trust]:
    """Return a function that trusts Alice and Bob for bundles; `alice` and `bob` are options such as validity dates."""

    def make(alice: str = 'namespaces="edged-bundle"', bob: str = 'namespaces="edged-bundle"', **options) -> Trust:
        allowed = tmp_path / "allowed_signers"
        allowed.write_text(
            f"alice@example.com,alice@laptop {alice} {public(keys['alice'])}\n"
            f"alice@example.com {alice} {public(keys['alice-token'])}\n"
            f"bob@example.com {bob} {public(keys['bob'])}\n"
            f"bobs-other-name {bob} {public(keys['bob'])}\n"
        )
        return Trust(allowed, **options)

    return make


def test_who_signed(trust, signed, manifest):
    assert trust().verify(manifest, signed("alice"), NOW) == ("alice@example.com",)


def test_of_two_signatures_one_is_enough(trust, signed, manifest):
    assert trust().verify(manifest, signed("mallory", "bob"), NOW) == ("bob@example.com",)


def test_two_of_two(trust, signed, manifest):
    signers = trust(threshold=2).verify(manifest, signed("alice", "bob"), NOW)
    assert signers == ("alice@example.com", "bob@example.com")


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["alice", "alice"], id="the same signature twice"),
        pytest.param(["alice", "alice-token"], id="two keys of one person"),
        pytest.param(["bob", "bob"], id="one key of two names"),
        pytest.param(["alice", "mallory"], id="a stranger"),
    ],
)
def test_one_person_counts_once(trust, signed, manifest, names):
    with pytest.raises(BundleError, match="1 of the 2 signatures needed"):
        trust(threshold=2).verify(manifest, signed(*names), NOW)


def test_an_unsigned_bundle(trust, manifest):
    with pytest.raises(BundleError, match="the bundle is not signed") as refused:
        trust().verify(manifest, b"", NOW)
    assert "edgectl sign" in refused.value.hint


def test_a_stranger(trust, signed, manifest):
    with pytest.raises(
        BundleError, match=r"no signature counts: SHA256:\S+ is not among the allowed signers"
    ) as refused:
        trust().verify(manifest, signed("mallory"), NOW)
    assert "allowed_signers" in refused.value.hint


def test_a_line_that_is_wrong_is_told_of_where_nobody_is_found(trust, signed, manifest):
    misspelt = trust(alice='namespace="edged-bundle"')
    with pytest.raises(BundleError, match=r"is not among the allowed signers \(.*allowed_signers:1: "):
        misspelt.verify(manifest, signed("alice"), NOW)


def test_another_manifest(trust, signed, manifest):
    with pytest.raises(BundleError, match=r"the signature of SHA256:\S+ \(alice@example.com\) is not one of this"):
        trust().verify(manifest + b" ", signed("alice"), NOW)


def test_a_signature_made_for_something_else(trust, signed, manifest):
    with pytest.raises(BundleError, match="for the namespace 'git', not 'edged-bundle'"):
        trust().verify(manifest, signed("alice", namespace="git"), NOW)


def test_a_namespace_is_not_quoted_for_pages(trust, manifest):
    with pytest.raises(BundleError, match=r"for the namespace 'x{100}', not 'edged-bundle'"):
        trust().verify(manifest, signature(b"alice", b"x" * 10_000), NOW)


def test_a_key_that_is_allowed_for_something_else(trust, signed, manifest):
    with pytest.raises(BundleError, match=r"\(bob@example.com\) may not sign for 'edged-bundle'"):
        trust(bob='namespaces="git"').verify(manifest, signed("bob"), NOW)


def test_what_is_no_signature(trust, manifest):
    with pytest.raises(BundleError, match="not in the format of OpenSSH"):
        trust().verify(manifest, b"alice was here", NOW)


# Time

SINCE_2025 = 'valid-after="20250101Z"'
UNTIL_2030 = 'valid-before="20300101Z"'


@pytest.mark.parametrize("moment", [unix(1970), -1.0, unix(1970, 2), NOW, unix(2100), 1e18])
def test_a_key_without_dates_is_good_at_any_time(trust, signed, manifest, moment):
    assert trust().verify(manifest, signed("alice"), moment) == ("alice@example.com",)


def test_a_key_that_has_expired_by_2100(trust, signed, manifest):
    assert trust(UNTIL_2030).verify(manifest, signed("alice"), NOW)
    with pytest.raises(BundleError, match=r"SHA256:\S+ is no longer valid on 2100-01-01") as refused:
        trust(UNTIL_2030).verify(manifest, signed("alice"), unix(2100))
    assert not refused.value.retryable


def test_a_key_that_is_not_yet_valid_in_1970(trust, signed, manifest):
    """The clock may be set later, so this refusal is not the last word."""
    with pytest.raises(BundleError, match=r"SHA256:\S+ is not yet valid on 1970-01-01") as refused:
        trust(SINCE_2025).verify(manifest, signed("alice"), 0.0)
    assert refused.value.retryable
    assert "correct the clock" in refused.value.hint


def test_a_manifest_s_own_date_helps_a_board_without_a_clock(trust, keys, tmp_path):
    manifest = (write_bundle(tmp_path / "dated", created=int(NOW)) / "manifest.json").read_bytes()
    signature = sign(manifest, keys["alice"])
    assert trust(SINCE_2025).verify(manifest, signature, 0.0) == ("alice@example.com",)


def test_a_manifest_s_own_date_does_not_help_an_expired_key(trust, keys, tmp_path):
    manifest = (write_bundle(tmp_path / "dated", created=int(NOW)) / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="no longer valid on 2100"):
        trust(UNTIL_2030).verify(manifest, sign(manifest, keys["alice"]), unix(2100))


def test_a_manifest_of_a_day_that_is_yet_to_come_is_refused_where_the_clock_is_right(trust, keys, tmp_path):
    """Such a date would make every key that expires earlier useless."""
    manifest = (write_bundle(tmp_path / "dated", created=int(unix(2034))) / "manifest.json").read_bytes()
    signature = sign(manifest, keys["alice"])
    with pytest.raises(BundleError, match="made on 2034-01-01, and today is 2026-01-01") as refused:
        trust().verify(manifest, signature, NOW, today=NOW)
    assert "correct the clock" in refused.value.hint
    assert trust().verify(manifest, signature, NOW) == ("alice@example.com",)
    assert trust().verify(manifest, signature, NOW, today=unix(2033, 12, 31)) == ("alice@example.com",)
    with pytest.raises(BundleError, match="made on 2034-01-01"):
        trust(required=False).verify(manifest, b"", NOW, today=NOW)


# Certificates


@pytest.fixture
def certified(tmp_path: Path, manifest: bytes) -> tuple[Trust, bytes]:
    """Return trust in an authority's principal Carol, and Carol's signature with a certificate for 2025."""
    authority, carol = make_key(tmp_path, "authority"), make_key(tmp_path, "carol")
    command = ["ssh-keygen", "-q", "-s", authority, "-I", "carol", "-n", "carol", "-V", "20250101:20260101"]
    subprocess.run([*command, carol.with_suffix(".pub")], check=True, timeout=120)
    allowed = tmp_path / "allowed_signers"
    allowed.write_text(f'carol cert-authority,namespaces="edged-bundle" {public(authority)}\n')
    return Trust(allowed), sign(manifest, tmp_path / "carol-cert.pub")


def test_a_certificate(certified, manifest):
    trust, signature = certified
    assert trust.verify(manifest, signature, unix(2025, 6)) == ("carol",)


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_certificate_at_another_time_is_told_from_a_stranger_s_key(certified, manifest, year):
    trust, signature = certified
    with pytest.raises(BundleError, match=f"is a certificate that is not valid on {year}-01-01, or") as refused:
        trust.verify(manifest, signature, unix(year))
    assert "correct the clock" in refused.value.hint


# Revocation


@pytest.fixture
def revocation_list(tmp_path: Path, keys: dict[str, Path]) -> Path:
    """Return Alice's key in a KRL, made by ssh-keygen -k."""
    path = tmp_path / "revoked.krl"
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", path, keys["alice"].with_suffix(".pub")], check=True, timeout=120)
    return path


def test_a_revoked_key(trust, signed, manifest, revocation_list):
    with pytest.raises(BundleError, match=r"\(alice@example.com\) is revoked"):
        trust(revoked=revocation_list).verify(manifest, signed("alice"), NOW)
    assert trust(revoked=revocation_list).verify(manifest, signed("bob"), NOW) == ("bob@example.com",)


def test_a_key_in_a_plain_list_of_revoked_keys(trust, signed, manifest, keys):
    revoked = trust(revoked=keys["alice"].with_suffix(".pub"))
    with pytest.raises(BundleError, match="is revoked"):
        revoked.verify(manifest, signed("alice"), NOW)
    assert revoked.verify(manifest, signed("bob"), NOW) == ("bob@example.com",)


def test_a_damaged_revocation_list_lets_nobody_pass(trust, signed, manifest, tmp_path):
    (tmp_path / "revoked").write_text("garbage\n")
    with pytest.raises(BundleError, match=r"is revoked, or .*revoked is no revocation list"):
        trust(revoked=tmp_path / "revoked").verify(manifest, signed("alice"), NOW)


@pytest.mark.parametrize("option", ["revoked", "allowed_signers"])
def test_a_missing_file_is_this_device_s_fault_and_not_the_bundle_s(trust, signed, manifest, tmp_path, option):
    options = {"allowed_signers": trust().allowed_signers, option: tmp_path / "absent"}
    with pytest.raises(ConfigError, match=r"cannot be read: .*absent"):
        Trust(**options).verify(manifest, signed("alice"), NOW)


def test_no_ssh_keygen_is_this_device_s_fault(trust, signed, manifest, monkeypatch, tmp_path):
    signatures = signed("alice")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="ssh-keygen cannot be run") as refused:
        trust().verify(manifest, signatures, NOW)
    assert "apt install openssh-client" in refused.value.hint


def test_an_ssh_keygen_that_was_killed_has_said_nothing_of_the_bundle(trust, signed, manifest, monkeypatch, tmp_path):
    """Such a kill may come from a lack of memory."""
    signatures = signed("alice")
    (tmp_path / "ssh-keygen").write_text("#!/bin/sh\nkill -KILL $$\n")
    (tmp_path / "ssh-keygen").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ConfigError, match=r"ssh-keygen gave no answer: .*SIGKILL") as refused:
        trust().verify(manifest, signatures, NOW)
    assert refused.value.retryable


# Without required signatures


def test_who_signed_is_told_all_the_same(trust, signed, manifest):
    lenient = trust(required=False, threshold=2)
    assert lenient.verify(manifest, signed("alice", "mallory"), NOW) == ("alice@example.com",)
    assert lenient.verify(manifest, b"", NOW) == ()


def test_nobody_is_known_where_there_is_no_list(tmp_path, signed, manifest):
    assert Trust(tmp_path / "absent", required=False).verify(manifest, signed("alice"), NOW) == ()


def test_what_this_device_cannot_verify_it_need_not(trust, signed, manifest, tmp_path, monkeypatch):
    signatures = signed("alice")
    assert trust(required=False, revoked=tmp_path / "absent").verify(manifest, signatures, NOW) == ()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert trust(required=False).verify(manifest, signatures, NOW) == ()
