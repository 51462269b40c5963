"""Health of a board below /sys: supply voltage, throttling, temperature, and wear of the eMMC.

Each function reads below a root, which tests replace, and returns None if the board gives no answer. Plain SD cards
report no wear.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_THROTTLED = "devices/platform/soc*/*:firmware/get_throttled"
_BITS = {
    0: "the supply voltage is too low",
    1: "the clock is capped",
    2: "the processor is throttled",
    3: "the temperature limit is reached",
}
_EARLIER = 16
"""Distance of each bit to its twin, which stays set until the next boot."""

_NEARLY_WORN_OUT = 9
"""In tenths of the life an eMMC is made for."""


class Throttling(NamedTuple):
    """Causes that slow a Raspberry Pi down, in words: `now`, and `earlier` since power-on."""

    now: tuple[str, ...]
    earlier: tuple[str, ...]


class EmmcWear(NamedTuple):
    """Used life of an eMMC in tenths, rounded up, of the worse of the two areas; 11 is more than all.

    `worn` is true if the eMMC should be replaced: by the used life, or for lack of reserve blocks.
    """

    device: str
    tenths: int
    worn: bool


def throttling(sys: Path) -> Throttling | None:
    """Return the firmware's flags, as documented for `vcgencmd get_throttled` of the Raspberry Pi."""
    try:
        flags = int(next(sys.glob(_THROTTLED)).read_text(), 16)
    except (StopIteration, OSError, ValueError):
        return None
    return Throttling(
        tuple(text for bit, text in _BITS.items() if flags >> bit & 1),
        tuple(text for bit, text in _BITS.items() if flags >> bit + _EARLIER & 1),
    )


def temperature(sys: Path) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    readings = list(_readings(sys))
    return max(readings) / 1000 if readings else None


def _readings(sys: Path) -> Iterator[int]:
    for file in sys.glob("class/thermal/thermal_zone*/temp"):
        try:
            yield int(file.read_text())
        except (OSError, ValueError):  # a disabled zone gives an error
            continue


def wear(sys: Path) -> tuple[EmmcWear, ...]:
    """The wear of each eMMC, from the life time estimations and the pre-EOL information of JEDEC eMMC 5.0."""
    return tuple(_wear(life) for life in sorted(sys.glob("block/mmcblk?/device/life_time")) if _estimates(life))


def _wear(life: Path) -> EmmcWear:
    tenths = max(_estimates(life))
    reserve = _estimates(life.with_name("pre_eol_info"))
    return EmmcWear(life.parts[-3], tenths, tenths > _NEARLY_WORN_OUT or max(reserve, default=0) > 1)


def _estimates(file: Path) -> list[int]:
    try:
        return [int(word, 16) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
