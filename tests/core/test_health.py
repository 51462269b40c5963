from edged.core.health import Health, Status


def test_a_reason_is_text_that_a_record_can_hold_and_is_told_once():
    heard: list[Health] = []
    status = Status("wrist", float, lambda name, health: heard.append(health))
    for _ in range(2):
        status.set("failed", "caf\udce9.csv is gone", "look for caf\udce9.csv")
    assert heard == [Health("failed", "caf?.csv is gone", "look for caf?.csv", 0.0)]
