"""Versions sent by clients: a container, a delta or a bare model file, in chunks over the control socket.

Each chunk carries an offset, and a transfer is named after the content of the file. Any client may therefore send any
chunk again: clients with the same file help each other, and after a cut connection a client continues at the end of
the file. Received bytes survive the connection at once, and a power cut except for the last window of `PartialFiles`,
unless a chunk was sent as durable; the answer to receive-open is the offset to continue at.

A single thread does all work on the files.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from edged.api import BundleError, ControlError, EdgedError
from edged.core import update_answers
from edged.core.container import Head
from edged.core.protocol import Args
from edged.core.update_answers import OffsetAnswer, TransferAnswer
from edged.models.bare_file import Bare, BareCheck
from edged.models.delta import VersionCheck
from edged.transfer.partial_files import ArrivalCheck, PartialFiles, Transfer
from edged.updates.intake import InboundChecks, InboundVersion, InstallControl, ModelsSnapshot
from edged.updates.jobs import NAME_IT, Job
from edged.updates.requests import ChunkRequest, DoneRequest, OpenRequest, parse

T = TypeVar("T")


class Receiver:
    """Receives versions. `job_of` returns the job behind an install, as known to clients; `idle` is in seconds.

    A transfer is closed after `idle` seconds of silence, and the received bytes are kept.
    """

    def __init__(
        self,
        partial_files: PartialFiles,
        updater: InstallControl,
        checks: InboundChecks,
        job_of: Callable[[Job], Job],
        idle: float,
    ) -> None:
        self._partial_files = partial_files
        self._updater = updater
        self._checks = checks
        self._job_of = job_of
        self._idle = idle
        self._receiving: dict[str, _Receiving] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="receive")
        self._stopping = False
        self.calls = dict(
            (
                update_answers.RECEIVE_OPEN.by(self._open),
                update_answers.RECEIVE_CHUNK.by(self._chunk),
                update_answers.RECEIVE_DONE.by(self._done),
            )
        )

    @property
    def inbound(self) -> tuple[InboundVersion, ...]:
        """Versions under way and not complete yet."""
        return tuple(each.inbound for each in self._receiving.values() if each.job is None)

    async def start(self) -> None:
        """Discard received files of an earlier run if the version is known by now, and what a kill left of others."""
        for name in self._partial_files.ids():
            known = await self._updater.knows(self._partial_files.part(name))
            with contextlib.suppress(EdgedError):  # old files are removed anyway, after a week
                await self._on_thread(self._tidy, name, known)

    async def stop(self) -> None:
        """Close all transfers. The received bytes are kept, and clients are told to ask again later."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._receiving):
            await self._close(name)
        await asyncio.to_thread(self._thread.shutdown)

    async def _open(self, args: Args) -> TransferAnswer:
        """Return the offset to continue a file at, or the reason not to send the file.

        {"offset": number of bytes here}, {"job": job of the same version, with the terms of that job},
        {"present": true} if the version serves or, with a remedy, is `unused` by any pipeline, or
        {"missing": base} for a delta without a base here.
        """
        self._refuse_when_stopping()
        request = parse(args, OpenRequest)
        if known := await self._known(request):
            return known
        receiving = self._receiving.get(request.id)
        if receiving is None:
            inbound = InboundVersion("receiving", request.bare.model if request.bare else "")
            opening = self._on_thread(self._open_transfer, request, inbound)
            receiving = self._receiving[request.id] = _Receiving(opening, inbound, request.bare)
        try:
            transfer = await asyncio.shield(receiving.opening)
        except EdgedError:
            self._receiving.pop(request.id, None)
            raise
        self._postpone_close(request.id)
        return {"offset": transfer.received}

    async def _chunk(self, args: Args) -> OffsetAnswer:
        """Append the new bytes of a chunk, and return the number of bytes here."""
        self._refuse_when_stopping()
        chunk = parse(args, ChunkRequest)
        receiving = self._get(chunk.id)
        self._postpone_close(chunk.id)
        try:
            offset = await self._on_thread(_append, receiving.transfer, chunk)
        except EdgedError as error:
            if not error.retryable and receiving.job is None:  # no later chunk could mend the file
                await self._discard(chunk.id)
            raise
        return {"offset": offset}

    async def _done(self, args: Args) -> TransferAnswer:
        """Install a complete file, and return the job. A repeated request gets the same job."""
        self._refuse_when_stopping()
        request = parse(args, DoneRequest)
        receiving = self._get(request.id)
        self._postpone_close(request.id)
        if receiving.job is None:
            path = await self._on_thread(receiving.transfer.complete)
        if receiving.job is None:
            receiving.job = self._updater.install(path, request.options(request.origin, receiving.bare))
            self._spawn(self._remove_when_released(request.id, receiving, receiving.job))
        return _begun(receiving.job)

    async def _known(self, request: OpenRequest) -> TransferAnswer:
        """Return the reason not to send a file, if any. Raises BundleError if the version is not admitted."""
        receiving = self._receiving.get(request.id)
        if receiving and receiving.job:
            return _begun(receiving.job)
        if request.bare:
            self._checks.admit_bare()
            if self._checks.serves_file(request.bare, request.digest):
                return {"present": True}
        for job in self._updater.jobs():
            if job.digest == request.digest and not job.ended.is_set():
                return _begun(self._job_of(job))
        snapshot = ModelsSnapshot(await self._updater.models())
        if request.bare:
            snapshot.admit_bare(request.bare, allow_downgrade=request.allow_downgrade)
            return {}
        snapshot.refuse_rejected(request.digest)
        if any(request.digest == model.serving and not self._checks.lost(model.name) for model in snapshot.models):
            return {"present": True}
        if snapshot.is_unused(request.digest):
            return {"present": True, "unused": NAME_IT}
        if request.name and request.number:
            snapshot.admit(request.name, request.digest, request.number, allow_downgrade=request.allow_downgrade)
        return {"missing": request.base} if request.base and request.base not in snapshot.bases else {}

    def _tidy(self, name: str, known: bool) -> None:
        """On the thread: discard a transfer of an earlier run if the version is `known` or no byte is left."""
        with self._partial_files.open(name) as transfer:  # the end of the block discards a transfer without bytes
            if known:
                transfer.discard()

    def _open_transfer(self, request: OpenRequest, inbound: InboundVersion) -> Transfer:
        """On the thread: open a transfer with a check of the arriving bytes."""

        def approve(head: Head, transfer: str, _base: str) -> None:
            if transfer != request.id:
                raise BundleError("another file was sent than announced", hint="send the file again")
            self._checks.approve(head)
            inbound.name(head)

        check: Callable[[], ArrivalCheck] = partial(VersionCheck, approve)
        if request.bare:
            check = partial(BareCheck, request.size, request.digest)
        inbound.transfer = self._partial_files.open(request.id, total=request.size, check=check)
        return inbound.transfer

    def _get(self, name: str) -> _Receiving:
        receiving = self._receiving.get(name)
        if receiving is None or not receiving.opening.done():
            raise ControlError("no such transfer is open", hint="begin with receive-open", retryable=True)
        return receiving

    def _postpone_close(self, name: str) -> None:
        """Start the idle time of a transfer anew."""
        if receiving := self._receiving.get(name):
            receiving.cancel_timer()
            loop = asyncio.get_running_loop()
            receiving.timer = loop.call_later(self._idle, lambda: self._spawn(self._close(name)))

    async def _close(self, name: str) -> None:
        """Close a transfer and keep the bytes, unless an install needs the file."""
        receiving = self._receiving.get(name)
        if receiving is None or receiving.job is not None:
            return
        del self._receiving[name]
        receiving.cancel_timer()
        with contextlib.suppress(EdgedError):  # after an error the file is gone, and a client begins anew
            await self._on_thread((await receiving.opening).close)

    async def _discard(self, name: str) -> None:
        if receiving := self._receiving.pop(name, None):
            receiving.cancel_timer()
            await self._on_thread(receiving.transfer.discard)

    async def _remove_when_released(self, name: str, receiving: _Receiving, job: Job) -> None:
        """Discard a file once the install has released the file, or keep the file if the board was at fault."""
        await job.released.wait()
        if job.state == "failed":
            receiving.job = None
            await self._close(name)
        else:
            await self._discard(name)

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise ControlError("the daemon is stopping", hint="send the rest after the restart", retryable=True)

    def _on_thread(self, work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(eq=False)
class _Receiving:
    """A transfer from clients, open or being opened. `job` is set as soon as the file is complete."""

    opening: asyncio.Future[Transfer]
    inbound: InboundVersion
    bare: Bare | None = None
    job: Job | None = None
    timer: asyncio.TimerHandle | None = None

    @property
    def transfer(self) -> Transfer:
        return self.opening.result()

    def cancel_timer(self) -> None:
        if self.timer:
            self.timer.cancel()


def _begun(job: Job) -> TransferAnswer:
    """Return the answer with a job. The terms are included, as another client may have set others."""
    return {"job": job.id, "confirm_within": job.options.confirm_within}


def _append(transfer: Transfer, chunk: ChunkRequest) -> int:
    """On the thread: append the new bytes of a chunk, and return the number of bytes here."""
    received = transfer.received
    if chunk.offset > received:
        raise ControlError(
            f"the chunk begins at {chunk.offset}, and only {received} bytes are here",
            hint="begin with receive-open",
            retryable=True,
        )
    if chunk.offset + len(chunk.data) > received:
        transfer.append(chunk.data[received - chunk.offset :])
    if chunk.durable:
        transfer.sync()
    return transfer.received
