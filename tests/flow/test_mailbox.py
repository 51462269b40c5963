from threading import Thread

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edged.core.types import Window
from edged.flow.mailbox import Mailbox


def window(seq: int) -> Window:
    return Window(np.full((2, 1), seq, np.float32), seq, float(seq))


def put(mailbox: Mailbox, first: int, count: int, now: float, *, serving: bool = True) -> None:
    """Put a chunk with `count` windows."""
    mailbox.make_room(now, serving=serving)
    for seq in range(first, first + count):
        mailbox.put(window(seq))


def take(mailbox: Mailbox, count: int) -> list[int]:
    return [taken.seq for _ in range(count) if (taken := mailbox.take())]


def take_all(mailbox: Mailbox) -> list[int]:
    mailbox.close()
    return take(mailbox, mailbox.depth)


def crowded(capacity: int, seconds: int, *, room: int = 1000) -> Mailbox:
    """Return a mailbox that got three windows per second, of which the worker took one."""
    mailbox = Mailbox(capacity, room)
    for second in range(seconds):
        put(mailbox, 3 * second, 3, 100.0 + second)
        take(mailbox, 1)
    return mailbox


def test_windows_come_out_in_order_with_their_samples() -> None:
    mailbox = Mailbox(3)
    put(mailbox, 0, 3, 100.0)
    assert [(taken.seq, taken.samples.tolist()) for _ in range(3) if (taken := mailbox.take())] == [
        (0, [[0.0], [0.0]]),
        (1, [[1.0], [1.0]]),
        (2, [[2.0], [2.0]]),
    ]
    assert mailbox.take() is None


def test_what_one_chunk_brings_is_taken_in_whole() -> None:
    mailbox = Mailbox(4)
    put(mailbox, 0, 500, 100.0)
    assert take_all(mailbox) == list(range(500))
    assert mailbox.dropped == 0


def test_chunks_that_come_at_once_after_a_stop_wait_their_turn() -> None:
    mailbox = Mailbox(4, 1000)
    for chunk in range(10):
        put(mailbox, 20 * chunk, 20, 100.0)
    put(mailbox, 200, 1, 160.0)  # the process was stopped again, for a minute
    assert take_all(mailbox) == list(range(201))
    assert (mailbox.dropped, mailbox.behind(160.0)) == (0, "")


def test_a_worker_that_gains_on_what_waits_is_not_behind() -> None:
    mailbox = Mailbox(2, 10_000)
    put(mailbox, 0, 1000, 100.0)
    came = 1000
    for second in range(101, 160):
        put(mailbox, came, 10, float(second))
        came += 10
        take(mailbox, min(25, mailbox.depth))
    assert (mailbox.dropped, mailbox.behind(160.0)) == (0, "")
    assert mailbox.depth < 1000


def test_a_worker_that_does_not_catch_up_is_behind_and_has_the_latest_windows_left() -> None:
    mailbox = crowded(2, 5)
    assert (mailbox.dropped, mailbox.behind(104.0)) == (0, "")
    put(mailbox, 15, 3, 105.0)
    put(mailbox, 18, 3, 106.0)
    assert mailbox.behind(106.0) == "behind: it took 4 of the 15 windows of the last 5 s"
    assert take_all(mailbox) == [16, 17, 18, 19, 20]
    assert mailbox.dropped == 11


def test_a_worker_that_is_behind_stays_so_until_nothing_was_dropped_for_a_while() -> None:
    mailbox = crowded(2, 7)
    why = mailbox.behind(106.0)
    assert why
    assert mailbox.depth == 4
    put(mailbox, 21, 3, 107.0)
    assert mailbox.depth == 5
    for second in range(108, 120):  # now the worker keeps up, though each chunk exceeds the capacity
        take(mailbox, mailbox.depth)
        put(mailbox, 3 * second, 3, float(second))
        assert mailbox.behind(float(second)) == (why if second < 117 else "")


def test_memory_is_bounded_for_a_worker_that_hangs() -> None:
    mailbox = Mailbox(2, 50)
    for seq in range(200):
        put(mailbox, seq, 1, 100.0)
    assert mailbox.depth <= 51
    assert mailbox.behind(100.0) == "behind: it took 0 of the 49 windows of the last 1 s"


def test_a_worker_that_was_short_of_room_for_a_moment_loses_no_more_than_that() -> None:
    mailbox = Mailbox(2, 50)
    for chunk in range(4):
        put(mailbox, 20 * chunk, 20, 100.0)
    put(mailbox, 80, 1, 101.0)
    assert mailbox.behind(101.0)
    assert take_all(mailbox) == list(range(30, 81))
    assert mailbox.dropped == 30


def test_windows_wait_for_as_long_as_nothing_serves() -> None:
    mailbox = Mailbox(2, 1000)
    for second in range(60):
        put(mailbox, second, 1, 100.0 + second, serving=False)
    put(mailbox, 60, 1, 160.0)
    assert take_all(mailbox) == list(range(61))
    assert mailbox.dropped == 0


def test_a_patient_reader_waits_and_loses_nothing() -> None:
    mailbox = Mailbox(1, patient=True)

    def read() -> None:
        for seq in range(100):
            mailbox.put(window(seq))
            mailbox.ring()
        mailbox.close()

    reader = Thread(target=read)
    reader.start()
    taken = list[int]()
    for _ in mailbox:
        assert mailbox.depth <= 1
        taken += take(mailbox, mailbox.depth)
    reader.join(120)
    assert taken == list(range(100))
    assert mailbox.dropped == 0


def test_a_call_is_heard_once_whether_or_not_windows_wait() -> None:
    mailbox = Mailbox(2)
    calls = iter(mailbox)
    mailbox.ring()
    mailbox.ring()
    next(calls)
    mailbox.close()
    assert list(calls) == [None]


def test_the_last_call_comes_after_the_close_so_that_no_window_is_left() -> None:
    mailbox = Mailbox(2)
    calls = iter(mailbox)
    mailbox.ring()
    next(calls)
    put(mailbox, 0, 1, 100.0)
    mailbox.close()
    next(calls)
    assert take_all(mailbox) == [0]
    assert list(calls) == []


def test_closing_frees_a_reader_that_waits_for_room() -> None:
    mailbox = Mailbox(1, patient=True)
    reader = Thread(target=lambda: [mailbox.put(window(seq)) for seq in range(5)])
    reader.start()
    mailbox.close()
    reader.join(120)
    assert not reader.is_alive()


def test_after_closing_windows_go_nowhere() -> None:
    mailbox = Mailbox(1)
    mailbox.close()
    put(mailbox, 0, 5, 100.0)
    assert mailbox.take() is None


CHUNKS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0, 3)), max_size=60)


@given(st.integers(1, 5), st.integers(1, 20), CHUNKS)
def test_every_window_is_either_taken_in_order_or_counted(
    capacity: int, room: int, chunks: list[tuple[int, int, float]]
) -> None:
    mailbox = Mailbox(capacity, room)
    came, now, taken = 0, 100.0, list[int]()
    for brought, worked_off, pause in chunks:
        put(mailbox, came, brought, now)
        assert mailbox.depth <= max(capacity, room) + brought
        came, now = came + brought, now + pause
        taken += take(mailbox, min(worked_off, mailbox.depth))
    taken += take_all(mailbox)
    assert taken == sorted(set(taken))
    assert len(taken) + mailbox.dropped == came


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 30), st.floats(0, 100)), max_size=60))
def test_a_worker_that_works_off_each_chunk_before_the_next_loses_nothing(
    capacity: int, chunks: list[tuple[int, float]]
) -> None:
    mailbox = Mailbox(capacity)
    came, now = 0, 100.0
    for brought, pause in chunks:
        put(mailbox, came, brought, now)
        assert take(mailbox, brought) == list(range(came, came + brought))
        came, now = came + brought, now + pause
    assert (mailbox.dropped, mailbox.behind(now)) == (0, "")
