from threading import Thread

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edged.core.types import Window
from edged.flow.mailbox import Mailbox


def window(seq: int) -> Window:
    return Window(np.full((2, 1), seq, np.float32), seq, float(seq))


def take_all(mailbox: Mailbox) -> list[tuple[int, float]]:
    return [(taken.seq, float(taken.samples[0, 0])) for taken in mailbox]


def test_windows_come_out_in_order_with_their_samples():
    mailbox = Mailbox(3, (2, 1), "float32")
    for seq in range(3):
        mailbox.put(window(seq))
    mailbox.close()
    assert take_all(mailbox) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert mailbox.dropped == 0


def test_a_window_is_copied_in_so_the_reader_may_overwrite_its_own():
    mailbox = Mailbox(1, (2, 1), "float32")
    mine = window(7)
    mailbox.put(mine)
    mine.samples[:] = 99
    mailbox.close()
    assert take_all(mailbox) == [(7, 7.0)]


def test_the_oldest_makes_room_and_is_counted():
    mailbox = Mailbox(2, (2, 1), "float32")
    for seq in range(10):
        mailbox.put(window(seq))
    mailbox.close()
    # Two may wait and one more is meant for the worker's hands, which are empty here.
    assert take_all(mailbox) == [(7, 7.0), (8, 8.0), (9, 9.0)]
    assert mailbox.dropped == 7


def test_the_window_in_the_workers_hands_is_never_overwritten():
    mailbox = Mailbox(1, (2, 1), "float32")
    mailbox.put(window(0))
    worker = iter(mailbox)
    held = next(worker)
    for seq in range(1, 6):
        mailbox.put(window(seq))
    assert held.samples.tolist() == [[0.0], [0.0]]
    mailbox.close()
    assert [taken.seq for taken in worker] == [5]


def test_a_patient_reader_waits_and_loses_nothing():
    mailbox = Mailbox(1, (2, 1), "float32", patient=True)

    def read() -> None:
        for seq in range(100):
            mailbox.put(window(seq))
        mailbox.close()

    reader = Thread(target=read)
    reader.start()
    assert [seq for seq, _ in take_all(mailbox)] == list(range(100))
    reader.join(5)
    assert mailbox.dropped == 0


def test_a_nudge_has_the_worker_come_round_and_costs_no_window():
    mailbox = Mailbox(2, (2, 1), "float32")
    mailbox.nudge()
    for seq in range(4):
        mailbox.put(window(seq))
    mailbox.close()
    assert [taken and taken.seq for taken in mailbox] == [1, 2, None, 3]
    assert mailbox.dropped == 1


def test_closing_frees_a_reader_that_waits_for_room():
    mailbox = Mailbox(1, (2, 1), "float32", patient=True)
    reader = Thread(target=lambda: [mailbox.put(window(seq)) for seq in range(5)])
    reader.start()
    mailbox.close()
    reader.join(5)
    assert not reader.is_alive()


def test_after_closing_windows_go_nowhere():
    mailbox = Mailbox(1, (2, 1), "float32")
    mailbox.close()
    for seq in range(5):
        mailbox.put(window(seq))
    assert list(mailbox) == []


@given(st.integers(1, 5), st.lists(st.integers(0, 4), max_size=30))
def test_every_window_is_either_taken_or_counted(capacity: int, bursts: list[int]):
    mailbox = Mailbox(capacity, (2, 1), "float32")
    worker = iter(mailbox)
    seq = taken = 0
    for burst in bursts:
        for _ in range(burst):
            mailbox.put(window(seq))
            seq += 1
        if mailbox.depth:
            next(worker)
            taken += 1
    mailbox.close()
    taken += sum(1 for _ in worker)
    assert taken + mailbox.dropped == seq
