"""File of predictions, with a JSON record per line, of bounded size."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from edged.api import Prediction, Recorder, Sink, SinkConfig, SinkContext, StoreError
from edged.system.disk_space import room_hint

log = logging.getLogger("edged.sinks")


class JsonlSink(SinkConfig, frozen=True, kw_only=True):
    """Options of [sinks.X] with kind = "jsonl": a rotating file with one line of JSON for each prediction.

    At most (keep + 1) x max_bytes are used. On a full disk a line may be missing, but never
    torn. A deleted or moved file is begun again.

    Keys:
        path: File to append to. Older files are named `path`.1, `path`.2 and so on.
        max_bytes (bytes): Size at which the file is rotated.
        keep: Number of older files to keep.
    """

    path: Path
    max_bytes: Annotated[int, Meta(ge=4096, le=1 << 40)] = 10 << 20
    keep: Annotated[int, Meta(ge=0, le=1000)] = 3

    def open(self, context: SinkContext) -> Sink:
        """Open the file for appending, and make it if missing; the folder must exist."""
        return _Sink(self, Recorder(context.device, context.boot, context.clock))


class _Sink:
    def __init__(self, options: JsonlSink, recorder: Recorder) -> None:
        self._options = options
        self._recorder = recorder
        self._file = -1
        self._size = 0
        self._attempt(self._open)

    def send(self, prediction: Prediction) -> None:
        line = self._recorder.encode(prediction) + b"\n"
        self._attempt(lambda: self._append(line))

    def close(self) -> None:
        file, self._file = self._file, -1  # closed, even if close() fails
        if file >= 0:
            os.close(file)

    def _attempt(self, do: Callable[[], None]) -> None:
        try:
            do()
        except OSError as error:
            self.close()  # the next attempt opens the file again, perhaps on another disk
            hint = "check the path: the folder must exist and be writable for edged"
            if error.errno == errno.ENOSPC:
                hint = room_hint(self._options.path, "free some space")
            raise StoreError(
                f"{self._options.path} cannot be written: {error.strerror}", hint=hint, retryable=True
            ) from error

    def _open(self) -> None:
        self._file = os.open(self._options.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._file).st_size
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            self._write(b"\n")

    def _append(self, line: bytes) -> None:
        if not self._is_in_place():
            if self._file >= 0:
                log.info("%s was deleted or replaced, and is begun again", self._options.path)
            self.close()
            self._open()
        if self._size and self._size + len(line) > self._options.max_bytes:
            self._rotate()
        self._write(line)

    def _is_in_place(self) -> bool:
        """Return whether the open file is still the file at the path, neither deleted nor moved away."""
        try:
            return self._file >= 0 and os.path.samestat(self._options.path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _write(self, data: bytes) -> None:
        written = os.write(self._file, data)
        if written < len(data):
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _rotate(self) -> None:
        path, keep = self._options.path, self._options.keep
        self.close()
        names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1))]
        names[-1].unlink(missing_ok=True)
        for old, new in reversed(list(pairwise(names))):
            if old.exists():
                old.rename(new)
        self._open()
