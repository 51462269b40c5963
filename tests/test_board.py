import pytest

from edged.board import hands_over


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
