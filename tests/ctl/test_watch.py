import json
import signal


def test_a_line_for_each_prediction(edgectl, daemon):
    first = daemon.records[0]
    daemon.records = [
        first,
        {**first, "changed": True, "time": 1_700_000_000.9996, "synchronised": False},
        {**first, "changed": True, "decision": None},
        {**first, "kind": "anomaly", "score": 0.5, "threshold": 0.4, "anomalous": True, "changed": True},
        {**first, "kind": "regression", "values": {"temperature": 21.5, "humidity": None}, "changed": False},
    ]
    assert edgectl("watch", "motion", "--count", "5") == (
        0,
        """\
  22:13:20.250  motion  walking 0.912  1.31 ms
> 22:13:20.999?  motion  walking 0.912  1.31 ms  decided: walking
> 22:13:20.250  motion  walking 0.912  1.31 ms  decided: nothing
> 22:13:20.250  motion  anomalous 0.5  1.31 ms  alarm
  22:13:20.250  motion  temperature 21.5, humidity nan  1.31 ms
""",
        "",
    )
    assert daemon.asked == [("watch", {"pipeline": "motion"})]


def test_json_is_the_record_on_a_line(edgectl, daemon):
    code, output, _ = edgectl("watch", "--json", "--count", "1")
    assert code == 0
    assert output.count("\n") == 1
    assert json.loads(output) == daemon.records[0]


def test_ctrl_c_is_how_one_stops(command, daemon):
    process = command("watch")
    assert "walking" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0


def test_a_pipeline_that_is_not_there(edgectl, daemon):
    assert edgectl("watch", "door") == (4, "", "edgectl: there is no pipeline 'door'\n  there are: motion\n")
