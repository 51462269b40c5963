"""Report the progress of updates: a line with the time for each step, a progress bar, and the end.

Steps go to standard output, as text or as lines of JSON; the bar is drawn on standard error, if standard error is a
terminal. Several boards may report at once, from a thread each.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypedDict

from edged.core.update_answers import JobItemAnswer, TransferAnswer
from edged.ctl import exit_codes as exits
from edged.ctl import tables

CODES = {
    "done": exits.DONE,
    "installed": exits.NOT_RUNNING,
    "refused": exits.REFUSED,
    "full_needed": exits.REFUSED,
    "failed": exits.UNFIT,
    "rolled_back": exits.ROLLED_BACK,
    "unreachable": exits.UNREACHABLE,
}

_REDRAW_SECONDS = 0.2
_RATE_SECONDS = 10.0
_BAR = 20


class InstallOutcome(NamedTuple):
    """End of an update: `state` is a key of CODES, `text` a sentence, and `hint` the remedy.

    full_needed: the device cannot use the delta, and has not decided about the version yet.
    """

    state: str
    text: str
    hint: str = ""

    @property
    def code(self) -> int:
        """Return the exit code."""
        return CODES.get(self.state, exits.FAILED)


class InstallTerms(TypedDict):
    """Terms of an install; `confirm_within` is in seconds, 0 for no confirmation."""

    allow_downgrade: bool
    confirm_within: float


class Console:
    """The two output streams and the start time, shared by all reporters."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._draws = sys.stderr.isatty() and not as_json
        self._places: dict[str, str] = {}

    def print(self, board: str, line: str) -> None:
        """Print a lasting line of a board, in place of the progress of the board."""
        with self._lock:
            self._places.pop(board, None)
            self._erase()
            print(line, flush=True)
            self._draw()

    def place(self, board: str, text: str) -> None:
        """Show the progress of a board on the last line."""
        with self._lock:
            self._places[board] = text
            self._erase()
            self._draw()

    def _erase(self) -> None:
        if self._draws:
            sys.stderr.write("\r\x1b[K")

    def _draw(self) -> None:
        if self._draws:
            text = "   ".join(self._places.values())
            sys.stderr.write(text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()


class Reporter:
    """Reports the update of a board; `board` is the name, if there are several boards."""

    def __init__(self, console: Console, board: str = "") -> None:
        self._console = console
        self._board = board
        self._meter = _Meter()
        self._offset: float | None = None

    def step(self, what: str, text: str) -> None:
        """Report a step at this moment; `what` is the permanent name of the kind."""
        elapsed = time.monotonic() - self._console.began
        self._report({"id": what, "text": text, "time": time.time()}, elapsed)

    def event(self, item: JobItemAnswer) -> None:
        """Report a step of the daemon."""
        at = item.get("at", 0.0)
        if self._offset is None:  # the clock of the board differs: the first step is shown as of now
            self._offset = time.monotonic() - self._console.began - at
        self._report(item, at + self._offset)

    def progress(self, there: int, total: int | None) -> None:
        """Report the number of bytes at the board."""
        text = self._meter.text(there, total, short=bool(self._board))
        if text:
            self._console.place(self._board, f"{self._board} {text}" if self._board else text)

    def waiting(self, text: str) -> None:
        """Show the state of the board meanwhile, "" for none."""
        if text:
            self._console.place(self._board, tables.plain(f"{self._board} {text}" if self._board else text))

    def end(self, outcome: InstallOutcome) -> None:
        """Report the end."""
        if self._console.as_json:
            self._report({"id": "end", "state": outcome.state, "text": outcome.text, "hint": outcome.hint}, 0.0)
            return
        prefix = f"{self._board}: " if self._board else ""
        self._console.print(self._board, tables.plain(f"{prefix}{outcome.text}"))
        for line in tables.advice(outcome.hint, "  "):
            self._console.print(self._board, line)

    def _report(self, item: Mapping[str, object], elapsed: float) -> None:
        if self._console.as_json:
            named = {"board": self._board, **item} if self._board else item
            self._console.print(self._board, json.dumps(named, ensure_ascii=False))
        else:
            board = f"{self._board}  " if self._board else ""
            self._console.print(self._board, tables.plain(f"{elapsed:8.1f} s  {board}{item.get('text', '')}"))


def follow(items: Iterable[JobItemAnswer], reporter: Reporter) -> InstallOutcome:
    """Report the events of a job, and return the end. Raises EdgedError as `items` does."""
    full_needed = False
    for item in items:
        match item.get("id", ""):
            case "job.progress":
                reporter.progress(item.get("bytes", 0), item.get("total"))
            case "job.alive":
                reporter.waiting(item.get("text", ""))
            case "job.ended":
                state = item.get("state", "failed")
                in_vain = full_needed and state == "refused"
                return InstallOutcome("full_needed" if in_vain else state, item.get("text", ""), item.get("hint", ""))
            case what:
                full_needed |= what == "update.full_needed"
                reporter.event(item)
    return InstallOutcome("failed", "the daemon ended before the update did", "see the result: edgectl models")


def already_present(answer: TransferAnswer, version: str, serves: str) -> InstallOutcome:
    """Return the outcome for a version installed already: in service, with `serves` as the words, or unused."""
    if unused := answer.get("unused"):
        return InstallOutcome("installed", f"{version} is installed already, but used by no pipeline", unused)
    return InstallOutcome("done", f"{version} {serves}")


def report_terms(answer: TransferAnswer, terms: InstallTerms, reporter: Reporter) -> None:
    """Report a job that was begun by another client with another time for confirmation.

    `answer` is from the daemon, with the terms of the job.
    """
    if "job" in answer and terms["confirm_within"] not in (0.0, answer.get("confirm_within")):
        reporter.step(
            "update.joined", "this version is being installed already, on other terms; your --confirm-within is ignored"
        )


class _Meter:
    """Progress, speed and time left, over the last few seconds, limited to a few redraws a second."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._drawn = 0.0

    def text(self, there: int, total: int | None, *, short: bool) -> str:
        """Return the text for the terminal; "" soon after the last text."""
        now = time.monotonic()
        if now - self._drawn < _REDRAW_SECONDS:
            return ""
        self._drawn = now
        self._marks.append((now, there))
        while now - self._marks[0][0] > _RATE_SECONDS:
            self._marks.popleft()
        if total is None:
            return tables.size(there)
        share = there / total
        if short:
            return f"{share:.0%}"
        return f"[{'#' * int(share * _BAR):{_BAR}}] {share:4.0%} of {tables.size(total)}{self._speed(there, total)}"

    def _speed(self, there: int, total: int) -> str:
        (began, first), (ended, last) = self._marks[0], self._marks[-1]
        rate = (last - first) / max(ended - began, 1e-3)
        return f"  {tables.size(int(rate))}/s, {tables.duration((total - there) / rate)} left" if rate > 0 else ""
