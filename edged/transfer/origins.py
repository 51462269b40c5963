"""Rules about servers: the daemon asks some without an operator's request, and sends credentials to some.

An origin is scheme, host and port. Since a message may name any server, only the configuration can admit servers to the
board's credentials, and servers inside the board's network at all.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from edged.core.errors import ConfigError
from edged.system.urls import FetchError, Origin, is_host, mask, origin, place

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


class PolicyError(FetchError):
    """The configuration does not allow the fetch without an operator's request."""


class OriginPolicy(NamedTuple):
    """Rules for fetches. The configuration names the origins in `named`. No other origin gets credentials.

    A fetch without an operator's request may begin at other origins unless the configuration lists origins (`listed`)
    or has `credentials`, and redirects may lead to others unless origins are `listed`. Of others, only public addresses
    are asked.
    """

    named: frozenset[Origin] = frozenset()
    listed: bool = False
    credentials: bool = False

    def admit(self, target: SplitResult, *, redirected: bool) -> None:
        """Raise PolicyError unless the origin may be asked."""
        if origin(target) not in self.named and (self.listed or (self.credentials and not redirected)):
            raise PolicyError(f"the configuration does not name {_shown(target)}", hint=_LIST_IT)

    def admit_proxied(self, target: SplitResult) -> None:
        """Raise PolicyError unless the origin is named, since only the proxy will learn the address."""
        if origin(target) not in self.named:
            raise PolicyError(
                f"{_shown(target)} is reached through a proxy, and the address cannot be checked", hint=_LIST_IT
            )

    def admit_address(self, target: SplitResult, address: str, *, ours: bool) -> None:
        """Raise PolicyError for a non-public address and for an address of the board, unless the origin is named."""
        if origin(target) not in self.named and (ours or not is_public(address)):
            kind = "an address of this board" if ours else "not a public address"
            raise PolicyError(f"{_shown(target)} is at {address}, {kind}", hint=_LIST_IT)


def parse_proxy(url: str) -> SplitResult:
    """Return the parts of a proxy's URL. Raises ConfigError."""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
        if parts.scheme == "http" and is_host(parts.hostname) and parts.port != 0:
            return parts
    except ValueError:
        pass
    raise ConfigError(f"{mask(url)!r} is no usable proxy", hint="write it as http://proxy.example.org:3128")


_LIST_IT = "to allow the server, add the URL to origins in [updates.fetch]"


def is_public(address: str) -> bool:
    """Return True for an address of the internet, and not of this board, the local network, or a group of hosts.

    An IPv6 address for an IPv4 address counts as the IPv4 address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return ip.is_global and not ip.is_multicast
    inner = _inner(ip)
    return is_public(str(inner)) if inner else ip.is_global and ip in _GLOBAL_UNICAST


def _inner(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address behind an IPv6 address, if any."""
    if ip.ipv4_mapped or ip.sixtofour:
        return ip.ipv4_mapped or ip.sixtofour
    if ip.teredo:
        return ip.teredo[1]
    return IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None


def _shown(target: SplitResult) -> str:
    return f"{target.scheme}://{place(target)}"
