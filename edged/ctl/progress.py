"""How an update is told: a line for each step with its time, how far it is on the terminal's last line, and an end.

Steps go to standard output, as lines of JSON where that is asked for; the last line is drawn on standard error if that
is a terminal. Several boards may be told of at once, from a thread each.
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


class Outcome(NamedTuple):
    """How it ended: `state` is one of CODES, `text` one sentence, and `hint` what to do about it.

    full_needed: it was a delta and of no use there; nothing is known yet of the version itself.
    """

    state: str
    text: str
    hint: str = ""

    @property
    def code(self) -> int:
        """The exit code."""
        return CODES.get(self.state, exits.FAILED)


class InstallTerms(TypedDict):
    """Terms that an operator asks for; `confirm_within` is in seconds, 0 for no confirmation."""

    allow_downgrade: bool
    confirm_within: float


class Console:
    """What all tellers share: the two streams, and when it all began."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.began = time.monotonic()
        self._lock = threading.Lock()
        self._draws = sys.stderr.isatty() and not as_json
        self._places: dict[str, str] = {}

    def print(self, board: str, line: str) -> None:
        """A line that stays, of a board that has got further than the last line says."""
        with self._lock:
            self._places.pop(board, None)
            self._erase()
            print(line, flush=True)
            self._draw()

    def place(self, board: str, text: str) -> None:
        """What the last line says of a board."""
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
    """Tells of one board. `board` is its name where there are several."""

    def __init__(self, console: Console, board: str = "") -> None:
        self._console = console
        self._board = board
        self._meter = _Meter()
        self._offset: float | None = None

    def step(self, what: str, text: str) -> None:
        """Something happened here and now; `what` names its kind for ever."""
        elapsed = time.monotonic() - self._console.began
        self._report({"id": what, "text": text, "time": time.time()}, elapsed)

    def event(self, item: JobItemAnswer) -> None:
        """The daemon took a step of a job."""
        at = item.get("at", 0.0)
        if self._offset is None:  # the board's clock is another: its first step is shown as happening now
            self._offset = time.monotonic() - self._console.began - at
        self._report(item, at + self._offset)

    def progress(self, there: int, total: int | None) -> None:
        """So many bytes are at the board."""
        text = self._meter.text(there, total, short=bool(self._board))
        if text:
            self._console.place(self._board, f"{self._board} {text}" if self._board else text)

    def end(self, outcome: Outcome) -> None:
        """How it ended."""
        if self._console.as_json:
            self._report({"id": "end", "state": outcome.state, "text": outcome.text, "hint": outcome.hint}, 0.0)
            return
        prefix = f"{self._board}: " if self._board else ""
        self._console.print(self._board, tables.plain(f"{prefix}{outcome.text}"))
        for line in outcome.hint.splitlines():
            self._console.print(self._board, f"  -> {tables.plain(line)}")

    def _report(self, item: Mapping[str, object], elapsed: float) -> None:
        if self._console.as_json:
            named = {"board": self._board, **item} if self._board else item
            self._console.print(self._board, json.dumps(named, ensure_ascii=False))
        else:
            board = f"{self._board}  " if self._board else ""
            self._console.print(self._board, tables.plain(f"{elapsed:8.1f} s  {board}{item.get('text', '')}"))


def follow(items: Iterable[JobItemAnswer], reporter: Reporter) -> Outcome:
    """Tell of a job as the daemon shows it, to its end. Raises EdgedError as `items` does."""
    full_needed = False
    for item in items:
        match item.get("id", ""):
            case "job.progress":
                reporter.progress(item.get("bytes", 0), item.get("total"))
            case "job.alive":
                pass
            case "job.ended":
                state = item.get("state", "failed")
                in_vain = full_needed and state == "refused"
                return Outcome("full_needed" if in_vain else state, item.get("text", ""), item.get("hint", ""))
            case what:
                full_needed |= what == "update.full_needed"
                reporter.event(item)
    return Outcome("failed", "the daemon ended before the update did", "see how it went: edgectl models")


def already_present(answer: TransferAnswer, version: str, serves: str) -> Outcome:
    """Return the outcome where a device has the version already: it `serves` there, in these words, or is not used."""
    if unused := answer.get("unused"):
        return Outcome("installed", f"{version} is installed already, and no pipeline uses it", unused)
    return Outcome("done", f"{version} {serves}")


def report_terms(answer: TransferAnswer, terms: InstallTerms, reporter: Reporter) -> None:
    """Who `terms` to have to confirm what is brought is not to believe so where somebody else was first to bring it.

    `answer` is the daemon's, with the terms that were agreed on if there is a job.
    """
    if "job" in answer and terms["confirm_within"] not in (0.0, answer.get("confirm_within")):
        reporter.step("update.joined", "it is under way already, on the terms that it was begun with and not on these")


class _Meter:
    """How far, how fast, how long still: over the last few seconds, and not redrawn too often."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._drawn = 0.0

    def text(self, there: int, total: int | None, *, short: bool) -> str:
        """For the terminal; "" if it is too soon."""
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
