"""Jobs: updates as seen by clients. A job holds the request, the steps so far, and the end."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

import msgspec

from edged.core.container import Head
from edged.core.decide import VersionFault
from edged.core.ledger import Ledger
from edged.core.record import Phase
from edged.models.bare_file import Bare

MAX_JOBS = 50


class InstallOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of an install.

    Keys:
        origin: Place of origin of the file.
        asked_by: User who asks, as the kernel knows the peer of the control socket.
        bare: Model and version of a bare file; None for a container or a delta.
        allow_downgrade: Install a version older than the floor or the active version, too.
        confirm_within (s): Time for an operator to confirm the version in service; the version is reverted otherwise. 0
            needs no confirmation.
    """

    origin: str = ""
    asked_by: str = ""
    bare: Bare | None = None
    allow_downgrade: bool = False
    confirm_within: float = 0.0


class Wanted(msgspec.Struct, frozen=True):
    """The requested version, "" for any.

    Keys:
        digest: SHA-256 of its manifest, or of a bare file.
        version: Number of a version with a manifest. A bare file has none of its own.
    """

    digest: str = ""
    version: str = ""


ANY = Wanted()
"""Any version."""

NAME_IT = "name the model in a pipeline, then: edgectl reload"
"""Hint for an installed version without a pipeline."""

Ending = Literal["done", "installed", "refused", "failed", "rolled_back"]
JobState = Literal["running"] | Ending
JobOutcome = Literal[""] | Ending


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an update.

    Keys:
        id: Kind of the step; the names of kinds never change.
        model: Name of the model, "" if not known.
        text: The step in words, for people.
        time (s): Moment of CLOCK_MONOTONIC.
        version: Number of the version concerned, "" if not known.
        digest: Digest of the version.
        phase: Phase of the version from now on.
        outcome: End of the update; "" before.
        bytes: Bytes received so far, while the version is received or fetched.
        total: Bytes to receive, if known.
    """

    id: str
    model: str
    text: str
    time: float
    version: str = ""
    digest: str = ""
    phase: Phase = ""
    outcome: JobOutcome = ""
    bytes: int | None = None
    total: int | None = None


@dataclass(eq=False)
class Job:
    """An update under way. `state`, and `text` for people, are final once the job has `ended`.

    States: "done", the version answers; "installed", no pipeline uses the model; "refused", the version may not come
    in; "failed", the version does not work here; "rolled_back", the version served and was withdrawn.
    `fetched` is True once all bytes have come from a URL. `released` is set once the file is not needed any more.
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
        """Take over model, version and digest from the head of a version."""
        self.model, self.version, self.digest = head.manifest.name, head.manifest.version, head.digest

    def end(self, state: Ending, text: str, hint: str = "") -> None:
        """End the job, unless ended already."""
        if self.ended.is_set():
            return
        self.state, self.text, self.hint = state, text, hint
        self.released.set()
        self.ended.set()


class JobList:
    """The latest MAX_JOBS jobs of this run of the daemon, numbered from 1."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque(maxlen=MAX_JOBS)
        self._numbers = count(1)

    def new(self, options: InstallOptions) -> Job:
        """Create a job; the oldest job may be forgotten."""
        job = Job(str(next(self._numbers)), options)
        self._jobs.append(job)
        return job

    def latest(self) -> tuple[Job, ...]:
        """Return the jobs, oldest first."""
        return tuple(self._jobs)


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report on a model.

    Keys:
        name: Name of the model.
        serving: Digest of the version in service; "" for no version, None for a model without a pipeline.
        active: Number of the version before the next update.
        ledger: The ledger.
        factory: Numbers of the factory versions by digest.
        named: Number of the version in the configuration; "" for any.
        suspended: True while the candidate's probation is suspended.
        unfit: Versions found damaged or unable to serve in this run, by digest.
    """

    name: str
    serving: str | None
    active: str
    ledger: Ledger
    factory: dict[str, str]
    named: str = ""
    suspended: bool = False
    unfit: dict[str, VersionFault]
