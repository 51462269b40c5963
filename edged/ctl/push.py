"""Send a bundle to a device over an unreliable link, and follow the update.

    connect -> ask for the offset -> send the rest -> request the install -> watch -> ...

Each connection repeats these steps, and the device keeps the offset: a cut at any moment, or a restart of the device,
makes no difference. The push ends when the device has decided, or after a while without progress.

A version may have several uploads, a delta and the full bundle: each is tried if the device cannot use the one before.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence

from edged.core.errors import BundleError, ControlError, EdgedError
from edged.core.retry_budget import RetryBudget, RetryLimits
from edged.core.update_answers import JOB_WATCH, RECEIVE_DONE, RECEIVE_OPEN, JobItemAnswer, TransferAnswer
from edged.ctl.client import UnreachableError
from edged.ctl.progress import InstallOutcome, InstallTerms, Reporter, already_present, follow, report_terms
from edged.ctl.ssh import LineError, SshSession
from edged.ctl.tables import size
from edged.ctl.upload import Upload

_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 30.0
_LARGEST_PIECE = 64 << 10
_SMALLEST_PIECE = 1 << 10


def fitting(piece: int, brought: int) -> int:
    """Return the size of pieces after a cut, given the size of earlier pieces and the number of bytes brought.

    A cut loses the pieces under way, and the device syncs each piece: a few pieces per connection are too large, and
    many are too small.
    """
    if brought < 4 * piece:
        return max(piece // 2, _SMALLEST_PIECE)
    return min(piece * 2, _LARGEST_PIECE) if brought >= 16 * piece else piece


class Push:
    """Transfer of a version to a host, on the `terms` of an install; gives up after `stall` seconds without progress.

    `options` are for the edgectl at the far end. `job` is the number of the update on the device, "" before the start.
    """

    def __init__(
        self,
        host: str,
        uploads: Sequence[Upload],
        terms: InstallTerms,
        reporter: Reporter,
        *,
        ssh: str,
        may_ask: bool,
        stall: float,
        options: Sequence[str] = (),
    ) -> None:
        self.host = host
        self._options = options
        self.job = ""
        self._upload, *self._rest = uploads
        self._announced: Upload | None = None
        self._terms = terms
        self._reporter = reporter
        self._ssh = ssh
        self._may_ask = may_ask
        self._met = False
        self._seen = 0.0
        self._progress = 0
        self._connections = 0
        self._piece = _LARGEST_PIECE
        limits = RetryLimits(
            stall=stall,
            total=math.inf,
            traffic=math.inf,
            pause=_PAUSE_SECONDS,
            longest_pause=_LONGEST_PAUSE_SECONDS,
            longest_wait=0.0,
        )
        self._patience = RetryBudget(limits, 0, time.monotonic(), random.random)

    def run(self) -> InstallOutcome:
        """Send the version and wait for the end. Errors of edged are returned as an outcome, not raised."""
        try:
            while True:
                try:
                    outcome = self._connect()
                    if outcome.state != "full_needed" or not self._rest:
                        return outcome
                    self._take_next()
                except EdgedError as error:
                    if not (error.retryable or isinstance(error, LineError)):
                        raise
                    self._pause(error)
        except UnreachableError as error:
            return InstallOutcome("unreachable", error.message, error.hint)
        except (BundleError, ControlError) as error:
            return InstallOutcome("refused", f"{self.host} refuses the version: {error.message}", error.hint)
        except EdgedError as error:
            return InstallOutcome("failed", f"{self.host} cannot take the version: {error.message}", error.hint)

    def _connect(self) -> InstallOutcome:
        """Use a connection until the end or a cut."""
        self._connections += 1
        words = [*self._options, *(["--allow-downgrade"] if self._terms["allow_downgrade"] else [])]
        may_ask = self._may_ask and not self._met
        with SshSession(
            self._ssh, self.host, words, may_ask=may_ask, first=not self._met, report=self._report_silence
        ) as line:
            line.wait_for_greeting()
            self._met = True
            if not self.job:
                answer = self._bring(line)
                if "present" in answer:
                    return already_present(answer, self._upload.version, f"is on {self.host} already")
            return self._watch(line)

    def _bring(self, line: SshSession) -> TransferAnswer:
        """Send the missing bytes, request the install and return the last answer, with `present` if installed."""
        allow = self._terms["allow_downgrade"]
        answer = line.call(RECEIVE_OPEN, piece=self._piece, allow_downgrade=allow, **self._upload.announcement)
        if "missing" in answer:
            self._reporter.step(
                "push.base_missing", f"{self._upload.title} cannot be used: the base version is not on {self.host}"
            )
            self._take_next()
            return self._bring(line)
        if "offset" in answer:
            self._send(line, answer["offset"])
            answer = line.call(RECEIVE_DONE, id=self._upload.id, **self._terms)
        report_terms(answer, self._terms, self._reporter)
        self.job = answer.get("job", "")
        return answer

    def _take_next(self) -> None:
        self._upload, *self._rest = self._rest
        self.job, self._seen = "", 0.0
        self._progress = 0
        self._patience.start_again()

    def _send(self, line: SshSession, offset: int) -> None:
        upload = self._upload
        if self._announced is not upload:
            self._announced = upload
            here = f", of which {size(offset)} are there" if offset else ""
            self._reporter.step("push.sending", f"sending {upload.title} to {self.host}: {size(upload.size)}{here}")
        self._progressed(offset)  # an acknowledgement may have been cut off
        there = offset
        try:
            for there in line.send(upload.read, offset, upload.size, self._piece):
                self._reporter.progress(there, upload.size)
                self._progressed(there)
        except LineError:
            self._piece = fitting(self._piece, there - offset)
            raise
        connections = f", after {self._connections} connections" if self._connections > 1 else ""
        self._reporter.step("push.sent", f"the whole file is on the device{connections}")

    def _report_silence(self, text: str) -> None:
        self._reporter.step("push.silence", text)

    def _watch(self, line: SshSession) -> InstallOutcome:
        items = line.stream(JOB_WATCH, id=self.job, after=self._seen, digest=self._upload.digest)
        try:
            return follow(self._noted(items), self._reporter)
        except ControlError as error:
            if isinstance(error, LineError | UnreachableError):
                raise
            self.job, self._seen = "", 0.0  # unknown after a restart of the daemon: ask again
            raise LineError(error.message) from error

    def _noted(self, items: Iterable[JobItemAnswer]) -> Iterator[JobItemAnswer]:
        for item in items:
            self._seen = item.get("at", self._seen)
            self._progressed(self._progress + 1)  # any event is progress
            yield item

    def _progressed(self, position: int) -> None:
        self._progress = max(self._progress, position)
        self._patience.reached(self._progress, time.monotonic())

    def _pause(self, error: EdgedError) -> None:
        exhausted = self._patience.exhausted(0, self._upload.size, time.monotonic())
        if exhausted:
            raise UnreachableError(
                f"given up, as {exhausted}; last: {error.message}",
                hint="run the command again to continue: received bytes are kept",
            )
        pause = self._patience.pause()
        self._reporter.step("push.cut", f"{error.message}; trying again in {pause:.1f} s")
        time.sleep(pause)
