import pytest

from edged.ctl.tables import duration, size, table


def test_numbers_stand_to_the_right():
    assert list(table(["NAME", ">COUNT"], [["a", "1"], ["longer", "1000"]])) == [
        "NAME    COUNT",
        "a           1",
        "longer   1000",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7322, "2 h 2 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (52_345, "52.3 kB"), (3_600_000, "3.6 MB")])
def test_sizes(count, text):
    assert size(count) == text
