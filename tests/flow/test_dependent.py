from edged.core.health import Health
from edged.flow.dependent import DependentStatus

UNPLUGGED = Health("failed", "source 'wrist': /dev/imu is gone", "plug it in", 0.0)


class Heard(list[tuple[str, str]]):
    """The states of a pipeline as its listener heard them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.status = DependentStatus("motion", lambda: self.now, self.hear)

    def hear(self, _name: str, health: Health) -> None:
        self.append((health.state, health.reason))


def test_a_pipeline_whose_source_dies_is_failed_for_its_reason():
    heard = Heard()
    heard.status.set("running")
    heard.now = 5.0
    heard.status.depend(UNPLUGGED)
    assert heard == [("running", ""), ("failed", UNPLUGGED.reason)]
    assert heard.status.health == Health("failed", UNPLUGGED.reason, "plug it in", 5.0)
    assert not heard.status.live


def test_a_window_in_hand_does_not_make_it_run():
    heard = Heard()
    heard.status.depend(UNPLUGGED)
    heard.status.set("running")
    assert heard.status.health.state == "failed"


def test_it_runs_again_with_the_first_answer_after_the_source_is_back():
    heard = Heard()
    heard.status.set("running")
    heard.status.depend(UNPLUGGED)
    heard.status.depend(None)
    assert heard.status.health.state == "starting"
    heard.status.set("running")
    assert [state for state, _ in heard] == ["running", "failed", "starting", "running"]


def test_a_source_that_was_never_dead_changes_nothing():
    heard = Heard()
    heard.status.set("running")
    heard.status.depend(None)
    assert heard == [("running", "")]


def test_its_own_failure_and_its_end_count_more():
    heard = Heard()
    heard.status.set("failed", "its model 'motion': damaged")
    heard.status.depend(UNPLUGGED)
    heard.status.depend(None)
    heard.status.set("stopped")
    heard.status.depend(UNPLUGGED)
    assert heard == [("failed", "its model 'motion': damaged"), ("stopped", "")]
