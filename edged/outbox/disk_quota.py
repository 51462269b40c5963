"""Limits of a spool's file: segments on disk only are deleted or thinned by age and by size."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from edged.outbox.options import Policy
from edged.outbox.segment_file import SegmentFile


class Removed(NamedTuple):
    """Messages of an origin deleted from the file, and the reason."""

    origin: str
    reason: str
    messages: int


class FileLimits(NamedTuple):
    """Limits of a file: its bytes, the number of messages to remove, and the time before which messages of `boot`
    expire.
    """

    bytes: int
    excess: int
    boot: str
    oldest: float | None


def make_room(
    file: SegmentFile,
    limits: FileLimits,
    policy: Callable[[str], Policy],
    on_disk: dict[str, int],
    in_use: Collection[int],
) -> list[Removed]:
    """Delete expired messages and messages beyond the limits, within a transaction of the caller.

    `on_disk` is the number of messages on disk only, by origin. Segments with keys `in_use` stay.
    """
    removed = [] if limits.oldest is None else _remove_outdated(file, limits.boot, limits.oldest, in_use)
    left = dict(on_disk)
    excess = limits.excess
    for each in removed:
        left[each.origin] = left.get(each.origin, 0) - each.messages
        excess -= each.messages
    while excess > 0 or file.used_bytes > limits.bytes:
        if not (victims := [origin for origin in left if left[origin] > 0]):
            break
        origin = max(victims, key=lambda each: (-policy(each).priority, left[each]))
        rule = policy(origin)
        if rule.drop == "thin":
            taken = _thin(file, origin, in_use, rule.keep_every)
        else:
            taken = _remove_one(file, origin, in_use, newest=rule.drop == "newest")
        if not taken.messages:
            left[origin] = 0
            continue
        removed.append(taken)
        left[origin] -= taken.messages
        excess -= taken.messages
    return removed


def _remove_one(file: SegmentFile, origin: str, in_use: Collection[int], *, newest: bool) -> Removed:
    found = file.next(origin, in_use, newest=newest)
    if found is None:
        return Removed(origin, "full", 0)
    file.remove([found[0]])
    return Removed(origin, "full", found[1])


def _thin(file: SegmentFile, origin: str, in_use: Collection[int], keep_every: int) -> Removed:
    """Merge neighbouring segments, keeping every `keep_every`th message."""
    neighbours = file.least_thinned(origin, in_use, keep_every)
    segments = [segment for key, _ in neighbours if (segment := file.read(key))]
    messages = [message for segment in segments for message in segment.messages]
    kept = messages[::keep_every] if len(messages) > 1 else []
    file.remove([key for key, _ in neighbours])
    if kept:
        file.put(segments[0]._replace(messages=kept, level=segments[0].level + 1))
    return Removed(origin, "thinned", sum(number for _, number in neighbours) - len(kept))


def _remove_outdated(file: SegmentFile, boot: str, oldest: float, in_use: Collection[int]) -> list[Removed]:
    found = file.outdated(boot, oldest, in_use)
    file.remove([key for key, _, _ in found])
    return [Removed(origin, "expired", number) for _, origin, number in found]
