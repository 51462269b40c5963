"""Change the flows of pipelines while sources are read: no window is lost, and no window is cut by two versions.

A flow is exchanged between two chunks of the source. In a handover, `make_room` closes the serving version. Windows of
both versions are then collected until the next version serves, or the former version is back.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edged.api import ModelError
from edged.app.state import PipelineState, ServiceState
from edged.core.manifest import Manifest
from edged.flow.pipeline import FINISH_SECONDS, Pipeline
from edged.flow.reader import Reader
from edged.flow.slot import Served
from edged.system.later import asyncio

CLOSE_SECONDS = 30.0
"""Time for a worker to finish a window and close the runner."""

RECORDING_SECONDS = 1.0
"""Time for the reader of a recording to finish a chunk: a slow model may hold it up for long."""

Build = Callable[[str, Manifest], Pipeline]
"""Makes the flow of a pipeline, by name, for a manifest. Raises ConfigError if source and model do not fit."""


class FlowSwap:
    """Changes flows. `build` makes a flow, and `feed` gives the readers their new flows."""

    def __init__(self, state: ServiceState, build: Build, feed: Callable[[], None]) -> None:
        self._state = state
        self._build = build
        self._feed = feed

    def offer(self, ready: dict[str, Served], users: dict[str, PipelineState]) -> None:
        """Have each pipeline serve its entry of `ready`, and remove the entry. An error closes the others."""
        try:
            for name in list(ready):
                self._offer(name, users[name], ready)
        except Exception:
            for served in ready.values():
                served.runner.close()
            raise

    def _offer(self, name: str, part: PipelineState, ready: dict[str, Served]) -> None:
        served, before = ready[name], part.flow
        if before is None:
            part.status.set("starting")
        if before is None or not runs(part) or not _cuts_for(before, served.manifest):
            self._change(part, partial(self._replace, name, part, served.manifest))
            if before is not None:
                before.join(FINISH_SECONDS)  # its waiting windows come first; those of the new flow are kept meanwhile
        assert part.flow is not None
        part.served = ready.pop(name)
        part.flow.serve(served)

    async def make_room(self, running: dict[str, PipelineState], before: Manifest, manifest: Manifest) -> None:
        """Close the serving version, and collect windows for both versions. Returns after all runners are closed.

        Raises:
            ModelError: a worker did not finish a window in time.
        """
        closing: list[Callable[[float], bool]] = []
        for name, part in running.items():
            assert part.flow is not None
            if _cuts_for(part.flow, manifest):
                closing.append(part.flow.release().wait)
            else:  # the worker first finishes the waiting windows of the former version
                closing.append(part.flow.join)
                await asyncio.to_thread(self._change, part, partial(self._collect, name, part, before, manifest))
        for closed in closing:
            if not await asyncio.to_thread(closed, CLOSE_SECONDS):
                raise ModelError(
                    "the serving version cannot be closed: a worker is still at a window",
                    hint="see edgectl pipelines",
                    retryable=True,
                )

    def end_handover(self, users: dict[str, PipelineState], *, back: bool) -> None:
        """Keep the collected windows of the new version, or of the former version after its return (`back`)."""
        for part in users.values():
            if part.flow is not None and part.spare is not None:
                kept, other = (part.spare, part.flow) if back else (part.flow, part.spare)
                part.flow, part.spare = kept, None
                other.retire()
        self._feed()

    def stop(self, users: dict[str, PipelineState]) -> None:
        """Stop the flows, and leave the pipelines without a version."""
        for part in users.values():
            if part.flow is not None:
                part.flow.stop()
                part.begins_at = part.next_seq
                part.flow = part.served = None
        self._feed()

    def _collect(self, name: str, part: PipelineState, before: Manifest, manifest: Manifest) -> None:
        """Replace the flow by two flows, each with windows for one version. Called between two chunks."""
        old = part.flow
        assert old is not None
        old.retire()
        flow, spare = self._build(name, manifest), self._build(name, before)
        spare.go_on_from(old)
        part.flow, part.spare = flow, spare

    def _replace(self, name: str, part: PipelineState, manifest: Manifest) -> None:
        """Replace the flow by a flow for this manifest. Called between two chunks."""
        if part.flow is not None:
            part.flow.retire()  # before the new flow takes its first number: two windows never share a number
        part.flow = self._build(name, manifest)

    def _change(self, part: PipelineState, change: Callable[[], None]) -> None:
        """Call `change` between two chunks, so that each chunk goes to either the old flow or the new."""

        def change_and_feed() -> None:
            change()
            self._feed()

        reader = self._state.sources.get(part.entry.source)
        if reader is None:
            change_and_feed()
        else:
            reader.between_chunks(change_and_feed, chunk_seconds(reader))


def _cuts_for(flow: Pipeline, manifest: Manifest) -> bool:
    """Return whether the windows of a flow are those that a version takes."""
    same_picture = flow.form is None or flow.form.spec == manifest.picture_spec
    return flow.window == manifest.window and same_picture


def chunk_seconds(reader: Reader) -> float:
    """Return the time for a reader to finish a chunk, with windows served meanwhile. Flows are changed after this time
    in any case, and the other windows of the chunk are lost.
    """
    return RECORDING_SECONDS if reader.info.patient else FINISH_SECONDS


def runs(part: PipelineState) -> bool:
    """Return whether a pipeline has a running flow."""
    return part.flow is not None and not part.flow.stopped
