"""Postprocessing: from output tensors to outcomes, and from scores to decisions over several windows.

A call of numpy costs as much as the handling of many values in Python. Outputs of at most `FEW` elements are therefore
handled as lists, with the same results to the bit.

`Decider` makes decisions; `_Track.follow` is the whole rule for one label. Scores are float32, as in models, and
thresholds are rounded to float32 too, so that a score of 0.9 reaches a threshold of 0.9.
"""

from __future__ import annotations

from collections.abc import Callable
from math import hypot, inf, isfinite, isnan, prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import ConfigError, ModelError, some
from edged.core.manifest import Classify, Decision, Detect, Manifest, Regress
from edged.core.tensors import dequantise
from edged.core.types import Anomaly, Arrays, Classification, Outcome, Regression, Score, TensorSpec

FEW = 32
"""Number of elements up to which lists are faster than arrays."""

FEW_BEST = 8
"""Most elements to find one after another in an output of bytes; sorting is faster for more."""

BYTES = ("int8", "uint8")

Prepared = NDArray[np.float32] | None
Scores = list[float] | NDArray[np.float32]


class _Rule(Protocol):
    def __call__(self, outputs: Arrays, prepared: Prepared, time: float) -> Outcome: ...

    def reset(self) -> None: ...


class Postprocessor:
    """Conversion of a model's outputs to outcomes."""

    def __init__(self, manifest: Manifest, decision: Decision | None) -> None:
        """Set up for a checked manifest; `decision` overrides the manifest's own, unless None.

        Raises:
            ConfigError: the decision names labels unknown to the model, or can never be reached.
        """
        self._rule = _rule(manifest, decision)

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float) -> Outcome:
        """Return the outcome of a window whose last sample arrived at `time`, in monotonic seconds.

        `prepared` comes from the preprocessor, for a model whose score needs the preprocessed input.

        Raises:
            ModelError: an output is NaN or infinite.
        """
        return self._rule(outputs, prepared, time)

    def reset(self) -> None:
        """Forget all earlier windows."""
        self._rule.reset()


def _rule(manifest: Manifest, decision: Decision | None) -> _Rule:
    match manifest.postprocess:
        case Classify() as classify:
            return _Classifier(manifest, classify, decision or classify.decision)
        case Detect() as detect:
            return _Detector(manifest, detect, decision or detect.decision)
        case Regress() as regress:
            if decision is not None:
                raise ConfigError(
                    f"the model {manifest.name!r} is a regression and makes no decisions",
                    hint="delete the table `decision` of the pipeline",
                )
            return _Regressor(manifest, regress)


class _Classifier:
    def __init__(self, manifest: Manifest, classify: Classify, decision: Decision) -> None:
        self._index = classify.output
        self._spec = manifest.outputs[classify.output]
        self._activation = classify.activation
        self._top_k = classify.top_k
        count = prod(self._spec.shape)
        self._labels = (*manifest.labels, *map(str, range(len(manifest.labels), count)))
        self._values = _values(self._spec, self._activation) if count <= FEW else None
        self._decider = Decider(decision, self._labels)
        self.reset = self._decider.reset
        needs_best = self._decider.at_once and self._activation == "none" and self._spec.dtype in BYTES
        self._real_of = _real_values(self._spec) if needs_best else None
        self._best = np.zeros(count, np.float32)

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float) -> Classification:
        stored = outputs[self._index].reshape(-1)
        real, order = self._few(stored) or self._many(stored)
        labels = self._labels
        scores = tuple([Score(labels[index], float(real[index])) for index in order])
        changed = self._decider.update(real, order[0], time)
        decided = self._decider.decided
        return Classification(
            scores[0].label, scores[0].score, scores, None if decided is None else labels[decided], changed
        )

    def _few(self, stored: NDArray[Any]) -> tuple[Scores, list[int]] | None:
        """Return the scores and the indices of the best; None if there are many, or one is not finite."""
        if self._values is None:
            return None
        real = self._values(stored)
        if not hypot(*real) < inf:
            return None
        codes = stored.tolist()
        return real, sorted(range(len(codes)), key=codes.__getitem__, reverse=True)[: self._top_k]

    def _many(self, stored: NDArray[Any]) -> tuple[Scores, list[int]]:
        order = best(stored, self._top_k)
        if self._real_of is None:
            real = _activate(self._activation, dequantise(self._spec, stored))
        else:
            real = self._best  # the other elements are never read
            for index in order:
                real[index] = self._real_of[stored.item(index)]
        for index in order:
            _sound(real.item(index))
        return real, order


class _Regressor:
    def __init__(self, manifest: Manifest, regress: Regress) -> None:
        self._index = regress.output
        self._values = _values(manifest.outputs[regress.output])
        self._names = regress.names

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float) -> Regression:
        values = self._values(outputs[self._index].reshape(-1))
        if not self._names:
            return Regression([_sound(value) for value in values])
        return Regression({name: _sound(value) for name, value in zip(self._names, values, strict=True)})

    def reset(self) -> None:
        """Do nothing: a regression keeps no state."""


class _Detector:
    def __init__(self, manifest: Manifest, detect: Detect, decision: Decision) -> None:
        self._index = detect.output
        self._spec = manifest.outputs[detect.output]
        self._score = detect.score
        self._values = _values(self._spec)
        self._threshold = decision.threshold
        self._decider = Decider(decision, ("anomaly",))
        self.reset = self._decider.reset

    def __call__(self, outputs: Arrays, prepared: Prepared, time: float) -> Anomaly:
        stored = outputs[self._index].reshape(-1)
        score = self._values(stored[:1])[0] if self._score == "output" else self._error(stored, prepared)
        value = _sound(score)
        changed = self._decider.update([value], 0, time)
        return Anomaly(value, self._threshold, self._decider.decided is not None, changed)

    def _error(self, stored: NDArray[Any], prepared: Prepared) -> float:
        assert prepared is not None, "the preprocessor keeps the values for these models"
        rebuilt = dequantise(self._spec, stored)
        error = np.subtract(rebuilt, prepared.reshape(-1), out=rebuilt)
        if self._score == "mean_squared_error":
            np.multiply(error, error, out=error)
        else:
            np.abs(error, out=error)
        return float(np.add.reduce(error) / np.float32(error.size))


class Decider:
    """Decisions over several windows, for at most one label at a time, by the rules of `Decision`.

    A label with threshold 0 is a candidate while its score is the best of all. Among several decided labels the label
    with the highest score wins. If `at_once`, only the best score counts.
    """

    def __init__(self, decision: Decision, labels: tuple[str, ...]) -> None:
        """Raise ConfigError if the decision and the labels contradict each other."""
        _check(decision, labels)
        self.decided: int | None = None
        self._decision = decision
        background = set(decision.background)  # a set, since labels and background may have 100,000 entries each
        self._background = frozenset(index for index, label in enumerate(labels) if label in background)
        self._exact = [decision.thresholds.get(label, decision.threshold) or inf for label in labels]
        self._thresholds = np.array(self._exact, dtype=np.float32)
        self._bounds = (np.array(self._exact) - decision.hysteresis).astype(np.float32)
        self._lowest = self._thresholds.min().item()
        self.at_once = decision == Decision(background=decision.background)
        self._tracks: dict[int, _Track] = {}

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
                self._tracks[index] = _Track(self._decision)
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

    def _is_candidate(self, track: _Track, index: int, score: float, highest: float) -> bool:
        if self._exact[index] < inf:
            return score >= (self._bounds if track.candidate else self._thresholds).item(index)
        return score >= (np.float32(highest - self._decision.hysteresis).item() if track.candidate else highest)


class _Track:
    """History of one label.

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
        """Add one window, and return whether the label is decided now."""
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


def best(stored: NDArray[Any], k: int) -> list[int]:
    """Return the indices of the k greatest elements, greatest first; of equal elements the first comes first.

    The elements are compared as stored: quantisation and activations keep the order, and integers sort fastest.
    """
    if stored.dtype.itemsize == 1 and k <= FEW_BEST and (found := _best_bytes(stored, k)):
        return found
    ascending = stored[::-1].argsort(kind="stable")
    order: list[int] = (len(stored) - 1 - ascending[: -k - 1 : -1]).tolist()
    return order


def _best_bytes(stored: NDArray[Any], k: int) -> list[int]:
    """Return the result of `best` for bytes; [] if the lowest value, the mark of found elements, is among the best."""
    lowest = -128 if stored.dtype.kind == "i" else 0
    left = stored.copy()
    found = []
    for _ in range(k):
        index = int(left.argmax())
        if left.item(index) == lowest:
            return []
        found.append(index)
        left[index] = lowest
    return found


def _values(spec: TensorSpec, activation: str = "none") -> Callable[[NDArray[Any]], list[float]]:
    """Return a function from a stored output of one axis to the list of real values."""
    if activation == "none" and spec.dtype in BYTES and prod(spec.shape) <= FEW:
        table = _real_values(spec)
        return lambda stored: [table[code] for code in stored.tolist()]
    if activation == "none" and spec.dtype == "float32" and not spec.scale:
        return lambda stored: stored.tolist()
    return lambda stored: _activate(activation, dequantise(spec, stored)).tolist()


def _real_values(spec: TensorSpec) -> list[float]:
    """Return the real values of the codes of a byte; a negative code counts from the end."""
    table: list[float] = dequantise(spec, np.arange(256, dtype=np.uint8).view(spec.numpy_dtype)).tolist()
    return table


def _activate(activation: str, real: NDArray[np.float32]) -> NDArray[np.float32]:
    if activation == "softmax":
        real -= real.max()
        np.exp(real, out=real)
        real /= np.add.reduce(real)
    elif activation == "sigmoid":  # by tanh, which does not overflow
        real *= np.float32(0.5)
        np.tanh(real, out=real)
        real *= np.float32(0.5)
        real += np.float32(0.5)
    return real


def _sound(value: float) -> float:
    """Return the value if finite, as JSON and thresholds require, or raise ModelError."""
    if isfinite(value):
        return value
    raise ModelError(
        f"the model's output is {'NaN' if isnan(value) else 'infinite'}",
        hint="check the source's values; if they are plausible, test the model on its golden samples: edged --check",
    )


def _check(decision: Decision, labels: tuple[str, ...]) -> None:
    unknown = {*decision.thresholds, *decision.background}.difference(labels)
    if unknown:
        raise ConfigError(
            f"the decision names the label {min(unknown)!r}, which the model does not have",
            hint=f"use one of the model's labels: {some(labels, 20)}",
        )
    if len(labels) == 1 and not (decision.thresholds.get(labels[0], decision.threshold)):
        raise ConfigError(
            f"the decision has no threshold for the only label {labels[0]!r}, which would therefore always be decided",
            hint="set `threshold` to the least score that counts",
        )
    if decision.k > decision.n:
        raise ConfigError(
            f"the decision needs {decision.k} of the last {decision.n} windows", hint="make n at least as great as k"
        )
