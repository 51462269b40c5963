import asyncio
from types import SimpleNamespace

import pytest

import edged.board
from edged.api import DeviceError
from edged.backends.tflite import TfliteBackend
from edged.board import ModelBoard, hands_over
from edged.config import ModelEntry
from edged.core.manifest import Limits
from edged.core.verdict import Verdict


@pytest.mark.parametrize(
    ("swap", "needed", "available", "handover"),
    [
        ("auto", 100, 100, False),
        ("auto", 101, 100, True),
        ("overlap", 101, 100, False),
        ("handover", 0, 100, True),
    ],
)
def test_which_swaps_are_handovers(swap, needed, available, handover):
    assert hands_over(swap, needed=needed, available=available) == handover


BROKEN = DeviceError("it is broken", hint="replace it")
GOOD, SLOW, WRONG = Verdict(rss_bytes=7), Verdict(failure="slow"), Verdict(failure="wrong")


@pytest.mark.parametrize(
    ("on_cpu", "accelerated", "delegate", "failure"),
    [
        (GOOD, None, "auto", ""),
        (GOOD, GOOD, "auto", ""),
        (GOOD, WRONG, "auto", ""),
        (GOOD, WRONG, "mine", "wrong"),
        (GOOD, BROKEN, "auto", ""),
        (SLOW, None, "auto", "slow"),
        (SLOW, GOOD, "auto", ""),
        (SLOW, WRONG, "auto", "slow"),
        (SLOW, WRONG, "mine", "wrong"),
        (WRONG, GOOD, "auto", "wrong"),
    ],
)
def test_a_version_is_held_to_what_it_does_where_it_will_serve(monkeypatch, on_cpu, accelerated, delegate, failure):
    assert tried(monkeypatch, on_cpu, accelerated, delegate).failure == failure


def test_a_version_is_not_judged_on_a_device_that_it_needs_and_that_is_broken(monkeypatch):
    with pytest.raises(DeviceError, match="it is broken"):
        tried(monkeypatch, GOOD, BROKEN, "mine")


def tried(monkeypatch, on_cpu: Verdict, accelerated: Verdict | DeviceError | None, delegate: str) -> Verdict:
    """The verdict of a trial of which the parts end so, with this delegate configured."""

    async def try_out(folder, manifest, backend, allowance):
        return on_cpu

    def try_out_accelerated(bundle, wanted, backend):
        if isinstance(accelerated, DeviceError):
            raise accelerated
        return accelerated

    monkeypatch.setattr(edged.board, "try_out", try_out)
    entry = ModelEntry(options=TfliteBackend(), delegate=delegate)
    accelerators = SimpleNamespace(try_out=try_out_accelerated)
    parts = SimpleNamespace(config=SimpleNamespace(models={"colours": entry}), accelerators=accelerators)
    needs = SimpleNamespace(delegates=())
    manifest = SimpleNamespace(version="1.1.0", backend="tflite", needs=needs, limits=Limits())
    board = ModelBoard(parts, build=None, feed=None, clock=None)
    return asyncio.run(board.try_out("colours", SimpleNamespace(folder="1.1.0", manifest=manifest)))
