"""Measurements by `edgectl tune` of a model on this board, and the resulting order of ways and number of threads.

A way to run a model is a delegate with one of its variants, or the CPU with a number of threads. A record holds the
measurements of each way, and the environment. A record is stale for another version of the model, another runtime or
kernel, or after a change of a delegate's library or devices: see `stale`. Then the order of the manifest and one
thread apply, as without a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.core.errors import StoreError, quantity
from edged.core.manifest_parts import Digest, Name, Version
from edged.core.ways import Choice, Way, as_in_manifest

MAX_RECORD_BYTES = 256 << 10
MAX_TEXT = 1000

WORTH = 0.9
"""Additional threads must reduce the time to less than this share."""

_Count = Annotated[int, Meta(ge=0, le=1 << 53)]
_Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_Celsius = Annotated[float, Meta(ge=-300, le=1000)]
_Text = Annotated[str, Meta(max_length=MAX_TEXT)]
_Path = Annotated[str, Meta(max_length=4096)]


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measurements of one way to run a model, or the reason of its `failure`.

    `p50` and `p99` of one inference are in seconds, over `runs` runs; `worst` is the largest difference from the CPU in
    the proof, in steps; `rss_bytes` is the memory of the whole process; `celsius_before` and `celsius_after` are
    temperatures of the board's hottest zone, or None.
    """

    delegate: Name = "cpu"
    variant: Annotated[str, Meta(max_length=64)] = ""
    threads: Annotated[int, Meta(ge=1, le=16)] = 1
    runs: _Count = 0
    p50: _Seconds = 0.0
    p99: _Seconds = 0.0
    worst: Annotated[float, Meta(ge=0)] = 0.0
    rss_bytes: _Count = 0
    celsius_before: _Celsius | None = None
    celsius_after: _Celsius | None = None
    failure: _Text = ""
    hint: _Text = ""

    @property
    def way(self) -> Way:
        """Return the delegate and variant."""
        return Way(self.delegate, self.variant)

    @property
    def title(self) -> str:
        """Return the way in words."""
        if self.delegate == "cpu":
            return f"the CPU with {quantity(self.threads, 'thread')}"
        return f"{self.delegate} ({self.variant})" if self.variant else self.delegate


class Library(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shared library of a delegate; a changed file differs in size or time."""

    path: _Path
    bytes: _Count
    mtime_ns: int


class Surroundings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Environment of a delegate: library, ids of the ready devices, and options."""

    library: Library | None
    devices: Annotated[tuple[_Text, ...], Meta(max_length=64)]
    options: Annotated[dict[_Text, _Text], Meta(max_length=64)]


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Environment of a measurement; `delegates` holds those with a variant of the model."""

    runtime: _Text
    kernel: _Text
    processors: _Count
    delegates: Annotated[dict[Name, Surroundings], Meta(max_length=64)]


class TuningRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measurements of one version of a model; `measured` is Unix time by the board's clock, for information only."""

    schema: Literal["edged.tuning/1"] = "edged.tuning/1"
    model: Name
    version: Version
    digest: Digest
    environment: Environment
    measured: float
    measurements: Annotated[tuple[Measurement, ...], Meta(min_length=1, max_length=64)]


def encode(record: TuningRecord) -> bytes:
    """Return the bytes of a record's file, indented for people to read."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode(data: bytes) -> TuningRecord:
    """Return the record in the bytes of a file.

    Raises:
        StoreError: the record is damaged, or from another version of edged.
    """
    try:
        if len(data) > MAX_RECORD_BYTES:
            raise ValueError(f"more than {MAX_RECORD_BYTES} bytes")
        return msgspec.json.decode(data, type=TuningRecord)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreError(f"the tuning record is damaged: {error}", hint="measure again: edgectl tune MODEL") from error


def stale(record: TuningRecord, digest: str, environment: Environment) -> str:
    """Return the reason why a record does not apply to this version and environment, else ""."""
    then, now = record.environment, environment
    if record.digest != digest:
        return f"the record is for version {record.version}, another version is loaded"
    if then.runtime != now.runtime:
        return f"measured with {then.runtime}, now {now.runtime}"
    if then.kernel != now.kernel:
        return f"measured under kernel {then.kernel}, now {now.kernel}"
    if then.processors != now.processors:
        return f"measured on {then.processors} processors, now {now.processors}"
    return _changed(then.delegates, now.delegates)


def choose(record: TuningRecord, ways: Sequence[Way], *, pinned: bool = False, stale: str = "") -> Choice:
    """Return the order in which to try the ways; with a stale record, the manifest's order.

    Ways that failed or are slower than the CPU are left out; for a model `pinned` to its delegate they are tried last.
    """
    if stale:
        return as_in_manifest(ways, stale)
    sound = sorted((each for each in record.measurements if not each.failure), key=lambda each: each.p50)
    cpu = _cpu([each for each in sound if each.delegate == "cpu"])
    there = [each for each in sound if each.way in ways]
    order = [each.way for each in there if pinned or cpu is None or each.p50 <= cpu.p50]
    if pinned or cpu is None:
        order += [way for way in ways if way not in order]
    ranked = sorted([*there, *([cpu] if cpu else [])], key=lambda each: (each.p50, each.delegate == "cpu"))
    return Choice(tuple(order), cpu.threads if cpu else 1, _why(ranked))


def _cpu(measured: Sequence[Measurement]) -> Measurement | None:
    """Return the measurement with the most threads that pays."""
    best: Measurement | None = None
    for each in sorted(measured, key=lambda each: each.threads):
        if best is None or each.p50 < WORTH * best.p50:
            best = each
    return best


def _why(ranked: Sequence[Measurement]) -> str:
    if not ranked:
        return "no way that was measured here works"
    first, *others = ranked
    took = "".join(f", {each.title} {each.p50 * 1e3:.3g} ms" for each in others)
    return f"measured here: {first.title} took {first.p50 * 1e3:.3g} ms{took}"


def _changed(then: Mapping[str, Surroundings], now: Mapping[str, Surroundings]) -> str:
    for name in sorted({*then, *now}):
        before, after = then.get(name), now.get(name)
        if before is None or after is None:
            return f"the delegate {name} is {'new' if before is None else 'gone'} since the measurement"
        for part in ("library", "devices", "options"):
            if getattr(before, part) != getattr(after, part):
                return f"the {part} of {name} changed since the measurement"
    return ""
