"""Cameras in `edgectl devices`: formats, sizes, rates and controls, as the options of kind = "camera" want them."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from typing import TypedDict

from edged.core.errors import some
from edged.ctl import tables
from edged.sources.camera import LETTERS, refusal
from edged.sources.v4l2 import VideoControl, VideoDevice, VideoFormat, VideoKernel

_COLUMNS = ("CAMERA", "STATE", "DESCRIPTION")


class SizeRow(TypedDict):
    """Size of pictures; `rates` are pictures a second."""

    width: int
    height: int
    rates: list[float]


class FormatRow(TypedDict):
    """Format of pictures. `format` is the option's value, None for a format that edged cannot read."""

    letters: str
    format: str | None
    sizes: list[SizeRow]


class ControlRow(TypedDict):
    """Control of a camera."""

    name: str
    least: int
    most: int
    step: int
    default: int


class CameraRow(TypedDict):
    """A camera as `edgectl devices --json` prints it, after the delegates."""

    name: str
    kind: str
    title: str
    state: str
    problem: str
    hint: str
    formats: list[FormatRow]
    controls: list[ControlRow]


def camera_rows(paths: Iterable[str], kernel: VideoKernel | None = None) -> list[CameraRow]:
    """Return the row of each camera among the files of Video4Linux; decoders and the like have such files, too."""
    kernel = kernel or VideoKernel()
    return [row for path in paths if (row := _row(path, kernel))]


def _row(path: str, kernel: VideoKernel) -> CameraRow | None:
    try:
        device = VideoDevice(path, kernel)
        try:
            return _described(path, device) if device.is_camera else None
        finally:
            device.close()
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return None
        reason = refusal(path, error)
        state = "no permission" if error.errno in (errno.EACCES, errno.EPERM) else "fails"
        return {
            "name": path, "kind": "camera", "title": "", "state": state, "problem": reason.message, "hint": reason.hint,
            "formats": [], "controls": [],
        }  # fmt: skip


def _described(path: str, device: VideoDevice) -> CameraRow:
    return {
        "name": path,
        "kind": "camera",
        "title": device.card,
        "state": "ready",
        "problem": "",
        "hint": "",
        "formats": [_format(each) for each in device.formats()],
        "controls": [_control(each) for each in device.controls()],
    }


def _format(found: VideoFormat) -> FormatRow:
    readable = {letters: name for name, letters in LETTERS.items()}
    sizes: list[SizeRow] = [
        {"width": size.width, "height": size.height, "rates": sorted(size.rates)} for size in found.sizes
    ]
    return {"letters": found.letters, "format": readable.get(found.letters), "sizes": sizes}


def _control(found: VideoControl) -> ControlRow:
    return {
        "name": found.name, "least": found.least, "most": found.most, "step": found.step, "default": found.default,
    }  # fmt: skip


def camera_lines(rows: list[CameraRow]) -> Iterator[str]:
    """Yield the table of cameras, with formats and controls below each; nothing without a camera."""
    if not rows:
        return
    body = tables.table(_COLUMNS, [(row["name"], row["state"], row["title"] or "-") for row in rows])
    yield f"  {next(body)}"
    for row, line in zip(rows, body, strict=True):
        yield f"{tables.dot('running' if row['state'] == 'ready' else 'failed')} {line}"
        if row["problem"]:
            yield f"      {tables.plain(row['problem'])}"
            yield f"      -> {tables.plain(row['hint'])}"
        for each in row["formats"]:
            sizes = [_size_words(size) for size in each["sizes"]]
            name = each["format"] or f"{each['letters']} (edged cannot read it)"
            yield f"      {tables.plain(name)}: {some(sizes, 20) or 'any size'}"
        if row["controls"]:
            words = [f"{each['name']} {each['least']} to {each['most']}" for each in row["controls"]]
            yield f"      controls: {tables.plain(some(words, 40))}"


def _size_words(size: SizeRow) -> str:
    rates = "/".join(f"{rate:g}" for rate in size["rates"])
    return f"{size['width']}x{size['height']}" + (f" at {rates}" if rates else "")
