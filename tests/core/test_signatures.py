import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import BundleError
from edged.core.signatures import merge, parse
from tests.signing import armor, signature, string


def test_no_signatures():
    assert parse(b"") == ()


def test_two_signatures():
    alice, bob = parse(signature(b"alice") + signature(b"bob", b"git"))
    assert alice == (signature(b"alice"), "edged-bundle", "SHA256:K9gGyX8OAK8aH8Myj6djqSaXI8jbj6xPk69x2xhtbpA")
    assert (bob.text, bob.namespace) == (signature(b"bob", b"git"), "git")


def test_a_signature_is_put_with_others():
    both = merge(signature(b"alice"), signature(b"bob"))
    assert both == signature(b"alice") + signature(b"bob")


def test_who_signs_again_signs_once():
    again = merge(signature(b"alice") + signature(b"bob"), signature(b"alice", proof=b"newer"))
    assert again == signature(b"bob") + signature(b"alice", proof=b"newer")


def test_there_is_no_signing_more_often_than_is_allowed():
    sixteen = b"".join(signature(b"key %d" % number) for number in range(16))
    assert merge(sixteen, signature(b"key 3")).count(b"BEGIN") == 16
    with pytest.raises(BundleError, match="there are 17 signatures"):
        merge(sixteen, signature(b"key 16"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"-----BEGIN PGP SIGNATURE-----\n", "not in the format of OpenSSH"),
        (b"\n" + signature(b"alice"), "not in the format of OpenSSH"),
        (signature(b"alice")[:-1], "not in the format of OpenSSH"),
        (signature(b"alice").replace(b"\n", b"\r\n"), "not in the format of OpenSSH"),
        (signature(b"alice") + b"PK\3\4", "not in the format of OpenSSH"),
        (signature(b"alice") * 17, "there are 17 signatures"),
        (armor(b"SSHSIG"), "a signature is damaged"),
        (armor(b"SSHSIG" + struct.pack(">II", 1, 1 << 31) + b"key"), "a signature is damaged"),
        (armor(b"SSHSIG" + struct.pack(">I", 2) + string(b"key") + string(b"edged-bundle")), "not in version 1"),
        (armor(b"SSHSOG" + struct.pack(">I", 1) + string(b"key") + string(b"edged-bundle")), "not in version 1"),
    ],
)
def test_what_is_no_signature_is_refused(data, reason):
    with pytest.raises(BundleError, match=reason):
        parse(data)


@given(st.binary(max_size=300))
def test_anything_between_the_marker_lines_is_parsed_or_refused(blob):
    try:
        (found,) = parse(armor(b"SSHSIG\0\0\0\1" + blob))
    except BundleError:
        return
    assert found.key.startswith("SHA256:")
