import asyncio
from types import SimpleNamespace

import pytest

import edged.board
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


GOOD, SLOW, WRONG = Verdict(rss_bytes=7), Verdict(failure="slow"), Verdict(failure="wrong")


@pytest.mark.parametrize(
    ("on_cpu", "accelerated", "delegate", "failure"),
    [
        (GOOD, None, "auto", ""),
        (GOOD, GOOD, "auto", ""),
        (GOOD, WRONG, "auto", ""),
        (GOOD, WRONG, "mine", "wrong"),
        (SLOW, None, "auto", "slow"),
        (SLOW, GOOD, "auto", ""),
        (SLOW, WRONG, "auto", "slow"),
        (SLOW, WRONG, "mine", "wrong"),
        (WRONG, GOOD, "auto", "wrong"),
    ],
)
def test_a_version_is_held_to_what_it_does_where_it_will_serve(monkeypatch, on_cpu, accelerated, delegate, failure):
    async def try_out(folder, manifest, backend, allowance):
        return on_cpu

    monkeypatch.setattr(edged.board, "try_out", try_out)
    entry = ModelEntry(options=TfliteBackend(), delegate=delegate)
    accelerators = SimpleNamespace(try_out=lambda bundle, wanted, backend: accelerated)
    parts = SimpleNamespace(config=SimpleNamespace(models={"colours": entry}), accelerators=accelerators)
    needs = SimpleNamespace(delegates=())
    manifest = SimpleNamespace(version="1.1.0", backend="tflite", needs=needs, limits=Limits())
    board = ModelBoard(parts, build=None, feed=None, clock=None)

    verdict = asyncio.run(board.try_out("colours", SimpleNamespace(folder="1.1.0", manifest=manifest)))

    assert verdict.failure == failure
