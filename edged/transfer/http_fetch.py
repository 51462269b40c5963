"""Fetch a file over HTTP into a `Transfer`, through any number of cuts.

    request the rest -> receive -> cut -> wait -> request the rest -> ...

A fetch ends with the complete file, with a final error of the server, or with the end of the retry budget
(core/retry_budget.py). http_response.py decides the meaning of a response, http_connection.py moves the bytes, and
partial_files.py keeps the bytes: a fetch continues after a restart as after a cut. Bytes are not trusted for coming
from the right place: if a check reads the transfer, damaged bytes are requested again, a chunk at a time.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import NamedTuple

import msgspec

from edged.core.errors import BundleError
from edged.core.retry_budget import RetryBudget, RetryLimits
from edged.system.later import hashlib
from edged.system.urls import FetchError, follow, mask, parse_url
from edged.transfer.http_connection import Cancellation, HttpClient, MinimumSpeed, find_proxies, identify
from edged.transfer.http_response import (
    Answer,
    Body,
    RangeRequest,
    Redirect,
    StartAgain,
    TryAgain,
    Whole,
    WrongFileError,
    interpret,
    is_page,
)
from edged.transfer.options import FetchOptions
from edged.transfer.origins import OriginPolicy
from edged.transfer.partial_files import Transfer

log = logging.getLogger("edged.transfer")

MAX_REDIRECTS = 5
MAX_DAMAGES = 3
"""Number of damaged arrivals of the same bytes, until the file on the server counts as damaged."""

_PIECE = 64 << 10
_REPORT_SECONDS = 0.5
_SMOOTHING_SECONDS = 5.0

Progress = Callable[[int, int | None, float], None]
"""Called with the bytes received, the size of the file (None: unknown) and the bytes per second, on the fetching
thread, at most twice a second and once at the end."""


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of a completed fetch.

    total        bytes of the file, including `resumed` from an earlier attempt
    moved        bytes received, with headers and repetitions
    connections  connections made, including `cuts` broken off or failed
    damages      requests for damaged bytes
    restarts     new beginnings of the file
    """

    total: int
    resumed: int
    moved: int
    connections: int
    cuts: int
    damages: int
    restarts: int
    seconds: float


class ExpectedFile(NamedTuple):
    """The kind of file expected of a fetch.

    `name` is for messages, with the article. `may_start` returns True for possible first bytes of such a file. The file
    is no web page then, even if the server says so.
    """

    name: str = "a file"
    may_start: Callable[[bytes], bool] = lambda start: False


class Fetcher:
    """Fetches one file after another, on any thread, until cancelled.

    Credentials go to the named origins of the `policy`. A `guarded` fetcher keeps to all other rules, too.
    """

    def __init__(
        self,
        options: FetchOptions,
        policy: OriginPolicy | None = None,
        expected: ExpectedFile | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        self._options = options
        self._policy = policy or options.policy(())
        self._expected = expected or ExpectedFile()
        self._guarded = guarded
        self._cancellation = Cancellation()

    def fetch(self, url: str, transfer: Transfer, *, progress: Progress | None = None) -> Fetched:
        """Fetch a file, and return as soon as the file is complete and durable.

        Raises:
            FetchError: the file cannot be had, now if `retryable`; AbandonedError after `cancel`.
            BundleError: the check of the transfer refuses the bytes again and again.
            StoreError: the file is too big, or the disk refuses.
            ConfigError: an option names an unusable file.
        """
        try:
            return _Fetch(
                self._options, self._policy, self._expected, self._guarded, self._cancellation, url, transfer, progress
            ).run()
        except FetchError as error:
            raise type(error)(f"{mask(url)}: {error.message}", hint=error.hint, retryable=error.retryable) from error
        finally:
            self._cancellation.release()

    def cancel(self) -> None:
        """End the fetch under way, and refuse any other. From any thread. A look-up of a name is not cut short."""
        self._cancellation.cancel()


def transfer_id(url: str) -> str:
    """Return the id of the transfer for a URL, for a file of unknown digest."""
    return f"url-{hashlib.sha256(url.encode()).hexdigest()}"


class _Fetch:
    """A fetch under way."""

    def __init__(
        self,
        options: FetchOptions,
        policy: OriginPolicy,
        expected: ExpectedFile,
        guarded: bool,
        cancellation: Cancellation,
        url: str,
        transfer: Transfer,
        progress: Progress | None,
    ) -> None:
        self._began = time.monotonic()
        self._home = parse_url(url)
        if guarded:
            policy.admit(self._home, redirected=False)
        self._policy = policy
        self._expected = expected
        self._guarded = guarded
        self._cancellation = cancellation
        self._transfer = transfer
        self._resumed = transfer.received
        self._meter = _Meter(progress, transfer.received, self._began)
        self._budget = RetryBudget(_limits(options), transfer.received, self._began, random.random)
        self._client = HttpClient(
            identify(options.ca_file, options.cert_file, options.key_file, options.token_file),
            policy,
            guarded=guarded,
            proxies=find_proxies(options.proxy, options.no_proxy),
            minimum_speed=MinimumSpeed(
                lambda: options.head_speed if transfer.awaits_head else options.low_speed, options.low_speed_seconds
            ),
            cancellation=cancellation,
            received=self._count,
        )
        self._moved = self._connections = self._cuts = self._restarts = 0
        self._damages: Counter[int] = Counter()

    def run(self) -> Fetched:
        while isinstance(problem := self._attempt(), TryAgain):
            self._wait(problem)
        self._transfer.complete()
        now = time.monotonic()
        self._meter.report(self._transfer, now)
        return Fetched(
            total=self._transfer.received,
            resumed=self._resumed,
            moved=self._moved,
            connections=self._connections,
            cuts=self._cuts,
            damages=self._damages.total(),
            restarts=self._restarts,
            seconds=now - self._began,
        )

    def _attempt(self) -> Whole | TryAgain:
        """Make a request for the missing bytes, and receive the response."""
        self._cancellation.check()
        if self._transfer.checked and self._transfer.received == self._transfer.total:
            return Whole()  # the check vouches for all bytes, and the server may be out of reach now
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
            self._cancellation.check()
            self._cuts += 1
            return TryAgain(_explain(error))

    def _ask(self) -> tuple[HTTPResponse, Body | Whole | StartAgain | TryAgain]:
        """Follow redirects, and return the last response and the meaning; the body is still to be read."""
        asked = self._range()
        target = self._home
        for redirects in range(MAX_REDIRECTS + 1):
            if self._guarded:
                self._policy.admit(target, redirected=redirects > 0)
            self._connections += 1
            response = self._client.get(target, self._home, _request(asked, fresh=bool(self._damages)))
            headers = {name.lower(): str(value) for name, value in response.headers.items()}
            answer: Answer = interpret(response.status, headers, asked)
            if not isinstance(answer, Redirect):
                return response, answer
            target = follow(target, answer.location)
        raise FetchError(
            f"there are more than {MAX_REDIRECTS} redirects", hint="use the URL at the end of the redirects"
        )

    def _range(self) -> RangeRequest:
        # Bytes without a tag of the edition and without a check may be of another file: begin anew.
        offset = self._transfer.received if self._transfer.tag or self._transfer.checked else 0
        return RangeRequest(offset, self._transfer.total, self._transfer.tag)

    def _take(self, response: HTTPResponse, body: Body) -> Whole | TryAgain:
        transfer = self._transfer
        if body.start == 0:
            self._start_again(body.total, body.tag)
        elif transfer.total is None and body.total is not None:
            transfer.expect(body.total)
        if body.total == 0:
            raise self._wrong_file("an empty file")
        while transfer.received != transfer.total:
            left = _PIECE if transfer.total is None else transfer.total - transfer.received
            data = response.read1(min(_PIECE, left))
            if not data:
                if not transfer.received and (response.chunked or not transfer.checked):
                    raise self._wrong_file("an empty file")
                return self._end()
            if not transfer.received and self._is_page(response, data):
                raise self._wrong_file("a web page")
            transfer.append(data)
            self._report_progress()
        return Whole()

    def _is_page(self, response: HTTPResponse, start: bytes) -> bool:
        return not self._expected.may_start(start) and is_page(response.headers.get("Content-Type", ""), start)

    def _wrong_file(self, kind: str) -> WrongFileError:
        """Return the error for a file possibly sent by a server between. A later attempt may help."""
        self._cancellation.check()
        hint = "check the URL, and log in to the network first if required"
        return WrongFileError(f"{kind} arrived instead of {self._expected.name}", hint=hint, retryable=True)

    def _end(self) -> Whole | TryAgain:
        """Return the meaning of the end of a body. A file of unknown size ends there."""
        self._cancellation.check()
        if self._transfer.total is None and not self._transfer.checked:
            return Whole()
        self._cuts += 1
        return TryAgain("the connection broke off")

    def _report_progress(self) -> None:
        now = time.monotonic()
        if not self._transfer.awaits_head:
            self._budget.reached(self._transfer.received, now)
        self._meter.update(self._transfer, now)
        self._give_up_when_exhausted("", now)

    def _start_again(self, total: int | None, tag: str) -> None:
        if self._transfer.received:
            self._restarts += 1
            self._resumed = 0
            self._budget.start_again()
        self._transfer.begin(total, tag)

    def _damaged(self, error: BundleError) -> TryAgain:
        """Return the next attempt after damage on the way, which begins at `received`. Raise for a bad file."""
        if not error.retryable:
            raise error
        self._damages[self._transfer.received] += 1
        if self._damages[self._transfer.received] >= MAX_DAMAGES:
            raise error
        return TryAgain(error.message)

    def _wait(self, problem: TryAgain) -> None:
        self._give_up_when_exhausted(problem.reason, time.monotonic())
        pause = self._budget.pause() if problem.after is None else self._budget.wait(problem.after)
        if pause is None:
            raise FetchError(
                f"{problem.reason}, and requests a wait of {problem.after:g} s",
                hint="try again after that time, or raise longest_wait",
                retryable=True,
            )
        log.info("%s: %s; trying again in %.1f s", mask(self._home.geturl()), problem.reason, pause)
        self._cancellation.wait(pause)

    def _give_up_when_exhausted(self, reason: str, now: float) -> None:
        exhausted = self._budget.exhausted(self._moved, self._transfer.total, now)
        if exhausted:
            raise FetchError(
                f"given up at {self._transfer.received} of {self._transfer.total or 'an unknown number of'} bytes, as "
                f"{exhausted}{'; last: ' if reason else ''}{reason}",
                hint="try again when the link is better; the received bytes are kept",
                retryable=True,
            )

    def _count(self, received: int) -> None:
        self._moved += received


class _Meter:
    """Reports the progress and the speed of a fetch."""

    def __init__(self, progress: Progress | None, received: int, now: float) -> None:
        self._progress = progress
        self._received = received
        self._reported = now
        self._rate = 0.0

    def update(self, transfer: Transfer, now: float) -> None:
        """Report if the last report is old enough."""
        if now - self._reported >= _REPORT_SECONDS:
            self.report(transfer, now)

    def report(self, transfer: Transfer, now: float) -> None:
        elapsed = max(now - self._reported, 1e-3)
        speed = max(transfer.received - self._received, 0) / elapsed
        self._rate += (speed - self._rate) * (min(elapsed / _SMOOTHING_SECONDS, 1.0) if self._rate else 1.0)
        self._received, self._reported = transfer.received, now
        if self._progress:
            self._progress(transfer.received, transfer.total, self._rate)


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


def _request(asked: RangeRequest, *, fresh: bool) -> dict[str, str]:
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if asked.offset:
        headers["Range"] = f"bytes={asked.offset}-"
        if asked.tag:
            headers["If-Range"] = asked.tag
    if fresh:  # a cache between may hold the damaged bytes
        headers["Cache-Control"] = "no-cache"
    return headers
