"""Types of answers, and the check of a decoded document."""

from typing import NotRequired, TypedDict

import msgspec
import pytest

from edged.core import answers, update_answers
from edged.core.answers import ResultAnswer
from edged.core.errors import ControlError
from edged.core.protocol import Call, Stream, check
from edged.core.record import Result


class Part(TypedDict):
    name: str
    rate: float | None


class Whole(TypedDict):
    parts: list[Part]
    faults: dict[str, int]
    older: NotRequired[bool]


SOUND = {"parts": [{"name": "imu", "rate": 1}, {"name": "mic", "rate": None}], "faults": {"short": 2}}


@pytest.mark.parametrize("document", [SOUND, {**SOUND, "older": True}, {**SOUND, "newer": [1]}])
def test_a_document_that_fits_comes_back_as_it_is(document):
    assert check(document, Whole, "whole") is document


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parts": {}}, "parts is no list"),
        ({"parts": [{"name": "imu"}]}, "parts[0].rate is missing"),
        ({"parts": [*SOUND["parts"], {"name": "x", "rate": "fast"}]}, "parts[2].rate is str, not float"),
        ({"parts": [{"name": "x", "rate": True}]}, "parts[0].rate is bool, not float"),
        ({"faults": {"short": 1.5}}, "faults.short is float, not int"),
        ({"faults": []}, "faults is no object"),
        ({"older": 1}, "older is int, not bool"),
    ],
)
def test_a_document_that_does_not_fit_is_refused_with_its_place(change, problem):
    with pytest.raises(ControlError) as caught:
        check({**SOUND, **change}, Whole, "whole")
    assert caught.value.message == f"the daemon's answer to 'whole' cannot be read: {problem}"


NAMES = vars(answers) | vars(update_answers)
VERBS = [each for each in NAMES.values() if isinstance(each, Call | Stream)]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.verb)
@pytest.mark.parametrize("document", [None, 1, "text", [1], [{}], {"id": [], "job": 3, "offset": "x"}])
def test_every_verb_checks_whatever_a_socket_says(verb, document):
    kind = verb.answer if isinstance(verb, Call) else verb.event
    with pytest.raises(ControlError, match=f"answer to '{verb.verb}' cannot be read"):
        check(document, kind, verb.verb)


def test_a_result_has_the_keys_of_the_records():
    fields = {field.encode_name for kind in Result.__subclasses__() for field in msgspec.structs.fields(kind)}
    assert ResultAnswer.__annotations__.keys() == fields | {"kind", "count"}
