"""A daemon that receives updates: a real socket, real transfers, and an updater scripted by the test."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from edged.api import BundleError, ControlError
from edged.control.control_socket import ControlSocket
from edged.control.server import Server
from edged.core.container import Head
from edged.core.ledger import Installed, Ledger, Rejection
from edged.models.bare_file import Bare
from edged.models.bundle import examine
from edged.transfer.options import FetchOptions
from edged.transfer.partial_files import PartialFiles
from edged.updates.jobs import Event, InstallOptions, Job, ModelReport
from edged.updates.verbs import Updates
from tests.containers import MODEL, colours, container, entry

NAME = "colours"


def noise(size: int) -> bytes:
    """Return incompressible bytes, always the same."""
    return random.Random(size).randbytes(size)


def bundle(version: str = "2.0", size: int = 200_000, signatures: bytes = b"") -> bytes:
    """A container of a little more than `size` bytes."""
    body = noise(size)
    files = {"model.tflite": entry(MODEL), "noise.bin": entry(body)}
    return container(colours(version=version, files=files), signatures=signatures, body=MODEL + body)


def names(data: bytes) -> dict[str, Any]:
    """Return a sender's announcement of a container."""
    manifest = int.from_bytes(data[8:12], "little")
    signatures = int.from_bytes(data[12:16], "little")
    head = data[: 16 + manifest + signatures]
    return {
        "id": hashlib.sha256(head).hexdigest(),
        "size": len(data),
        "digest": hashlib.sha256(head[16 : 16 + manifest]).hexdigest(),
    }


class ScriptedUpdater:
    """Updater that accepts all containers but no deltas, which it cannot rebuild.

    Each job ends as stated by `end`, once `go` is set; `asked` holds the requests.
    """

    def __init__(self) -> None:
        self.end = ("done", "colours: version 2.0 is confirmed; version 2.0 serves", "")
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[Any] = []
        self.named = ""
        self.installed: list[tuple[bytes, InstallOptions]] = []
        self.serve("a" * 64, "1.0")
        self._jobs: list[Job] = []
        self._tasks: list[asyncio.Task[None]] = []

    def install(self, container: Path, options: InstallOptions) -> Job:
        job = Job(str(len(self._jobs) + 1), options)
        self._jobs.append(job)
        self._tasks.append(asyncio.get_running_loop().create_task(self._install(job, container)))
        return job

    async def _install(self, job: Job, container: Path) -> None:
        bare = job.options.bare
        if container.read_bytes().startswith(b"edgd"):
            self._say(job, "update.full_needed", "the full bundle is needed: it cannot be rebuilt")
            job.released.set()
            job.end("refused", "the full bundle is needed: it cannot be rebuilt")
            return
        if bare:
            job.model, job.version = bare.model, bare.version or "next"
        else:
            job.name(examine(container))
        self._say(job, "update.verified", f"version {job.version} is signed by nobody")
        await self.go.wait()
        self.installed.append((container.read_bytes(), job.options))
        job.released.set()
        self._say(job, "update.serving", f"version {job.version} serves")
        if self.end[0] == "done":
            self.serve(job.digest, job.version)
        job.end(*self.end)  # type: ignore[arg-type]

    async def rollback(self, name: str, to: str = "") -> None:
        if to == "9.9":
            raise ControlError("colours has no confirmed version '9.9' on this board", hint="there are: factory, 1.0")
        self.asked.append(("rollback", name, to))

    async def confirm(self, name: str) -> None:
        self.asked.append(("confirm", name))

    async def pin(self, name: str, pinned: bool) -> None:
        self.asked.append(("pin", name, pinned))
        self.ledger = replace(self.ledger, pinned=pinned)

    async def forget_rejection(self, name: str, digest: str) -> None:
        self.asked.append(("forget", name, digest))

    async def knows(self, file: Path) -> bool:
        return False

    def probation(self, job: Job) -> str:
        return "on probation: 5 of 300 s, 7 of 20 windows"

    def jobs(self) -> tuple[Job, ...]:
        return tuple(self._jobs)

    async def models(self) -> tuple[ModelReport, ...]:
        assert self.ledger.active
        active = self.ledger.versions[self.ledger.active].version
        report = ModelReport(
            name=NAME,
            serving=self.serving,
            active=active,
            ledger=self.ledger,
            factory={},
            unfit={},
            named=self.named,
        )
        return (report,)

    def serve(self, digest: str, version: str) -> None:
        self.serving: str | None = digest
        known = {digest: Installed(version=version, confirmed=True)}
        self.ledger = Ledger(schema="edged.ledger/1", active=digest, versions=known)

    def reject(self, digest: str, reason: str) -> None:
        self.ledger = replace(self.ledger, rejected={digest: Rejection(version="2.0", reason=reason)})

    def _say(self, job: Job, kind: str, text: str) -> None:
        job.events.append(Event(id=kind, model=NAME, text=text, time=time.monotonic()))


class Clock:
    """Clock whose day began with the machine."""

    synchronised = True

    def knows(self, monotonic: float) -> bool:
        return True

    def at(self, monotonic: float) -> float:
        return monotonic


class Door:
    """Admission that trusts all signers except mallory, and accepts bare models only if `open`, and only bare models if
    `narrow`.

    `files` are the files in service, by model.
    """

    def __init__(self) -> None:
        self.open = True
        self.narrow = False
        self.files: dict[str, str] = {}

    def approve(self, head: Head) -> None:
        if b"mallory" in head.signatures:
            raise BundleError("mallory is not an allowed signer", hint="have it signed by somebody who is")

    def fit(self, head: Head) -> None:
        if self.narrow:
            raise BundleError("it needs another source", hint="configure one")

    def admit_bare(self) -> None:
        if not self.open:
            raise BundleError("only signed versions may come in here", hint="pack and sign it")

    def serves(self, head: Head) -> bool:
        return False

    def serves_file(self, bare: Bare, sha256: str) -> bool:
        return self.files.get(bare.model) == sha256

    def lost(self, model: str) -> bool:
        return False


class Board:
    """A socket in `folder`, served from a thread for as long as the `with` statement lasts."""

    def __init__(
        self, folder: Path, *, idle: float = 60.0, fetch: FetchOptions | None = None, urls: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        self.runtime_dir = folder / "run"
        self.incoming = folder / "incoming"
        self.said: list[Event] = []
        self._heard = threading.Condition()
        self._idle = idle
        self._fetch = fetch
        self._urls = urls

    def __enter__(self) -> Board:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(120), "the board does not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._over.set)
        self._thread.join(120)

    def do(self, what: Callable[[], Any]) -> None:
        """Call a function on the board's own thread."""
        self._loop.call_soon_threadsafe(what)

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the board's thread, and return the result."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(120)

    def wait_for(self, kind: str, received: int = 0) -> Event:
        """Return the first published step of this kind with this number of bytes received, waiting if necessary."""

        def found() -> list[Event]:
            return [event for event in self.said if event.id == kind and (event.bytes or 0) >= received]

        with self._heard:
            assert self._heard.wait_for(found, 120), self.said
        return found()[0]

    def wait_for_times(self, kind: str, times: int) -> None:
        """Wait until so many steps of this kind have been told of."""
        with self._heard:
            assert self._heard.wait_for(lambda: [event.id for event in self.said].count(kind) >= times, 120), self.said

    def _hear(self, event: Event) -> None:
        with self._heard:
            self.said.append(event)
            self._heard.notify_all()

    def parts(self) -> list[str]:
        """Return the kept transfers."""
        return [folder.name for folder in self.incoming.iterdir()] if self.incoming.exists() else []

    def gone(self) -> bool:
        """Return whether all transfers are removed soon: the thread of a transfer outlives the published end of the
        job.
        """
        until = time.monotonic() + 120
        while self.parts() and time.monotonic() < until:
            time.sleep(0.01)
        return not self.parts()

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.updater = ScriptedUpdater()
        incoming = PartialFiles(self.incoming, max_bytes=64 << 20, max_transfers=8)
        self.door = Door()
        self.updates = Updates(
            incoming,
            self.updater,
            checks=self.door,
            clock=Clock(),
            publish=self._hear,
            fetch=self._fetch,
            urls=self._urls,
            idle=self._idle,
            progress_every=0.02,
        )
        await self.updates.start()
        server = Server(ControlSocket(self.runtime_dir / "edged.sock"), _Verbs(self.updates))
        await server.start()
        started.set()
        await self._over.wait()
        await self.updates.stop()
        await server.stop()


class _Verbs:
    """Verbs of updates in the form needed by the server."""

    def __init__(self, updates: Updates) -> None:
        self._updates = updates
        self.calls, self.streams, self.changes = updates.calls, updates.streams, updates.changes

    async def call(self, verb: str, args: dict[str, Any]) -> Any:
        return await self._updates.calls[verb](args)

    def stream(self, verb: str, args: dict[str, Any]) -> Any:
        return self._updates.streams[verb](args)
