"""What an update is to whoever asks for it and waits: what was asked, the steps as they are taken, and how it ended.

The updater makes and ends jobs (models/updater.py); a fetch is one before its bytes are here, and the same one after.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from edged.core.container import Head
from edged.core.decide import VersionFault
from edged.core.ledger import Ledger
from edged.core.record import Phase
from edged.models.bare_file import Bare


class InstallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked of an install.

    `origin` says where the container came from, and `asked_by` who asks, as the kernel knows them. It is a bare file
    where it is said what that is for. Who asks for `confirm_within` seconds has that long, from when the version
    serves, to confirm it; else it is reverted.
    """

    origin: str = ""
    asked_by: str = ""
    bare: Bare | None = None
    allow_downgrade: bool = False
    confirm_within: float = 0.0


class Wanted(msgspec.Struct, frozen=True):
    """Which version is asked for, "" for any.

    Keys:
        digest: SHA-256 of its manifest, or of a bare file.
        version: Number of a version with a manifest. A bare file has none of its own.
    """

    digest: str = ""
    version: str = ""


ANY = Wanted()
"""Whatever there is."""

NAME_IT = "name the model in a pipeline, then: edgectl reload"
"""The hint for a version that was installed and that no pipeline uses."""

Ending = Literal["done", "installed", "refused", "failed", "rolled_back"]
JobState = Literal["running"] | Ending
Outcome = Literal[""] | Ending


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A step that was taken. `id` names its kind for ever; `time` is CLOCK_MONOTONIC seconds.

    It is about a `version` with this `digest`, "" where it is about none or that is not known yet, which is in this
    `phase` from then on; its last step has an `outcome`. While it comes, `bytes` of `total` are here.
    """

    id: str
    model: str
    text: str
    time: float
    version: str = ""
    digest: str = ""
    phase: Phase = ""
    outcome: Outcome = ""
    bytes: int | None = None
    total: int | None = None


@dataclass(eq=False)
class Job:
    """An update as it goes. `state` and `text`, one sentence for a person, are final once it is `ended`.

    done: it answers. installed: it would, but no pipeline uses the model. refused: it may not come in. failed: it may,
    and does not work here. rolled_back: it served, and had to go.
    `fetched` says that all of it has come from a URL. `released` is set once the container is not needed any more.
    """

    id: str
    options: InstallOptions
    model: str = ""
    version: str = ""
    digest: str = ""
    state: JobState = "running"
    text: str = ""
    hint: str = ""
    fetched: bool = False
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=100))
    released: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def name(self, head: Head) -> None:
        """Say which version it brings."""
        self.model, self.version, self.digest = head.manifest.name, head.manifest.version, head.digest

    def end(self, state: Ending, text: str, hint: str = "") -> None:
        """It is over; the first word on that is the last."""
        if self.ended.is_set():
            return
        self.state, self.text, self.hint = state, text, hint
        self.released.set()
        self.ended.set()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a model stands: what serves, what the ledger says, and which versions are out of order in this run.

    `active` is the number of the version that an update would follow, and `named` that which the configuration has the
    model stay with, "" for any. `factory` are the numbers of the factory's versions by digest.
    """

    name: str
    serving: str | None
    active: str
    ledger: Ledger
    factory: dict[str, str]
    named: str = ""
    unfit: dict[str, VersionFault]
