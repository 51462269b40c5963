"""Options of sources whose samples are lines of text or binary frames: core/framing.py decodes them."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edged.api import ConfigError, SourceConfig
from edged.core.framing import (
    Checksum,
    Crc,
    Decoder,
    Lines,
    Signal,
    binary_decoder,
    csv_decoder,
    json_decoder,
)
from edged.sources.columns import ChannelName, Channels, Rate, Units

_OPTIONS_OF = {
    "csv": ("separator", "columns", "comment", "prefix", "select", "crc"),
    "json": ("columns", "comment", "prefix", "select"),
    "binary": ("struct", "fields", "sync", "cobs", "crc", "crc_range"),
}
_OPTIONS_OF_SOME = {option: None for options in _OPTIONS_OF.values() for option in options}

Beginning = Annotated[str, Meta(min_length=1, max_length=64)]
Beginnings = Beginning | Annotated[tuple[Beginning, ...], Meta(max_length=64)]
Hex = Annotated[str, Meta(pattern=r"^([0-9A-Fa-f]{2}){0,8}\Z")]
PerChannel = float | Annotated[tuple[float, ...], Meta(max_length=1024)]


class FramedSource(SourceConfig, frozen=True, kw_only=True):
    """Options of samples in lines or frames.

    Keys:
        units: Units of the channels after `scale` and `offset`, in the same order.
        scale: Factor for each sent value; a single number, or a number for each channel.
        offset: Number to add after `scale`; a single number, or a number for each channel.
        sequence: Column or field with a counter of the samples, by which lost samples are noticed.
        sequence_modulus: Number of samples before the counter starts again from 0; 0 for never. A binary counter starts
            again at the width of the field.
        separator: With "csv", the text between two numbers; " " stands for any blanks.
        columns: With "csv" or "json", names of all columns of a line, in their order. Default: `sequence`, if given,
            and the channels.
        struct: With "binary", layout of a frame in the notation of Python's struct module, for example "<H6h".
        fields: With "binary", names of the items of `struct`, in their order.
        sync: With "binary", first bytes of a frame, in hexadecimal.
        cobs: With "binary", frames are encoded by COBS and parted by zero bytes.
        crc: Checksum of a frame, after the struct and in the same byte order: "crc8" (SMBus), "crc16-ccitt" (from
            0xFFFF), "crc16-modbus", "crc32" (Ethernet), "sum8", "sum8-negated" (all bytes add up to 0), "sum16" or
            "xor8". With "csv", "nmea": each line begins with $ or ! and ends with * and a checksum.
        crc_range (bytes): With "binary", range of the frame for `crc`: the first byte, and the byte after the last.
            Default: the struct.
        end: Last bytes of a line, or bytes after the checksum of a frame, in hexadecimal. Default: CR, LF or both end a
            line.
        comment: Beginning of lines to pass over; a text or a list.
        prefix: Beginning of the lines to take, not part of the sample; a text or a list.
        select: Table of columns or keys and their required values, for example {type = "imu"}.
    """

    channels: Channels
    units: Units = ()
    rate: Rate | None = None
    format: str
    scale: PerChannel = 1.0
    offset: PerChannel = 0.0
    sequence: Annotated[str, Meta(max_length=64)] = ""
    sequence_modulus: Annotated[int, Meta(ge=0, le=1 << 62)] = 0
    separator: Annotated[str, Meta(min_length=1, max_length=8)] = ","
    columns: Channels = ()
    struct: Annotated[str, Meta(max_length=1000)] = ""
    fields: Annotated[tuple[ChannelName, ...], Meta(max_length=4096)] = ()
    sync: Hex = ""
    cobs: bool = False
    crc: Crc | Literal["nmea"] = "none"
    crc_range: tuple[int, int] | None = None
    end: Hex = ""
    comment: Beginnings = "#"
    prefix: Beginnings = ()
    select: Annotated[dict[ChannelName, Annotated[str, Meta(max_length=200)]], Meta(max_length=64)] = {}  # noqa: RUF012, msgspec copies it

    def decoder(self) -> Decoder:
        """Return a decoder of the options. Raises ConfigError if the options contradict each other."""
        self._refuse_options_of_other_formats()
        signal = Signal(
            channels=self.channels,
            sequence=self.sequence,
            modulus=self.sequence_modulus,
            scale=self.scale,
            offset=self.offset,
        )
        end = bytes.fromhex(self.end)
        if self.format == "binary":
            return self._binary_decoder(signal, end)
        if self.crc not in ("none", "nmea"):
            raise ConfigError(f'crc = "{self.crc}" is for format = "binary"', hint='lines may have crc = "nmea"')
        lines = Lines(
            end=end,
            comment=_beginnings(self.comment),
            prefix=_beginnings(self.prefix),
            select=self.select,
            nmea=self.crc == "nmea",
        )
        if self.format == "csv":
            return csv_decoder(signal, self.columns, separator=self.separator, lines=lines)
        return json_decoder(signal, self.columns, lines=lines)

    def _binary_decoder(self, signal: Signal, end: bytes) -> Decoder:
        if bool(self.sync) == self.cobs:
            raise ConfigError(
                "binary frames need either sync or cobs",
                hint='state how frames begin: sync = "aa55", or cobs = true',
            )
        if self.crc == "nmea":
            raise ConfigError('crc = "nmea" is for format = "csv"', hint="name the checksum of the frame, or none")
        check = Checksum(crc=self.crc, range=self.crc_range, end=end)
        return binary_decoder(signal, self.struct, self.fields, sync=bytes.fromhex(self.sync), check=check)

    def _refuse_options_of_other_formats(self) -> None:
        set_here = changed(self)
        for option in _OPTIONS_OF_SOME:
            if option in set_here and option not in _OPTIONS_OF[self.format]:
                formats = " or ".join(f'"{name}"' for name, options in _OPTIONS_OF.items() if option in options)
                raise ConfigError(
                    f'{option} means nothing for format = "{self.format}"', hint=f"use {option} with format = {formats}"
                )


def changed(options: SourceConfig) -> list[str]:
    """Return the names of the options with another value than the default."""
    return [field.name for field in msgspec.structs.fields(options) if getattr(options, field.name) != _default(field)]


def _default(field: msgspec.structs.FieldInfo) -> object:
    return {} if field.default is msgspec.NODEFAULT else field.default


def _beginnings(option: str | tuple[str, ...]) -> tuple[str, ...]:
    return (option,) if isinstance(option, str) else option
