import pytest

from edged.board import hands_over


@pytest.mark.parametrize(
    ("swap", "exclusive", "needed", "available", "handover"),
    [
        ("auto", False, 100, 100, False),
        ("auto", False, 101, 100, True),
        ("auto", True, 0, 100, True),
        ("overlap", True, 101, 100, False),
        ("handover", False, 0, 100, True),
    ],
)
def test_which_swaps_are_handovers(swap, exclusive, needed, available, handover):
    assert hands_over(swap, exclusive=exclusive, needed=needed, available=available) == handover
