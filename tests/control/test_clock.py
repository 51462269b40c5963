import time

from edged.control.clock import KernelClock, kernel_synchronised


class Board:
    """A board's two clocks and what its kernel thinks of them."""

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


def test_this_machine():
    clock = KernelClock()
    assert abs(clock.at(time.monotonic()) - time.time()) < 1.0
    assert clock.synchronised == kernel_synchronised()
