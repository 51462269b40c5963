"""Fetch a file over HTTP, through any number of cuts, into a `Transfer`.

    ask for the rest -> take what comes -> cut -> wait -> ask for the rest -> ...

It ends when all of it is here, when the server says something final, or when patience runs out; see core/patience.py.
What an answer means is decided in answer.py, what is spoken over is line.py, and what has come is kept by incoming.py:
so it goes on after a restart of the daemon or the board as after a cut. Nothing fetched is trusted for having come from
the right place; where a check reads along, damaged bytes are asked for again, a chunk at a time.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from typing import Annotated

import msgspec
from msgspec import Meta

from edged.core.errors import BundleError, ConfigError
from edged.core.patience import RetryBudget, RetryLimits
from edged.transfer.http_connection import Cancellation, HttpClient, MinimumSpeed, find_proxies, identify, parse_proxy
from edged.transfer.http_response import (
    Answer,
    Asked,
    Body,
    FetchError,
    NotBundleError,
    Redirect,
    StartAgain,
    TryAgain,
    Whole,
    follow,
    is_page,
    mask,
    origin,
    parse_url,
    understand,
)
from edged.transfer.origins import OriginPolicy, parse_origin
from edged.transfer.partial_files import Transfer

log = logging.getLogger("edged.models")

MAX_REDIRECTS = 5
MAX_DAMAGES = 3
"""How often the same bytes may come damaged: then it is the file that is, and not the way."""

_PIECE = 64 << 10
_REPORT_SECONDS = 0.5
_SMOOTHING_SECONDS = 5.0

Progress = Callable[[int, int | None, float], None]
"""Hears how many bytes are here, of how many (None: unknown), and how many come in a second. Called on the fetching
thread, at most twice a second and once at the end."""

Text = Annotated[str, Meta(max_length=1000)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86400)]


class FetchOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of [updates.fetch]: the download of models. The defaults suit a 2G link that drops every few minutes.

    A server's certificate is always verified. Credentials go only to `origins` and to the origins of the models' `url`,
    never to another host that a server redirects to. A relative name of a file is looked for among the service's
    credentials ($CREDENTIALS_DIRECTORY). Received bytes of an abandoned download are kept for the next.

    Keys:
        ca_file: Certificates of the authorities to trust. Default: those of the system.
        cert_file: Certificate of this board, for servers that ask for one.
        key_file: Private key of `cert_file`.
        token_file: File whose first line is sent as a bearer token, over HTTPS only.
        origins: Servers that get the credentials, and the only ones that an MQTT message may lead to, written as
            https://models.example.org:8443. Without this key a message may lead to any public address, but not through
            a proxy, and nowhere while there are credentials.
        proxy: URL of an HTTP proxy; "none" for none. Default: $http_proxy and $https_proxy.
        no_proxy: Hosts reached without the proxy, parted by commas. Default: $no_proxy.
        low_speed (bytes/s): Speed below which a connection is given up, and opened again.
        low_speed_seconds (s): Time over which `low_speed` is measured.
        head_speed (bytes/s): Least average speed at which the head of a bundle must arrive.
        pause (s): Time to the first retry; doubled with each further one without progress.
        longest_pause (s): Longest time between two retries.
        longest_wait (s): Longest time that a server may ask the board to wait.
        stall_seconds (s): Time without progress after which a download fails.
        max_seconds (s): Time after which a download fails in any case.
        max_traffic: Multiple of the file's size; a download fails when so many bytes have been received for it.
    """

    ca_file: Text = ""
    cert_file: Text = ""
    key_file: Text = ""
    token_file: Text = ""
    origins: Annotated[tuple[Text, ...], Meta(max_length=100)] | None = None
    proxy: Text = ""
    no_proxy: Text = ""
    low_speed: Annotated[float, Meta(ge=0, le=1e9)] = 100.0
    low_speed_seconds: Seconds = 60.0
    head_speed: Annotated[float, Meta(ge=0, le=1e9)] = 500.0
    pause: Seconds = 1.0
    longest_pause: Seconds = 60.0
    longest_wait: Seconds = 900.0
    stall_seconds: Seconds = 1800.0
    max_seconds: Seconds = 86400.0
    max_traffic: Annotated[float, Meta(ge=1, le=1000)] = 3.0

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigError("cert_file and key_file go together", hint="give both or neither")
        if self.proxy not in ("", "none"):
            parse_proxy(self.proxy)
        for each in self.origins or ():
            parse_origin(each)

    def policy(self, urls: Iterable[str]) -> OriginPolicy:
        """Return the rules for fetches where the configuration names these `urls` of models."""
        named = {parse_origin(each) for each in self.origins or ()}
        for url in urls:
            with suppress(FetchError):  # it is told of when it is fetched
                named.add(origin(parse_url(url)))
        return OriginPolicy(frozenset(named), self.origins is not None, bool(self.token_file or self.cert_file))


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """How it went: `total` bytes are here, `resumed` of them from before.

    `moved` bytes were received for it, headers and all, over `connections`; `cuts` of those broke off or failed,
    `damages` times bytes had to be asked for again, and `restarts` times everything.
    """

    total: int
    resumed: int
    moved: int
    connections: int
    cuts: int
    damages: int
    restarts: int
    seconds: float


class Fetcher:
    """Fetches one file after the other, on any thread, until it is cancelled.

    Credentials go to origins that the `policy` names; where it is `guarded`, all the rest of the policy holds too.
    """

    def __init__(self, options: FetchOptions, policy: OriginPolicy | None = None, *, guarded: bool = False) -> None:
        self._options = options
        self._policy = policy or options.policy(())
        self._guarded = guarded
        self._scissors = Cancellation()

    def fetch(self, url: str, into: Transfer, *, progress: Progress | None = None) -> Fetched:
        """Fetch all of it; blocks until it is complete and durable.

        Raises:
            FetchError: it cannot be had; whether later is `retryable`. AbandonedError if cancelled.
            BundleError: what comes is not a sound bundle, however often it is asked for.
            StoreError: it is too big, or the disk refuses.
            ConfigError: an option names a file that cannot be used.
        """
        try:
            return _Fetch(self._options, self._policy, self._guarded, self._scissors, url, into, progress).run()
        except FetchError as error:
            raise type(error)(f"{mask(url)}: {error.message}", hint=error.hint, retryable=error.retryable) from error
        finally:
            self._scissors.release()

    def cancel(self) -> None:
        """End the fetch under way, and refuse any other. From any thread; only a look-up of a name is waited for."""
        self._scissors.cut()


def transfer_id(url: str) -> str:
    """The id of the transfer for a URL whose content's digest is not known."""
    return f"url-{hashlib.sha256(url.encode()).hexdigest()}"


class _Fetch:
    """One fetch, as far as it has come."""

    def __init__(
        self,
        options: FetchOptions,
        policy: OriginPolicy,
        guarded: bool,
        scissors: Cancellation,
        url: str,
        into: Transfer,
        progress: Progress | None,
    ) -> None:
        self._began = time.monotonic()
        self._home = parse_url(url)
        if guarded:
            policy.admit(self._home, redirected=False)
        self._policy = policy
        self._guarded = guarded
        self._scissors = scissors
        self._into = into
        self._resumed = into.received
        self._meter = _Meter(progress, into.received, self._began)
        self._patience = RetryBudget(_limits(options), into.received, self._began, random.random)
        self._client = HttpClient(
            identify(options.ca_file, options.cert_file, options.key_file, options.token_file),
            policy,
            guarded=guarded,
            proxies=find_proxies(options.proxy, options.no_proxy),
            pace=MinimumSpeed(
                lambda: options.head_speed if into.awaits_head else options.low_speed, options.low_speed_seconds
            ),
            scissors=scissors,
            received=self._count,
        )
        self._moved = self._connections = self._cuts = self._restarts = 0
        self._damages: Counter[int] = Counter()

    def run(self) -> Fetched:
        while isinstance(problem := self._attempt(), TryAgain):
            self._rest(problem)
        self._into.complete()
        now = time.monotonic()
        self._meter.report(self._into, now)
        return Fetched(
            total=self._into.received,
            resumed=self._resumed,
            moved=self._moved,
            connections=self._connections,
            cuts=self._cuts,
            damages=self._damages.total(),
            restarts=self._restarts,
            seconds=now - self._began,
        )

    def _attempt(self) -> Whole | TryAgain:
        """Ask once for what is missing, and take what comes."""
        self._scissors.check()
        if self._into.checked and self._into.received == self._into.total:
            return Whole()  # and vouched for: no server need say so, which may be out of reach now
        try:
            response, answer = self._ask()
            match answer:
                case Body():
                    return self._take(response, answer)
                case StartAgain(reason):
                    self._start_again(None, "")
                    return TryAgain(reason)
                case _:
                    return answer
        except BundleError as error:
            return self._damaged(error)
        except (OSError, HTTPException) as error:
            self._scissors.check()
            self._cuts += 1
            return TryAgain(_explain(error))

    def _ask(self) -> tuple[HTTPResponse, Body | Whole | StartAgain | TryAgain]:
        """The answer, with its body still to be read, from wherever the redirects lead."""
        asked = self._asked()
        target = self._home
        for redirects in range(MAX_REDIRECTS + 1):
            if self._guarded:
                self._policy.admit(target, redirected=redirects > 0)
            self._connections += 1
            response = self._client.get(target, self._home, _request(asked, fresh=bool(self._damages)))
            headers = {name.lower(): str(value) for name, value in response.headers.items()}
            answer: Answer = understand(response.status, headers, asked)
            if not isinstance(answer, Redirect):
                return response, answer
            target = follow(target, answer.location)
        raise FetchError(f"there are more than {MAX_REDIRECTS} redirects", hint="give the URL they should lead to")

    def _asked(self) -> Asked:
        # Bytes that nothing ties to an edition of the file, and no check vouches for, are not continued.
        offset = self._into.received if self._into.tag or self._into.checked else 0
        return Asked(offset, self._into.total, self._into.tag)

    def _take(self, response: HTTPResponse, body: Body) -> Whole | TryAgain:
        into = self._into
        if body.start == 0:
            self._start_again(body.total, body.tag)
        elif into.total is None and body.total is not None:
            into.expect(body.total)
        if body.total == 0:
            raise self._another("an empty file")
        while into.received != into.total:
            left = _PIECE if into.total is None else into.total - into.received
            data = response.read1(min(_PIECE, left))
            if not data:
                if not into.received and (response.chunked or not into.checked):
                    raise self._another("an empty file")
                return self._end(into)
            if not into.received and is_page(response.headers.get("Content-Type", ""), data):
                raise self._another("a web page")
            into.append(data)
            self._went_on()
        return Whole()

    def _another(self, what: str) -> NotBundleError:
        """Make the error for a file that somebody on the way may have sent, so that asking another time may help."""
        self._scissors.check()
        wanted = "a bundle" if self._into.checked else "a model file"
        hint = "check the URL, and whether the network wants a log-in first"
        return NotBundleError(f"{what} came instead of {wanted}", hint=hint, retryable=True)

    def _end(self, into: Transfer) -> Whole | TryAgain:
        """The body has ended. Where nobody knows how long the file is, that is its end."""
        self._scissors.check()
        if into.total is None and not into.checked:
            return Whole()
        self._cuts += 1
        return TryAgain("the connection broke off")

    def _went_on(self) -> None:
        now = time.monotonic()
        if not self._into.awaits_head:
            self._patience.reached(self._into.received, now)
        self._meter.update(self._into, now)
        self._give_up_when_exhausted("", now)

    def _start_again(self, total: int | None, tag: str) -> None:
        if self._into.received:
            self._restarts += 1
            self._resumed = 0
            self._patience.start_again()
        self._into.begin(total, tag)

    def _damaged(self, error: BundleError) -> TryAgain:
        """A bad way is tried again, a bad file is not; `received` stands where the damage begins."""
        if not error.retryable:
            raise error
        self._damages[self._into.received] += 1
        if self._damages[self._into.received] >= MAX_DAMAGES:
            raise error
        return TryAgain(error.message)

    def _rest(self, problem: TryAgain) -> None:
        self._give_up_when_exhausted(problem.reason, time.monotonic())
        pause = self._patience.pause() if problem.after is None else self._patience.wait(problem.after)
        if pause is None:
            raise FetchError(
                f"{problem.reason}, and wants to be asked again in {problem.after:g} s only",
                hint="try again then, or raise longest_wait",
                retryable=True,
            )
        log.info("%s: %s; asking again in %.1f s", mask(self._home.geturl()), problem.reason, pause)
        self._scissors.wait(pause)

    def _give_up_when_exhausted(self, reason: str, now: float) -> None:
        exhausted = self._patience.exhausted(self._moved, self._into.total, now)
        if exhausted:
            raise FetchError(
                f"given up at {self._into.received} of {self._into.total or 'an unknown number of'} bytes, as "
                f"{exhausted}{'; last: ' if reason else ''}{reason}",
                hint="what has come is kept; try again when the link is better",
                retryable=True,
            )

    def _count(self, received: int) -> None:
        self._moved += received


class _Meter:
    """Reports how far it is and how fast."""

    def __init__(self, progress: Progress | None, received: int, now: float) -> None:
        self._progress = progress
        self._received = received
        self._reported = now
        self._rate = 0.0

    def update(self, into: Transfer, now: float) -> None:
        """Report, if it is time to."""
        if now - self._reported >= _REPORT_SECONDS:
            self.report(into, now)

    def report(self, into: Transfer, now: float) -> None:
        """Report."""
        elapsed = max(now - self._reported, 1e-3)
        speed = max(into.received - self._received, 0) / elapsed
        self._rate += (speed - self._rate) * (min(elapsed / _SMOOTHING_SECONDS, 1.0) if self._rate else 1.0)
        self._received, self._reported = into.received, now
        if self._progress:
            self._progress(into.received, into.total, self._rate)


def _limits(options: FetchOptions) -> RetryLimits:
    return RetryLimits(
        stall=options.stall_seconds,
        total=options.max_seconds,
        traffic=options.max_traffic,
        pause=options.pause,
        longest_pause=options.longest_pause,
        longest_wait=options.longest_wait,
    )


def _explain(error: Exception) -> str:
    said = str(getattr(error, "strerror", None) or str(error) or type(error).__name__)
    return "".join(sign if sign.isprintable() else "?" for sign in said[:200])


def _request(asked: Asked, *, fresh: bool) -> dict[str, str]:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if asked.offset:
        headers["Range"] = f"bytes={asked.offset}-"
        if asked.tag:
            headers["If-Range"] = asked.tag
    if fresh:  # a cache on the way may hold the damage
        headers["Cache-Control"] = "no-cache"
    return headers
