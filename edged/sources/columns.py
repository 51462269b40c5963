"""Options of the sources whose sample is a row of named channels."""

from typing import Annotated

from msgspec import Meta

from edged.api import ConfigError, SourceInfo

ChannelName = Annotated[str, Meta(min_length=1, max_length=64)]
Channels = Annotated[tuple[ChannelName, ...], Meta(max_length=1024)]
Units = Annotated[tuple[Annotated[str, Meta(max_length=32)], ...], Meta(max_length=1024)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]


def row(
    channels: Channels, units: Units, rate: Rate | None, *, pace: Rate | None = None, patient: bool = False
) -> SourceInfo:
    """What a source of such samples delivers. Raises ConfigError if units do not fit channels."""
    if len(set(channels)) < len(channels):
        raise ConfigError("channels names one twice", hint="give each channel its own name")
    if units and len(units) != len(channels):
        raise ConfigError(
            f"units has {len(units)} entries for {len(channels)} channels",
            hint='give one for each channel, "" where there is none, or leave units out',
        )
    return SourceInfo(shape=(len(channels),), channels=channels, units=units, rate=rate, pace=pace, patient=patient)
