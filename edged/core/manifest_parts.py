"""Common parts of the manifest's modules: types with bounds, the rules for decisions, and the refusal of a manifest.

Each kind of `postprocess` has a struct and a check of its own; `edged.core.manifest` joins them.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta

from edged.core.errors import BundleError
from edged.core.types import TensorSpec

MAX_ELEMENTS = 1 << 24
MAX_WORDS = 1000
MAX_NAMES = 1000
MAX_VALUES = 100_000

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}\Z")]
Version = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}\Z")]
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z"
FileName = Annotated[str, Meta(pattern=FILE_NAME)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
ShortText = Annotated[str, Meta(max_length=1000)]
Label = Annotated[str, Meta(min_length=1, max_length=200)]
# JSON has neither NaN nor infinity; these bounds keep numbers finite in float32, too.
Real = Annotated[float, Meta(ge=-1e30, le=1e30)]
Positive = Annotated[float, Meta(ge=1e-30, le=1e30)]
NotNegative = Annotated[float, Meta(ge=0, le=1e30)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
Seconds = Annotated[float, Meta(ge=1e-6, le=1e7)]


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base class of all parts of a manifest."""


class Decision(Strict, frozen=True, kw_only=True):
    """Rules for decisions from scores. [pipelines.X.decision] may override these fields, and no others.

    A label is a candidate while the score is high enough, in `k` of the last `n` windows. Of several candidates, the
    candidate with the best score is decided.

    Keys:
        threshold: Least score of a candidate. 0 stands for the window's best score: the best label is the candidate.
        thresholds: Thresholds of single labels, by label.
        hysteresis: Distance by which the score of a candidate may fall below the threshold.
        k (windows): Number of windows, among the last `n`, in which a label must be a candidate.
        n (windows): Number of latest windows that count.
        min_duration (s): Time for which a label must be a candidate before it is decided.
        cooldown (s): Time after the end of a decision during which the label is not decided again.
        background: Labels that are never decided.
    """

    threshold: Real = 0.0
    thresholds: dict[Label, Real] = {}
    hysteresis: NotNegative = 0.0
    k: Count = 1
    n: Annotated[int, Meta(ge=1, le=1000)] = 1
    min_duration: NotNegative = 0.0
    cooldown: NotNegative = 0.0
    background: tuple[Label, ...] = ()


HINT = "correct manifest.json and make the bundle again"


def refuse(place: str, problem: str) -> NoReturn:
    """Raise BundleError for the part of the manifest at `place`."""
    raise BundleError(f"manifest.json: {clipped(f'{place}: {problem}')}", hint=HINT)


def clipped(words: str) -> str:
    """Return the first MAX_WORDS characters: the text may quote a foreign manifest, and goes into logs."""
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}..."


def check_decision(decision: Decision) -> None:
    """Raise BundleError for a rule that can never be kept."""
    if decision.k > decision.n:
        refuse("postprocess.decision", f"k ({decision.k}) is more than n ({decision.n})")


def output_of(outputs: tuple[TensorSpec, ...], index: int) -> TensorSpec:
    """Return an output tensor. Raises BundleError if there is none of this index."""
    if index >= len(outputs):
        refuse("postprocess.output", f"no output {index} exists, only {len(outputs)}")
    return outputs[index]


def check_unique(place: str, names: list[str]) -> None:
    """Raise BundleError for a name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            refuse(place, f"{name!r} occurs twice")
        seen.add(name)
