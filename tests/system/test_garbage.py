import gc
import weakref

import pytest

from edged.system.garbage import freeze


class Part:
    """An object that refers to itself, like the parts of a daemon."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()


def test_what_a_reload_leaves_behind_is_collected_though_it_was_frozen_before():
    part = Part()
    freeze()
    assert gc.get_freeze_count() > 0
    ended = weakref.ref(part)
    del part
    gc.collect()
    assert ended() is not None
    freeze()
    assert ended() is None
