"""Record of the retained topics of this board, in announced.json of the state folder.

A broker retains messages of former configurations: states of a renamed device or a removed pipeline, an announcement to
Home Assistant. Only a board with a record of the topics can clear them, so each topic is recorded before the first
message. The record survives restarts, and edits of the configuration while the daemon is stopped.

The record also has the boots of this board, to distinguish its own retained state from the state of another board with
the same name, and the random part of the MQTT client id.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Annotated

import msgspec
from msgspec import Meta

from edged.core.errors import StoreError
from edged.models.atomic_files import Disk

log = logging.getLogger("edged.daemon")

MAX_BYTES = 4 << 20
MAX_BOOTS = 100
"""Restarts without a broker after which a board takes its own retained state for another board's."""


class _Record(msgspec.Struct):
    client: Annotated[str, Meta(pattern=r"^[0-9a-f]{6}\Z")]
    boots: list[str] = []
    broker: str = ""
    topics: list[str] = []
    components: dict[str, str] = {}


class Announced:
    """The record of one board. `boots` ends with the present run of the daemon; `client` never changes.

    A separate thread writes the file, so that no caller waits for a disk that hangs; `flush` waits for the thread.
    """

    def __init__(self, folder: Path, boot: str, disk: Disk | None = None) -> None:
        self._file = folder / "announced.json"
        self._disk = disk or Disk()
        self._record = self._read() or _Record(os.urandom(3).hex())
        self._record.boots = [*self._record.boots, boot][-MAX_BOOTS:]
        self._expected: set[str] = set()
        self._complained = False
        self._lock = Lock()
        self._dirty = Event()
        self._written = Event()
        self._written.set()
        self._thread = Thread(target=self._write, name="announced", daemon=True)

    @property
    def client(self) -> str:
        """Return six hexadecimal digits, different on every board except for copies of a state folder."""
        return self._record.client

    @property
    def boots(self) -> Collection[str]:
        """Return the ids of the runs of this board's daemon."""
        return self._record.boots

    @property
    def topics(self) -> set[str]:
        """Return the topics under which the broker may retain messages of this board."""
        return set(self._record.topics)

    @property
    def components(self) -> dict[str, str]:
        """Return the components of this board in Home Assistant, platform by id."""
        return dict(self._record.components)

    def expect(self, broker: str, topics: set[str]) -> set[str]:
        """Record the topics of the present configuration, and return the broker's topics of earlier configurations."""
        known = self.topics if broker == self._record.broker else set()
        self._expected = topics
        with self._lock:
            self._record.broker = broker
            self._record.topics = sorted(known | topics)
        self._save()
        return known - topics

    def settle(self, is_clear: Callable[[str], bool], components: dict[str, str]) -> None:
        """Remove the topics for which `is_clear` is true, and replace the components."""
        left = sorted(topic for topic in self._record.topics if topic in self._expected or not is_clear(topic))
        if (left, components) != (self._record.topics, self._record.components):
            with self._lock:
                self._record.topics, self._record.components = left, components
            self._save()

    def keep(self) -> None:
        """Write the file again after another program has deleted or replaced the file."""
        if self._thread.ident is not None and self._written.is_set() and self._content() != self._encoded():
            self._save()

    def flush(self, seconds: float) -> bool:
        """Wait up to `seconds` until the record is on disk, and return True if it is."""
        return self._written.wait(seconds)

    def _read(self) -> _Record | None:
        """Return the record in the file; None if the file is missing or damaged."""
        try:
            with self._file.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=_Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning(
                "%s cannot be read; messages that the broker retains from former configurations stay there: %s",
                self._file,
                error,
            )
            return None

    def _content(self) -> bytes:
        try:
            with self._file.open("rb") as file:
                return file.read(MAX_BYTES)
        except OSError:
            return b""

    def _encoded(self) -> bytes:
        with self._lock:
            return msgspec.json.encode(self._record)

    def _save(self) -> None:
        with self._lock:
            self._written.clear()
            self._dirty.set()
        if self._thread.ident is None:
            self._thread.start()

    def _write(self) -> None:
        """Replace the file after each change of the record. The first failure is logged, and ends nothing."""
        while self._dirty.wait():
            self._dirty.clear()
            try:
                self._disk.make_folder(self._file.parent)
                self._disk.replace(self._file, self._encoded())
            except StoreError as error:
                if not self._complained:
                    log.warning(
                        "%s cannot be written, and old topics may stay at the broker: %s",
                        self._file,
                        error,
                    )
                self._complained = True
            with self._lock:
                if not self._dirty.is_set():
                    self._written.set()
