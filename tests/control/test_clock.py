import select
import time

from edged.control.clock import KernelClock, SetNotice, kernel_synchronised


class Board:
    """A board with two clocks and the kernel's opinion of them."""

    def __init__(self, wall, monotonic, synchronised):
        self.wall, self.monotonic, self.synchronised = wall, monotonic, synchronised

    def clock(self):
        return KernelClock(lambda: self.wall, lambda: self.monotonic, lambda: self.synchronised)


def test_a_moment_of_this_boot_as_unix_time():
    clock = Board(wall=1_700_000_000.0, monotonic=50.0, synchronised=True).clock()
    assert clock.at(40.0) == 1_699_999_990.0
    assert clock.synchronised


def test_a_clock_that_is_set_is_believed_one_refresh_after_its_time_is_known():
    board = Board(wall=0.0, monotonic=10.0, synchronised=False)
    clock = board.clock()
    board.wall, board.monotonic, board.synchronised = 1_700_000_000.0, 15.0, True
    clock.refresh()
    assert (clock.at(15.0), clock.synchronised) == (1_700_000_000.0, False)
    clock.refresh()
    assert clock.synchronised


def test_a_clock_that_loses_its_source_is_doubted_at_once():
    board = Board(wall=1_700_000_000.0, monotonic=10.0, synchronised=True)
    clock = board.clock()
    board.synchronised = False
    clock.refresh()
    assert not clock.synchronised


def test_a_clock_that_was_set_is_not_believed_before_that_is_noticed():
    board = Board(wall=1_700_000_000.0, monotonic=10.0, synchronised=True)
    clock = board.clock()
    board.wall += 2 * 86_400
    assert not clock.synchronised


def test_what_was_made_before_the_clock_was_set_keeps_its_time():
    board = Board(wall=1_700_000_000.0, monotonic=10.0, synchronised=True)
    clock = board.clock()
    board.wall, board.monotonic, board.synchronised = 1_700_172_810.0, 20.0, False
    assert clock.refresh()
    assert not clock.synchronised
    assert clock.at(15.0) == 1_700_000_005.0
    assert clock.at(21.0) == 1_700_172_811.0


def test_what_was_made_while_the_time_was_not_known_is_told_by_the_first_that_is():
    board = Board(wall=0.0, monotonic=10.0, synchronised=False)
    clock = board.clock()
    board.wall, board.monotonic, board.synchronised = 1_700_000_000.0, 20.0, True
    assert [clock.refresh(), clock.refresh(), clock.synchronised] == [True, False, True]
    board.wall, board.monotonic, board.synchronised = 1_800_000_000.0, 30.0, False
    clock.refresh()
    assert clock.at(15.0) == 1_699_999_995.0
    assert [clock.knows(moment) for moment in (15.0, 25.0, 30.0)] == [True, True, False]


def test_of_what_no_time_source_has_vouched_for_nothing_is_known():
    board = Board(wall=1_700_000_000.0, monotonic=10.0, synchronised=False)
    clock = board.clock()
    board.wall, board.monotonic = 1_800_000_000.0, 20.0
    clock.refresh()
    assert [clock.knows(moment) for moment in (15.0, 20.0)] == [False, False]


def test_a_jump_that_is_not_noticed_yet_makes_what_it_follows_no_less_known():
    board = Board(wall=0.0, monotonic=10.0, synchronised=False)
    clock = board.clock()
    board.wall, board.monotonic, board.synchronised = 1_700_000_000.0, 20.0, True
    clock.refresh(), clock.refresh()
    board.wall += 86_400
    assert not clock.knows(25.0)
    board.monotonic, board.wall = 30.0, board.wall + 10
    clock.refresh()
    assert (clock.knows(25.0), clock.at(25.0)) == (True, 1_700_000_005.0)


def test_a_clock_that_is_only_slewed_is_believed_all_the_time():
    board = Board(wall=1_700_000_000.0, monotonic=10.0, synchronised=True)
    clock = board.clock()
    board.wall, board.monotonic = 1_700_000_005.003, 15.0
    assert clock.synchronised
    assert not clock.refresh()
    assert (clock.synchronised, clock.at(15.0)) == (True, 1_700_000_005.003)


def test_a_clock_that_is_set_all_the_time_takes_no_more_memory():
    board = Board(wall=1_700_000_000.0, monotonic=10.0, synchronised=True)
    clock = board.clock()
    for _ in range(100):
        board.wall, board.monotonic = board.wall + 10, board.monotonic + 1
        clock.refresh()
    assert len(clock._eras) == 16
    assert clock.at(board.monotonic) == board.wall


def test_nobody_is_told_that_the_clock_was_set_while_it_was_not():
    notice = SetNotice()
    assert notice.descriptor >= 0
    assert select.select([notice.descriptor], [], [], 0) == ([], [], [])
    notice.take()
    notice.close()
    notice.close()


def test_this_machine():
    clock = KernelClock()
    assert abs(clock.at(time.monotonic()) - time.time()) < 1.0
    assert clock.synchronised == kernel_synchronised()
