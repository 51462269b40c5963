"""Options of sources with rows of named channels as samples."""

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
    """Describe samples with these channels. Raises ConfigError if units do not match channels."""
    if len(set(channels)) < len(channels):
        raise ConfigError("channels names a channel twice", hint="give each channel a name of its own")
    if units and len(units) != len(channels):
        raise ConfigError(
            f"units has {len(units)} entries for {len(channels)} channels",
            hint='give a unit for each channel, "" for a channel without unit, or leave units out',
        )
    return SourceInfo(shape=(len(channels),), channels=channels, units=units, rate=rate, pace=pace, patient=patient)
