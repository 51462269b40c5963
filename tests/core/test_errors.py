import pytest

from edged.core.errors import quantity, some


@pytest.mark.parametrize(
    ("names", "most", "shown"),
    [
        ([], 2, ""),
        (["a"], 2, "a"),
        (["a", "b"], 2, "a, b"),
        (["a", "b", "c"], 2, "a, b and 1 more"),
        ([str(number) for number in range(640)], 3, "0, 1, 2 and 637 more"),
    ],
)
def test_a_list_is_cut_with_a_count(names, most, shown):
    assert some(names, most) == shown


def test_the_first_ones_of_many():
    assert some(["a", "b"], 2, of=9, by="; ") == "a; b and 7 more"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 steps"),
        (1, "1 step"),
        (2_000_000, "2000000 steps"),
        (1.0, "1 step"),
        (0.5, "0.5 steps"),
        (0.0, "0 steps"),
    ],
)
def test_a_count_has_its_noun(number, text):
    assert quantity(number, "step") == text
