from edged.outbox.states import RetainedStates


def test_the_latest_state_of_each_topic_is_sent_once() -> None:
    states = RetainedStates()
    states.put("a", b"1")
    states.put("b", b"1")
    states.put("a", b"2")

    assert states.take(10) == [("a", b"2"), ("b", b"1")]
    assert states.take(10) == []


def test_what_has_not_changed_is_not_sent_unless_repeated() -> None:
    states = RetainedStates()
    states.put("a", b"1")
    states.take(10)
    states.put("a", b"1")
    assert not states.changed

    states.repeat("a")
    states.repeat("never seen")
    assert states.take(10) == [("a", b"1")]


def test_a_new_connection_starts_with_all_of_them() -> None:
    states = RetainedStates()
    states.put("a", b"1")
    states.put("b", b"2")
    states.take(10)

    assert states.restart() == {"a", "b"}
    assert states.take(1) == [("a", b"1")]
    assert states.take(0) == []
    assert states.take(-1) == []
    assert states.take(1) == [("b", b"2")]


def test_a_state_that_was_taken_back_is_forgotten_when_the_broker_has_confirmed_it() -> None:
    states = RetainedStates()
    states.put("a", b"1")
    states.put("a", b"")
    assert states.take(10) == [("a", b"")]
    assert states.restart() == {"a"}

    states.confirm("a", b"")
    assert states.restart() == set()


def test_one_that_was_taken_back_and_then_set_again_stays() -> None:
    states = RetainedStates()
    states.put("a", b"")
    states.take(10)
    states.put("a", b"1")
    states.confirm("a", b"")

    assert states.take(10) == [("a", b"1")]
