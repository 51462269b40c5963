"""Public addresses, origins, and fetches permitted by a policy, by literal examples."""

from urllib.parse import SplitResult, urlsplit

import pytest

from edged.transfer.origins import OriginPolicy, PolicyError, is_public


@pytest.mark.parametrize(
    "address", ["1.2.3.4", "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2001:4860::1"]
)
def test_addresses_of_the_internet(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "172.31.9.9"),
        *(
            "192.0.2.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.2.3",
            "240.0.0.1",
        ),
        "255.255.255.255",
        *("::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1"),
        *("64:ff9b:1::1", "100::1", "2001:db8::1", "2002:a00:1::1", "2002:7f00:1::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%2", "fe80::1%eth0", "fec0::1", "ff02::1", "5f00::1", "2001:0:5ef5:79fd::f5ff:fffe"),
    ],
)
def test_addresses_of_this_board_and_its_networks(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["::ffff:1.2.3.4", "64:ff9b::1.2.3.4", "2002:102:304::1"])
def test_an_address_that_stands_for_a_public_one_is_public(address: str):
    assert is_public(address)


NAMED = frozenset({("https", "models.example.org", 443)})
OURS, OTHERS = urlsplit("https://models.example.org/m.edgm"), urlsplit("https://elsewhere.example.org/m.edgm")


@pytest.mark.parametrize(
    ("policy", "begins_elsewhere", "leads_elsewhere"),
    [
        (OriginPolicy(NAMED), True, True),
        (OriginPolicy(NAMED, credentials=True), False, True),
        (OriginPolicy(NAMED, listed=True), False, False),
        (OriginPolicy(NAMED, listed=True, credentials=True), False, False),
    ],
)
def test_where_a_fetch_may_begin_and_lead(policy: OriginPolicy, begins_elsewhere: bool, leads_elsewhere: bool):
    def may(target: SplitResult, *, redirected: bool) -> bool:
        try:
            policy.admit(target, redirected=redirected)
        except PolicyError:
            return False
        return True

    assert [may(OURS, redirected=redirected) for redirected in (False, True)] == [True, True]
    assert may(OTHERS, redirected=False) == begins_elsewhere
    assert may(OTHERS, redirected=True) == leads_elsewhere


def test_a_named_origin_may_be_anywhere_and_no_other():
    policy = OriginPolicy(NAMED)
    policy.admit_address(OURS, "10.0.0.5", ours=False)
    policy.admit_address(OURS, "1.2.3.4", ours=True)
    policy.admit_proxied(OURS)
    policy.admit_address(OTHERS, "1.2.3.4", ours=False)
    with pytest.raises(PolicyError, match=r"https://elsewhere\.example\.org is at 10\.0\.0\.5, not a public"):
        policy.admit_address(OTHERS, "10.0.0.5", ours=False)
    with pytest.raises(PolicyError, match=r"is at 1\.2\.3\.4, an address of this board"):
        policy.admit_address(OTHERS, "1.2.3.4", ours=True)
    with pytest.raises(PolicyError, match="through a proxy"):
        policy.admit_proxied(OTHERS)


@pytest.mark.parametrize(("scheme", "port"), [("http", 443), ("http", 80), ("https", 8443)])
def test_another_scheme_or_port_is_another_origin(scheme: str, port: int):
    with pytest.raises(PolicyError):
        OriginPolicy(NAMED, listed=True).admit(urlsplit(f"{scheme}://models.example.org:{port}/"), redirected=False)
