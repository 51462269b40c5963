"""What this board has told a broker of itself, kept in announced.json of the state folder.

A broker retains what was said under a former configuration: the states of a device that was renamed, of a pipeline that
was removed, the announcement to Home Assistant. Whoever has forgotten the names cannot take them back, so they are kept
before they are said, through restarts and edits of the configuration while the daemon is stopped.

Kept beside them are the boots of this board, by which it knows its own retained state from that of another board with
the same name, and the part of its MQTT client id that is unlike on any two boards.
"""

from __future__ import annotations

import logging
import secrets
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
"""So many restarts in a row without a broker, and a board takes its own last state there for another board's."""


class _Record(msgspec.Struct):
    client: Annotated[str, Meta(pattern=r"^[0-9a-f]{6}\Z")]
    boots: list[str] = []
    broker: str = ""
    topics: list[str] = []
    components: dict[str, str] = {}


class Announced:
    """The record of one board. `boots` are those of its daemon, this one last; `client` is its own for ever.

    The file is written by a thread of its own, so that a disk that hangs holds up nobody; `flush` waits for it.
    """

    def __init__(self, folder: Path, boot: str, disk: Disk | None = None) -> None:
        self._file = folder / "announced.json"
        self._disk = disk or Disk()
        self._record = self._read() or _Record(secrets.token_hex(3))
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
        """Six hexadecimal digits that no two boards share, unless one has a copy of the other's state folder."""
        return self._record.client

    @property
    def boots(self) -> Collection[str]:
        """The ids of the runs of this board's daemon."""
        return self._record.boots

    @property
    def topics(self) -> set[str]:
        """Where the broker may retain something of this board."""
        return set(self._record.topics)

    @property
    def components(self) -> dict[str, str]:
        """What Home Assistant may still show of this board: platform by id."""
        return dict(self._record.components)

    def expect(self, broker: str, topics: set[str]) -> set[str]:
        """Keep what is about to be told to a broker; the topics that this one was told of earlier and are over now."""
        known = self.topics if broker == self._record.broker else set()
        self._expected = topics
        with self._lock:
            self._record.broker = broker
            self._record.topics = sorted(known | topics)
        self._save()
        return known - topics

    def settle(self, is_clear: Callable[[str], bool], components: dict[str, str]) -> None:
        """Keep no more what the broker has cleared, and of Home Assistant's components only these."""
        left = sorted(topic for topic in self._record.topics if topic in self._expected or not is_clear(topic))
        if (left, components) != (self._record.topics, self._record.components):
            with self._lock:
                self._record.topics, self._record.components = left, components
            self._save()

    def keep(self) -> None:
        """Write the file again if somebody has deleted or replaced it."""
        if self._thread.ident is not None and self._written.is_set() and self._content() != self._encoded():
            self._save()

    def flush(self, seconds: float) -> bool:
        """Wait until the file is as the record is, for so many seconds at most; whether it is."""
        return self._written.wait(seconds)

    def _read(self) -> _Record | None:
        """The record; None where there is none. One that is damaged is as good as none, and the log says so."""
        try:
            with self._file.open("rb") as file:
                return msgspec.json.decode(file.read(MAX_BYTES), type=_Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning(
                "%s cannot be read, and what the broker retains of former names is unknown: %s", self._file, error
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
        """Replace the file whenever the record has changed. Where that cannot be, say so once, and go on without."""
        while self._dirty.wait():
            self._dirty.clear()
            try:
                self._disk.make_folder(self._file.parent)
                self._disk.replace(self._file, self._encoded())
            except StoreError as error:
                if not self._complained:
                    log.warning("what is told to the broker cannot be kept: %s", error)
                self._complained = True
            with self._lock:
                if not self._dirty.is_set():
                    self._written.set()
