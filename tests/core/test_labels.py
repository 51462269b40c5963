"""Label files in common forms."""

import pytest

from edged.core.errors import ControlError
from edged.core.labels import mapped, numbered, read, read_map, renamed


def labels(text, scores, file="labels.txt"):
    return read(text.encode(), file, scores).labels


def test_labels_that_are_there_twice_are_numbered():
    assert numbered(["crane", "owl", "crane", "crane"]) == ("crane", "owl", "crane (2)", "crane (3)")
    assert numbered(["crane", "crane", "crane (2)"]) == ("crane", "crane (3)", "crane (2)")
    assert numbered(["", "class_0", ""]) == ("class_0", "class_0 (2)", "class_2")
    assert numbered(["x" * 200] * 2) == ("x" * 200, "x" * 196 + " (2)")


def test_what_was_numbered_is_said():
    assert renamed(["a", "b"], ["a", "b"]) == ""
    assert renamed(["a"] * 2, ["a", "a (2)"]) == "labels that are not unique are numbered: 'a' is 'a (2)'"
    before = ["a"] * 6
    assert renamed(before, numbered(before)).endswith("'a' is 'a (4)' and 2 more")


@pytest.mark.parametrize(
    ("text", "scores", "found"),
    [
        ("rot\ngrün\n\nblau \n", 3, ("rot", "grün", "blau")),
        ("\ufeffcat\r\ndog\r\n", 2, ("cat", "dog")),
        ("cat\rdog\r", 2, ("cat", "dog")),
        ("0  background\n1  cat\n2  dog\n", 3, ("background", "cat", "dog")),
        ("0 Class 1\n1 Class 2\n", 2, ("Class 1", "Class 2")),
        ("0: cat\n1: dog\n", 2, ("cat", "dog")),
        ("0,cat\n1,dog\n", 2, ("cat", "dog")),
        ("2\tdog\n0\tcat\n", 3, ("cat", "class_1", "dog")),
        ("0  person\n3  car\n", 4, ("person", "class_1", "class_2", "car")),
        ("0\n1\n2\n", 3, ("0", "1", "2")),  # digits are names
        ("1 person\n2 persons\n", 2, ("1 person", "2 persons")),
        ("0 fingers\n1 finger\n2 fingers\n", 3, ("0 fingers", "1 finger", "2 fingers")),
        ("0  crane\n1  crane\n", 2, ("crane", "crane")),
        ('0,"cat, tabby"\n1,dog\n', 2, ("cat, tabby", "dog")),
        ("18 wheeler\n3 point turn\n", 2, ("18 wheeler", "3 point turn")),
        ("1 dog\n1 cat\n", 2, ("1 dog", "1 cat")),
        ("0 cat\ndog\n", 2, ("0 cat", "dog")),
        ("tench, Tinca tinca\ngoldfish\n", 2, ("tench, Tinca tinca", "goldfish")),
        ("index,mid,display_name\n0,/m/09x0r,Speech\n1,/m/0ytgt,\"Child speech, kid\"\n", 2,
         ("Speech", "Child speech, kid")),
        ("id;name\n1;dog\n0;cat\n", 2, ("cat", "dog")),
        (",label\n0,cat\n1,dog\n", 2, ("cat", "dog")),
        ("label,count\ncat,7\ndog,8\n", 2, ("cat", "dog")),
        ("label\ncat\ndog\n", 2, ("cat", "dog")),
        ("label\ncat\n", 2, ("label", "cat")),
        ("id,name\n2,dog\n", 3, ("class_0", "class_1", "dog")),
    ],
)  # fmt: skip
def test_the_forms_of_a_label_file(text, scores, found):
    assert labels(text, scores) == found


def test_a_csv_of_one_column_has_a_header_whatever_its_length():
    assert labels("label\ncat\ndog\n", 2, "labels.csv") == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "scores", "message", "hint"),
    [
        ("cat\ndog\n", 3, "labels.txt has 2 labels, and the model 3 scores: line 2", "background class at 0"),
        ("Animals\ncat\ndog\n", 2, "labels.txt has 3 labels, and the model 2 scores", "'Animals', is a heading"),
        ("a\nb\nc\nd\n", 2, "labels.txt has 4 labels, and the model 2 scores", "a label for each score"),
        ("", 2, "labels.txt is empty", "a label per line"),
        ("cat\n" + "x" * 201, 2, "labels.txt, line 2: the label has 201 characters", "at most 200"),
        ("0  cat\n2  dog\n", 2, "labels.txt, line 2: the index is 2", "0 to 1"),
        ("0: cat\n0: dog\n", 2, "labels.txt, line 2: the index 0 is also in line 1", "each index once"),
        ("id,name\n1,cat\n2,dog\n", 2, "labels.txt, line 3: the index is 2", "0 to 1"),
        ("id,name\nx,cat\n", 2, "labels.txt, line 2: 'x' is no index", "whole numbers from 0"),
        ("id,name\n0,cat,1\n", 2, "labels.txt, line 2: the line has 3 columns", "write 2 columns"),
    ],
)  # fmt: skip
def test_what_is_wrong_names_file_and_line(text, scores, message, hint):
    with pytest.raises(ControlError) as refused:
        labels(text, scores)
    assert message in refused.value.message
    assert hint in refused.value.hint


def test_what_is_no_text_names_the_line():
    with pytest.raises(ControlError, match=r"labels\.txt, line 2: not UTF-8 text"):
        read(b"cat\n\xff\xfe", "labels.txt", 2)


def test_what_was_made_of_a_file_is_said():
    assert read(b"cat\ndog", "x", 2).note == ""
    assert read(b"0 cat", "x", 2).note == (
        "x: numbers at the beginning of lines are taken as indices of the labels; missing labels, named class_N: 1"
    )
    assert read(b"id,name\n0,cat\n1,dog", "x", 2).note == "x: labels from column 'name', indices from column 'id'"


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("person\n???\ncar\n", ("person", "???", "car")),
        ("0 person\n2  car\n", ("person", "???", "car")),
        ("1: person\n3: traffic light\n", ("???", "person", "???", "traffic light")),
    ],
)
def test_a_label_map_may_have_gaps(text, labels):
    assert read_map(text.encode(), "map.txt") == labels


def test_gaps_stay_gaps_and_labels_become_unique():
    assert mapped(("car", "", "???", "car")) == ("car", "???", "???", "car (2)")
