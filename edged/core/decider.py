"""Decisions from scores over several windows.

`Track.follow` is the whole rule for a label. Scores are float32, as in models, and thresholds are rounded to float32
too: a score of 0.9 reaches a threshold of 0.9.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import ConfigError, some
from edged.core.manifest_parts import Decision

Scores = list[float] | NDArray[np.float32]


class Decider:
    """Decisions over several windows, for at most one label at a time, by the rules of `Decision`.

    A label with threshold 0 is a candidate while its score is the best of all. Among several decided labels the label
    with the highest score wins. If `at_once`, only the best score counts.
    """

    def __init__(self, decision: Decision, labels: tuple[str, ...]) -> None:
        """Raise ConfigError if the decision and the labels contradict each other."""
        check_labels(decision, labels)
        self.decided: int | None = None
        self._decision = decision
        background = set(decision.background)  # a set, since labels and background may have 100,000 entries each
        self._background = frozenset(index for index, label in enumerate(labels) if label in background)
        self._exact = [decision.thresholds.get(label, decision.threshold) or inf for label in labels]
        self._thresholds = np.array(self._exact, dtype=np.float32)
        self._bounds = (np.array(self._exact) - decision.hysteresis).astype(np.float32)
        self._lowest = self._thresholds.min().item()
        self.at_once = decision == Decision(background=decision.background)
        self._tracks: dict[int, Track] = {}

    def update(self, scores: Scores, best: int, time: float) -> bool:
        """Add the scores of all labels; `best` is the index of the highest. Return whether `decided` has changed."""
        before = self.decided
        if self.at_once:
            self.decided = None if best in self._background else best
        else:
            self.decided = self._follow(scores, best, time)
        return self.decided != before

    def reset(self) -> None:
        """Forget all earlier windows."""
        self.decided = None
        self._tracks.clear()

    def _follow(self, scores: Scores, best: int, time: float) -> int | None:
        highest = float(scores[best])
        for index in self._entering(scores, best, highest):
            if index not in self._tracks:
                self._tracks[index] = Track(self._decision)
        winner, won = None, -inf
        for index, track in sorted(self._tracks.items()):
            score = float(scores[index])
            if track.follow(self._is_candidate(track, index, score, highest), time):
                if winner is None or score > won:
                    winner, won = index, score
            elif track.is_idle(time):
                del self._tracks[index]
        return winner

    def _entering(self, scores: Scores, best: int, highest: float) -> list[int]:
        entering = [best] if self._exact[best] == inf else []
        if highest >= self._lowest:
            if isinstance(scores, list):
                least, lowest = self._thresholds, self._lowest
                entering += [
                    index for index, score in enumerate(scores) if score >= lowest and score >= least.item(index)
                ]
            else:
                entering += np.flatnonzero(scores >= self._thresholds).tolist()
        return [index for index in entering if index not in self._background]

    def _is_candidate(self, track: Track, index: int, score: float, highest: float) -> bool:
        if self._exact[index] < inf:
            return score >= (self._bounds if track.candidate else self._thresholds).item(index)
        return score >= (np.float32(highest - self._decision.hysteresis).item() if track.candidate else highest)


class Track:
    """History of a label.

    `history` has a bit for each of the last n windows, the latest lowest: 1 if the label was a candidate. `since` is
    the time from which k of them were 1 without interruption, `ended` the end of the last decision for the label.
    """

    __slots__ = ("candidate", "decided", "decision", "ended", "history", "since")

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.candidate = False
        self.history = 0
        self.since: float | None = None
        self.decided = False
        self.ended = -inf

    def follow(self, candidate: bool, time: float) -> bool:
        """Add a window, and return whether the label is decided now."""
        rules = self.decision
        self.candidate = candidate
        self.history = (self.history << 1 | candidate) & ((1 << rules.n) - 1)
        if self.history.bit_count() < rules.k:
            self.ended = time if self.decided else self.ended
            self.decided = False
            self.since = None
            return False
        if self.since is None:
            self.since = time
        if not self.decided:
            self.decided = time - self.since >= rules.min_duration and time - self.ended >= rules.cooldown
        return self.decided

    def is_idle(self, time: float) -> bool:
        """Return whether the track holds no information and may be deleted."""
        return not self.history and time - self.ended >= self.decision.cooldown


def refuse_strangers(named: Iterable[str], labels: tuple[str, ...]) -> None:
    """Raise ConfigError if the decision names a label that the model does not have."""
    unknown = set(named).difference(labels)
    if unknown:
        raise ConfigError(
            f"the decision names the label {min(unknown)!r}, which the model does not have",
            hint=f"use one of the model's labels: {some(labels, 20)}",
        )


def refuse_impossible(decision: Decision) -> None:
    """Raise ConfigError if the decision asks for more windows than it looks at."""
    if decision.k > decision.n:
        raise ConfigError(
            f"the decision needs {decision.k} of the last {decision.n} windows", hint="make n at least as great as k"
        )


def check_labels(decision: Decision, labels: tuple[str, ...]) -> None:
    """Raise ConfigError if a decision and labels contradict each other."""
    refuse_strangers({*decision.thresholds, *decision.background}, labels)
    if len(labels) == 1 and not (decision.thresholds.get(labels[0], decision.threshold)):
        raise ConfigError(
            f"the decision has no threshold for the only label {labels[0]!r}, which would therefore always be decided",
            hint="set `threshold` to the least score that counts",
        )
    refuse_impossible(decision)
