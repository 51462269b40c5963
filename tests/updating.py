"""A board for updates of models: factory versions, containers, a scripted daemon, and a clock."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from edged.api import EdgedError, ModelError
from edged.core.manifest import Manifest
from edged.core.probation import Observed
from edged.core.verdict import Verdict
from edged.models.bundle import Bundle, digest
from edged.models.signatures import Trust
from edged.models.store import Store
from edged.updates.jobs import Event, InstallOptions, Job
from edged.updates.updater import Updater
from tests.containers import MODEL, colours, container, entry

NAME = "colours"
ORIGIN = "a test"
TRAITS = ("misfits", "wrong", "dead", "faulty")
"""Faults of a version on a FakeBoard."""


class Clock:
    """Clock that stands still until moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def manifest(version: str, **parts: object) -> bytes:
    """Return the manifest of a version with a probation of a minute and 10 windows."""
    probation = {"seconds": 60.0, "windows": 10}
    preprocess = [{"step": "clip", "low": -8, "high": 8}]  # stated, to avoid a search in the model file
    files = {"model.tflite": entry(MODEL)}
    said = colours(version=version, files=files, probation=probation, preprocess=preprocess, **parts)
    return json.dumps(said).encode()


def digest_of(version: str, **parts: object) -> str:
    return hashlib.sha256(manifest(version, **parts)).hexdigest()


def write_container(folder: Path, version: str, **parts: object) -> Path:
    file = folder / f"{version}.edgm"
    file.write_bytes(container(manifest(version, **parts), body=MODEL))
    return file


def write_factory(folder: Path, version: str) -> None:
    """Write a factory version, known to `digest_of`."""
    place = folder / NAME / version
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(manifest(version))
    (place / "model.tflite").write_bytes(MODEL)


class FakeBoard:
    """Board that serves requested versions, with scripted faults: each of TRAITS holds numbers of versions.

    `troubles` are errors at the start of service that may not be a version's fault. Any version that reaches the phase
    `deadly` ends the daemon: `death` is set, and the daemon does nothing more. `answers` lists every version that ever
    answered, in order, "" for none.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.misfits: set[str] = set()
        self.wrong: set[str] = set()
        self.dead: set[str] = set()
        self.faulty: set[str] = set()
        self.helpless = False
        self.hindered: set[str] = set()
        self.troubles: dict[str, EdgedError] = {}
        self.deadly = ""
        self.death = asyncio.Event()
        self.used = True
        self.names = ""
        self.serves: Bundle | None = None
        self.answers: list[str] = []
        self.trials: list[str] = []
        self.since = 0.0

    @property
    def version(self) -> str:
        return self.serves.manifest.version if self.serves else ""

    def load(self, bundle: Bundle | None) -> None:
        """Serve a bundle, as a daemon does at start."""
        self.serves, self.since = bundle, self.clock()
        self.answers.append(self.version)

    def serving(self, model: str) -> str | None:
        if not self.used:
            return None
        return digest(self.serves.folder) if self.serves and self.serves.folder.exists() else ""

    def models(self) -> tuple[str, ...]:
        return (NAME,) if self.used else ()

    def named(self, model: str) -> str:
        return self.names

    def fit(self, model: str, manifest: Manifest) -> None:
        if manifest.version in self.misfits:
            raise ModelError(f"{model} {manifest.version} does not fit", hint="get another board")

    async def try_out(self, model: str, bundle: Bundle) -> Verdict:
        version = bundle.manifest.version
        self.trials.append(version)
        await self._die_in("trial")
        if self.helpless:
            raise ModelError("no child could be started", retryable=True)
        if version in self.hindered:
            return Verdict(failure="hindered", reason="somebody else has the device")
        return Verdict(failure="wrong", reason="it answers wrongly") if version in self.wrong else Verdict(samples=3)

    async def swap(self, model: str, bundle: Bundle | None) -> None:
        await self._die_in("probation")
        if bundle is not None and bundle.manifest.version in self.dead:
            raise ModelError("it does not load")
        if bundle is not None and bundle.manifest.version in self.troubles:
            raise self.troubles[bundle.manifest.version]
        self.load(bundle)

    def observed(self, model: str) -> Observed:
        errors = 500 if self.version in self.faulty else 0
        return Observed(seconds=self.clock() - self.since, windows=1000, errors=errors)

    async def _die_in(self, phase: str) -> None:
        await asyncio.sleep(0)
        if self.deadly == phase:
            self.death.set()
            await asyncio.Event().wait()


class Rig:
    """Board with folders. `boot` is power on: a daemon that knows only the disk."""

    def __init__(self, folder: Path, *, factory: tuple[str, ...] = ("1.0",)) -> None:
        self.factory, self.state = folder / "factory", folder / "state"
        for version in factory:
            write_factory(self.factory, version)
        self.state.mkdir(parents=True)
        self.folder = folder
        self.clock = Clock()
        self.events: list[Event] = []
        self.say: Callable[[Event], None] = self.events.append
        self.settings: dict[str, object] = {}
        self.board = FakeBoard(self.clock)

    @property
    def store(self) -> Store:
        return Store(self.factory, self.state)

    @property
    def model(self):
        return self.store.model(NAME)

    @property
    def ledger(self):
        return self.model.read()

    def power_on(self, **settings: object) -> None:
        """Start a new daemon on the board; the daemon serves the version found by the store, as the real daemon does.

        Two alternating names of runs suffice: a run must only differ from the run in the ledger.
        """
        before = self.board
        self.board = FakeBoard(self.clock)
        for trait in TRAITS:
            setattr(self.board, trait, getattr(before, trait))
        self.board.deadly = before.deadly
        candidate = self.ledger.candidate
        run = "odd" if candidate is not None and candidate.run == "even" else "even"
        self.updater = Updater(
            self.store,
            self.board,
            **{
                "trust": Trust(self.folder / "signers", required=False),
                "wall": lambda: 0.0,
                **self.settings,
                **settings,
            },
            run=run,
            publish=self.say,
            clock=self.clock,
        )
        try:
            self.board.load(self.store.find(NAME))
        except EdgedError:  # no model, or no sound model
            self.board.load(None)

    async def boot(self, **settings: object) -> None:
        self.power_on(**settings)
        await self.updater.start()

    def install(self, version: str, **options: object) -> Job:
        """Return a job that installs this version."""
        file = write_container(self.folder, version)
        return self.updater.install(file, InstallOptions(origin=ORIGIN, **options))

    async def installed(self, version: str, **options: object) -> Job:
        """Install this version, and return the ended job."""
        return await self.ended(self.install(version, **options))

    async def ended(self, job: Job) -> Job:
        """Wait for the end of a job, moving the clock for probation, and return the job."""
        await job.released.wait()
        for _ in range(5):
            await self.pass_probation()
        await asyncio.wait_for(job.ended.wait(), 120)
        return job

    async def pass_probation(self) -> None:
        """Let a minute pass."""
        await self.updater.settle(NAME)
        self.clock.now += 61
        await self.updater.settle(NAME)

    def tree(self) -> set[str]:
        """Return the content of the model's folder."""
        folder = self.state / NAME
        return {str(path.relative_to(folder)) for path in folder.rglob("*")}

    def tidy_tree(self) -> set[str]:
        """Return the content expected from the ledger."""
        ledger = self.ledger
        files = {"state.json", "state.copy.json", "versions"}
        for each in ledger.versions:
            files |= {f"versions/{each}", f"versions/{each}/manifest.json", f"versions/{each}/model.tflite"}
        return files | ({"current"} if ledger.active else set())
