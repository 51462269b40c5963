"""Match of a source and a model, checked before either runs.

The manifest states the model's requirements and the source its properties; unstated properties match any.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edged.core.errors import ConfigError, some
from edged.core.manifest import WindowSpec
from edged.core.pictures import default_spec
from edged.core.types import SourceInfo

MAX_CHANNEL_PROBLEMS = 5


def match_source(spec: WindowSpec, info: SourceInfo, source: str, model: str) -> NDArray[np.intp] | None:
    """Return the source's columns in the model's order, or None if samples fit unchanged.

    Channels are matched by name in any order, and further channels are ignored; a source without names must have the
    same number of channels. A source of pictures fits every model of pictures. `source` and `model` are names for
    the message.

    Raises:
        ConfigError: source and model do not match; the message lists all differences, the hint the remedies.
    """
    if info.pictures:
        _match_pictures(spec, source, model)
        return None
    problems = [*_shape_problems(spec, info), *_channel_problems(spec, info), *_rate_problems(spec, info)]
    if problems:
        faults, remedies = zip(*problems, strict=True)
        raise ConfigError(
            f"the source {source!r} does not fit the model {model!r}: {'; '.join(faults)}",
            hint="; ".join(dict.fromkeys(remedies)),
        )
    if not spec.channels or not info.channels:
        return None
    columns = [info.channels.index(channel.name) for channel in spec.channels]
    return None if columns == list(range(info.shape[0])) else np.array(columns, dtype=np.intp)


def _match_pictures(spec: WindowSpec, source: str, model: str) -> None:
    if spec.length != 1 or default_spec(spec.sample_shape) is None:
        raise ConfigError(
            f"the source {source!r} delivers pictures, and the model {model!r} takes none",
            hint="name a model of pictures: its window has length 1 and a sample_shape [height, width, 1 or 3]",
        )


def _shape_problems(spec: WindowSpec, info: SourceInfo) -> list[tuple[str, str]]:
    remedy = "change the source to deliver the model's input, or name a model made for this source"
    if spec.sample_shape and info.shape != spec.sample_shape:
        return [(f"a sample has the shape {list(info.shape)}, the model takes {list(spec.sample_shape)}", remedy)]
    if not spec.channels:
        return []
    if len(info.shape) != 1:
        return [(f"a sample has the shape {list(info.shape)}, the model takes rows of channels", remedy)]
    if not info.channels and info.shape != spec.shape:
        names = some([channel.name for channel in spec.channels])
        return [
            (
                f"a sample has {info.shape[0]} columns without names, the model takes {len(spec.channels)}: {names}",
                "name the source's channels",
            )
        ]
    return []


def _channel_problems(spec: WindowSpec, info: SourceInfo) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    names = info.channels or tuple(channel.name for channel in spec.channels)
    known = set(names)
    units = dict(zip(names, info.units, strict=False))
    for channel in spec.channels:
        unit = units.get(channel.name, "")
        if channel.name not in known:
            problems.append(
                (
                    f"there is no channel {channel.name!r} among {some(names)}",
                    "name the source's channels as the model does",
                )
            )
        elif unit and channel.unit and unit != channel.unit:
            problems.append(
                (
                    f"the channel {channel.name!r} is in {unit}, the model takes {channel.unit}",
                    "change the source to deliver the model's units",
                )
            )
    more = len(problems) - MAX_CHANNEL_PROBLEMS
    if more > 0:
        _, remedy = problems[MAX_CHANNEL_PROBLEMS]
        problems[MAX_CHANNEL_PROBLEMS:] = [(f"and {more} more of the model's channels do not fit", remedy)]
    return problems


def _rate_problems(spec: WindowSpec, info: SourceInfo) -> list[tuple[str, str]]:
    if spec.rate is None or info.rate is None or abs(info.rate - spec.rate) <= spec.rate_tolerance * spec.rate:
        return []
    return [
        (
            f"the rate is {info.rate:g} samples per second, the model takes {spec.rate:g} "
            f"(within {spec.rate_tolerance * 100:g} %)",
            f"set the sensor and the source to {spec.rate:g} samples per second",
        )
    ]
