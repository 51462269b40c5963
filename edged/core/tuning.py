"""What `edgectl tune` measured of a model on this board, and what follows from it: the order of its ways, and threads.

A way to run a model is a delegate with one of its variants, or the CPU with a number of threads. A record holds what
each way took, and in which environment that was. It is worth nothing for another version of the model, with another
runtime or kernel, or once the delegates have other libraries or devices: `stale` says so, and then the order of the
manifest and one thread hold, as if nobody had measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from edged.core.errors import StoreError
from edged.core.manifest import Digest, Name, Version

MAX_RECORD_BYTES = 256 << 10
MAX_TEXT = 1000

WORTH = 0.9
"""More threads must take less than this share of the time that fewer take."""

Count = Annotated[int, Meta(ge=0, le=1 << 53)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Celsius = Annotated[float, Meta(ge=-300, le=1000)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Path = Annotated[str, Meta(max_length=4096)]


class Way(NamedTuple):
    """A delegate, and the variant that runs there; "" for the model's own file."""

    delegate: str
    variant: str


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way to run a model, with what it took, or with why it is none as its `failure`.

    `p50` and `p99` of one inference are in seconds, over so many `runs`; `worst` is the worst difference from the CPU
    in its proof, in steps; `rss_bytes` is the memory of the process it ran in, with all that runs there;
    `celsius_before` and `celsius_after` are the board's hottest zone, where it says.
    """

    delegate: Name = "cpu"
    variant: Annotated[str, Meta(max_length=64)] = ""
    threads: Annotated[int, Meta(ge=1, le=16)] = 1
    runs: Count = 0
    p50: Seconds = 0.0
    p99: Seconds = 0.0
    worst: Annotated[float, Meta(ge=0)] = 0.0
    rss_bytes: Count = 0
    celsius_before: Celsius | None = None
    celsius_after: Celsius | None = None
    failure: Text = ""
    hint: Text = ""

    @property
    def way(self) -> Way:
        """Where it ran."""
        return Way(self.delegate, self.variant)

    @property
    def title(self) -> str:
        """Where it ran, in words."""
        if self.delegate == "cpu":
            return f"the CPU with {self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.delegate} ({self.variant})" if self.variant else self.delegate


class Library(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shared library of a delegate; another file has another size or time."""

    path: Path
    bytes: Count
    mtime_ns: int


class Surroundings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a delegate has to work with: its library, the ids of its devices that are ready, and its options."""

    library: Library | None
    devices: Annotated[tuple[Text, ...], Meta(max_length=64)]
    options: Annotated[dict[Text, Text], Meta(max_length=64)]


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a model was measured; `delegates` are those that have something of it to run."""

    runtime: Text
    kernel: Text
    processors: Count
    delegates: Annotated[dict[Name, Surroundings], Meta(max_length=64)]


class TuningRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that was measured of one version of a model, and when: in Unix seconds by this board's clock, for people."""

    schema: Literal["edged.tuning/1"] = "edged.tuning/1"
    model: Name
    version: Version
    digest: Digest
    environment: Environment
    measured: float
    measurements: Annotated[tuple[Measurement, ...], Meta(min_length=1, max_length=64)]


class Choice(NamedTuple):
    """The accelerated ways to try, best first, how many threads the CPU is to have, and why."""

    order: tuple[Way, ...]
    threads: int
    why: str


def encode(record: TuningRecord) -> bytes:
    """The bytes of its file, indented for people to read."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode(data: bytes) -> TuningRecord:
    """The record in the bytes of a file.

    Raises:
        StoreError: it is damaged, or not of this edged.
    """
    try:
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"it is longer than {MAX_RECORD_BYTES} bytes")
        return msgspec.json.decode(data, type=TuningRecord)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreError(f"the record of what was measured is damaged: {error}", hint="edgectl tune MODEL") from error


def stale(record: TuningRecord, digest: str, environment: Environment) -> str:
    """Why a record says nothing of this version here and now; "" where it does."""
    then, now = record.environment, environment
    if record.digest != digest:
        return f"it was measured for version {record.version}, and this is another one"
    if then.runtime != now.runtime:
        return f"it was measured with {then.runtime}, and this is {now.runtime}"
    if then.kernel != now.kernel:
        return f"it was measured under the kernel {then.kernel}, and this is {now.kernel}"
    if then.processors != now.processors:
        return f"it was measured on {then.processors} processors, and here are {now.processors}"
    return _changed(then.delegates, now.delegates)


def choose(record: TuningRecord | None, ways: Sequence[Way], *, pinned: bool = False, stale: str = "") -> Choice:
    """In which order to try the ways there are; without a record, or with one that is `stale`, that of the manifest.

    What is slower than the CPU, or failed, is not tried; where a model is `pinned` to its delegate, it is tried last.
    """
    if record is None or stale:
        return Choice(tuple(ways), 1, f"as the manifest says: {stale or 'edgectl tune has not measured it here'}")
    sound = sorted((each for each in record.measurements if not each.failure), key=lambda each: each.p50)
    cpu = _cpu([each for each in sound if each.delegate == "cpu"])
    there = [each for each in sound if each.way in ways]
    order = [each.way for each in there if pinned or cpu is None or each.p50 <= cpu.p50]
    if pinned or cpu is None:
        order += [way for way in ways if way not in order]
    ranked = sorted([*there, *([cpu] if cpu else [])], key=lambda each: (each.p50, each.delegate == "cpu"))
    return Choice(tuple(order), cpu.threads if cpu else 1, _why(ranked))


def _cpu(measured: Sequence[Measurement]) -> Measurement | None:
    """The number of threads that is worth it."""
    best: Measurement | None = None
    for each in sorted(measured, key=lambda each: each.threads):
        if best is None or each.p50 < WORTH * best.p50:
            best = each
    return best


def _why(ranked: Sequence[Measurement]) -> str:
    if not ranked:
        return "nothing that was measured here works"
    first, *others = ranked
    took = "".join(f", {each.title} {each.p50 * 1e3:.3g} ms" for each in others)
    return f"measured here: {first.title} took {first.p50 * 1e3:.3g} ms{took}"


def _changed(then: Mapping[str, Surroundings], now: Mapping[str, Surroundings]) -> str:
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before is None or after is None:
            return f"the delegate {name} is {'new' if before is None else 'gone'} since it was measured"
        for part in ("library", "devices", "options"):
            if getattr(before, part) != getattr(after, part):
                return f"the {part} of {name} changed since it was measured"
    return ""
