from edged.core.topics import Topics

TOPICS = Topics("site/edged", "board-1")


def test_every_topic_starts_with_the_prefix_and_the_device() -> None:
    assert TOPICS.availability == "site/edged/board-1/availability"
    assert TOPICS.state == "site/edged/board-1/state"
    assert TOPICS.source_state("imu") == "site/edged/board-1/sources/imu/state"
    assert TOPICS.model_state("gait") == "site/edged/board-1/models/gait/state"
    assert TOPICS.model_accelerator("gait") == "site/edged/board-1/models/gait/accelerator"
    assert TOPICS.pipeline_state("motion") == "site/edged/board-1/pipelines/motion/state"
    assert TOPICS.result("motion") == "site/edged/board-1/pipelines/motion/result"
