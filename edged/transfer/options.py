"""Options of downloads, apart from the code that downloads, since few boards do."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from edged.core.errors import ConfigError

if TYPE_CHECKING:
    from edged.transfer.origins import OriginPolicy

_Text = Annotated[str, Meta(max_length=1000)]
_Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]


class FetchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of [updates.fetch]: downloads. The defaults suit a 2G link that drops every few minutes.

    A server's certificate is always verified. Credentials go only to `origins` and to the origin of each `url` in the
    configuration, never to another host after a redirect. A relative file name is looked up among the
    service's credentials ($CREDENTIALS_DIRECTORY). The received bytes of an abandoned download are kept for the next.

    Keys:
        ca_file: Certificates of the authorities to trust. Default: those of the system.
        cert_file: Certificate of this board, for servers that ask for a certificate.
        key_file: Private key of `cert_file`.
        token_file: File whose first line is sent as a bearer token, over HTTPS only.
        origins: Servers that get the credentials, and the only servers for the URL in an MQTT message, written as
            https://files.example.org:8443. Without this key a message may lead to any public address, but not through
            a proxy, and nowhere while there are credentials.
        proxy: URL of an HTTP proxy; "none" for none. Default: $http_proxy and $https_proxy.
        no_proxy: Hosts reached without the proxy, parted by commas. Default: $no_proxy.
        low_speed (bytes/s): Speed below which a connection is given up, and opened again.
        low_speed_seconds (s): Time over which `low_speed` is measured.
        head_speed (bytes/s): Least average speed until the head of a file has arrived and can be checked.
        pause (s): Time to the first retry; doubled with each further one without progress.
        longest_pause (s): Longest time between two retries.
        longest_wait (s): Longest time that a server may ask the board to wait.
        stall_seconds (s): Time without progress after which a download fails.
        max_seconds (s): Time after which a download fails in any case.
        max_traffic: Multiple of the file's size; a download fails when so many bytes have been received.
    """

    ca_file: _Text = ""
    cert_file: _Text = ""
    key_file: _Text = ""
    token_file: _Text = ""
    origins: Annotated[tuple[_Text, ...], Meta(max_length=100)] | None = None
    proxy: _Text = ""
    no_proxy: _Text = ""
    low_speed: Annotated[float, Meta(ge=0, le=1e9)] = 100.0
    low_speed_seconds: _Seconds = 60.0
    head_speed: Annotated[float, Meta(ge=0, le=1e9)] = 500.0
    pause: _Seconds = 1.0
    longest_pause: _Seconds = 60.0
    longest_wait: _Seconds = 900.0
    stall_seconds: _Seconds = 1800.0
    max_seconds: _Seconds = 86400.0
    max_traffic: Annotated[float, Meta(ge=1, le=1000)] = 3.0

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigError("cert_file and key_file go together", hint="give both or neither")
        if self.origins or self.proxy not in ("", "none"):
            self._check_servers()

    def policy(self, urls: Iterable[str]) -> OriginPolicy:
        """Return the rules for fetches, with the `urls` in the configuration."""
        from edged.system.urls import FetchError, origin, parse_origin, parse_url
        from edged.transfer.origins import OriginPolicy

        named = {parse_origin(each) for each in self.origins or ()}
        for url in urls:
            with suppress(FetchError):  # the fetch will report the error
                named.add(origin(parse_url(url)))
        return OriginPolicy(frozenset(named), self.origins is not None, bool(self.token_file or self.cert_file))

    def _check_servers(self) -> None:
        from edged.system.urls import parse_origin
        from edged.transfer.origins import parse_proxy

        if self.proxy not in ("", "none"):
            parse_proxy(self.proxy)
        for each in self.origins or ():
            parse_origin(each)
