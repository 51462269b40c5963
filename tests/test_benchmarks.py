"""Run the benchmarks, and check that compared programs do the same work. Speed is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import (
    added_cpu,
    data_path,
    detection,
    idle,
    imports,
    isolation,
    latency,
    pipelines,
    readme,
    spool,
    start,
    system_calls,
    throughput,
    updates,
)
from benchmarks import stages as stages_of_a_message
from benchmarks.inline import recorded, served
from benchmarks.processes import Sensor
from benchmarks.report import Figure, Skipped, Target, plain, table
from benchmarks.surroundings import OtherWork, Watch
from benchmarks.tracing import STRACE, calls
from benchmarks.user_script import Classifier, make_message, parse
from edged.models.store import FACTORY, Store

ROOT = Path(__file__).parents[1]


def rows_of_the_readme(figures: list[Figure | Skipped]) -> int:
    """Return how many rows of the table in README show these figures."""
    names = {figure.name for figure in figures}
    return sum(row.figure in names for row in readme.ROWS)


def test_the_script_and_edged_say_the_same_of_every_window():
    bundle = Store(FACTORY).find("motion")
    classifier, model = Classifier(str(bundle.model)), served(bundle)
    samples = recorded()
    for at in range(0, len(samples) - 40, 40):
        window = samples[at : at + 40]
        by_script = json.loads(make_message(at, classifier(window.tolist())))
        by_edged = model.postprocess(model.runner.run(model.preprocess(window)), None, at / 10)
        assert by_script["label"] == by_edged.label
        assert by_script["scores"] == pytest.approx({each.label: each.score for each in by_edged.scores}, abs=0.03)


def test_cpu_is_added_by_both():
    whole, added = added_cpu.measure(rounds=2, inferences=20)
    assert {name: len(values) for name, values in whole.variants.items()} == {"bare": 2, "script": 2, "edged": 2}
    assert list(added.variants) == ["script", "edged"]
    assert [target.limit for target in added.targets] == [45]


def test_every_decoder_of_detections_is_measured():
    results = detection.measure(rounds=1, runs=1)
    assert [figure.name for figure in results if figure.targets] == [detection.SSD, detection.YOLO]
    assert len(results) == 4
    assert set(results[2].variants) == {
        f"{decoder}, {dtype}"
        for decoder in ("yolov8, boxes last", "yolov8, boxes first", "yolov5")
        for dtype in ("float32", "int8")
    }


def test_throughput_counts_inferences_or_says_which_model_is_missing():
    results = throughput.measure(rounds=1, turns=1)
    assert rows_of_the_readme(results) == 1
    for result in results:
        if isinstance(result, Skipped):
            assert "EDGED_TEST_MODELS" in result.reason
            assert not throughput.MODELS.exists()
        else:
            assert 0 < result.variants["edged"][0] < 1e6


def test_every_sample_on_the_wire_gets_its_result_from_both():
    results = latency.measure(rounds=1, seconds=0.2)
    assert rows_of_the_readme(results) == 5
    figures = {figure.name: figure for figure in results}
    assert figures["samples without a result at 100 Hz"].variants == {"script": [0], "edged": [0]}
    for when in ("at 100 Hz", "at 1 kHz", "at 1 kHz beside other work"):
        (p50,) = figures[f"sensor to subscriber, p50 {when}"].variants["edged"]
        (p99,) = figures[f"sensor to subscriber, p99 {when}"].variants["edged"]
        assert 0 < p50 <= p99


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        (b"7,1,2,3,4,5,6\r\n", (7, [1, 2, 3, 4, 5, 6])),
        (b"1,2,3,4,5,6\r\n", None),
        (b"7,1,2,3,4,5,6,1,2\r\n", None),
        (b"7,1,2,3,4,5\r\n", None),
        (b"7,1,2,3,4,,6\r\n", None),
        (b"\xff7,1,2,3,4,5,6\r\n", None),
        (b"\r\n", None),
        (b"", None),
    ],
)
def test_the_script_passes_over_torn_lines(line: bytes, sample: tuple[int, list[float]] | None):
    assert parse(line) == sample


def test_cpu_is_added_between_a_line_and_the_socket():
    *whole, warm, cold = data_path.measure(rounds=1, seconds=0.2)
    for figure in whole:
        assert figure.variants["edged"][0] > figure.variants["bare"][0] > 0
    assert ([target.limit for target in warm.targets], cold.targets) == ([60], [])


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_system_calls_and_switches_are_counted_for_both():
    made, switches = system_calls.measure(rounds=1, seconds=0.2)
    assert rows_of_the_readme([made, switches]) == 1
    for figure in (made, switches):
        assert figure.variants["script"][0] > 1 < figure.variants["edged"][0]
    assert "script: " in made.notes[0]
    assert "read" in made.notes[1]


def test_an_idle_daemon_is_watched_beside_the_script():
    figures = idle.measure(rounds=1, seconds=0.5, settle=0.1)
    assert rows_of_the_readme(figures) == 1
    for figure in figures:
        assert list(figure.variants) == ["script", "edged"]


def test_calls_are_counted_by_name_within_a_time(tmp_path: Path):
    log = tmp_path / "calls.log"
    log.write_text(
        "7   10.000100 read(3, ..., 1)          = 1\n"
        "7   11.000100 read(3, ..., 1)          = 1\n"
        "8   11.000200 poll([{fd=3, events=POLLIN}], 1, 500 <unfinished ...>\n"
        "7   11.000300 sendto(4, ..., 20, 0, NULL, 0) = 20\n"
        "8   11.000400 <... poll resumed>)      = 1 ([{fd=3, revents=POLLIN}])\n"
        "7   11.000500 read(3, ..., 1)          = 1\n"
        "7   12.000000 read(3, 0x7f, 1)         = ? ERESTARTSYS (To be restarted if SA_RESTART is set)\n"
        "7   12.000100 --- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=1, si_uid=0} ---\n"
    )
    assert calls(log, began=11.0, ended=12.0) == {"read": 2, "poll": 1, "sendto": 1}


def test_pipelines_of_one_sensor_share_a_daemon_and_a_reload():
    same, equal, memory, reload = pipelines.measure(rounds=1, seconds=0.2, sharing=2, many=3)
    for figure in (same, equal):
        assert list(figure.variants) == ["with 1", "with 2"]
        assert all(value > 0 for (value,) in figure.variants.values())
    assert memory.variants["edged"][0] > 0 < reload.variants["edged"][0]


def test_start_and_memory_are_those_of_real_processes():
    figures = start.measure(rounds=1, starts=1)
    assert rows_of_the_readme(figures) == 2
    for figure in figures:
        assert figure.variants["edged"][0] > 0 < figure.variants["bare"][0]


def test_a_sensor_waits_for_nobody():
    sensor = Sensor()
    reader = os.open(sensor.port, os.O_RDONLY | os.O_NOCTTY)
    sensor.await_reader()
    sent = sensor.play(rate=100_000, seconds=0.05)
    assert list(sent) == list(range(5000))
    assert 0 < sensor.overruns < 5000
    os.close(reader)
    sensor.close()


def test_processes_of_the_benchmark_are_no_other_work():
    watch = Watch()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    work = watch.stop()
    assert work.seconds > 0
    assert 0 <= work.others <= 1


def test_a_busy_machine_is_a_reason_for_distrust():
    quiet = OtherWork(seconds=9.0, load_before=0.4, load_after=1.2, others=0.04, stolen=0.0)
    assert quiet.warning == ""
    assert quiet._replace(others=0.31).warning == "other processes took 31% of the cores"
    assert quiet._replace(stolen=0.2).warning == "other guests of the host took 20% of the cores"


def test_the_report_holds_the_median_against_the_limit():
    figure = Figure("width", "mm", {"bare": [1.0, 2.0, 2.0], "edged": [2.0, 2.0, 3.0]})
    figure.targets.append(Target("at most 1.5x bare", figure.ratios("edged", "bare"), 1.5))
    figure.targets.append(Target("at most 0.5 mm more", figure.differences("edged", "bare"), 0.5))
    figure.targets.append(Target("at least 1x bare", figure.ratios("edged", "bare"), 1, at_least=True))
    assert [target["verdict"] for target in plain(figure)["targets"]] == ["met", "MISSED", "met"]
    assert table([figure, Skipped("height", "no ruler")]).splitlines() == [
        "width, mm",
        "  bare                  2   (1 to 2)",
        "  edged                 2   (2 to 3)",
        "  at most 1.5x bare                                         1.5   met",
        "  at most 0.5 mm more                                         1   MISSED",
        "  at least 1x bare                                          1.5   met",
        "",
        "height",
        "  skipped: no ruler",
    ]


FIGURES = {
    "rounds": 5,
    "time": "2026-01-02T03:04:05Z",
    "machine": "a board",
    **dict.fromkeys(("kernel", "governor", "load", "python", "ai-edge-litert", "numpy", "paho-mqtt", "mosquitto"), "1"),
    "warnings": ["the load was 3.0 on 2 cores before the first measure"],
    "results": [
        plain(
            Figure(
                "CPU of the whole process at 100 Hz",
                "%",
                {"script": [10.0], "edged": [5.5]},
                [Target("edged at most 0.6x script", [0.55], 0.6)],
            )
        ),
        plain(
            Figure(
                "resident memory",
                "MB",
                {"bare": [40.0], "edged": [60.0]},
                [Target("at most + 15 MB", [20.0], 15)],
            )
        ),
        plain(Figure("warm CPU of each stage of a message", "us", {"decode": [4.96], "preprocess": [3.8]})),
        plain(Skipped("throughput on a model of about 10 ms", "no model")),
    ],
}


def test_the_tables_of_the_manual_come_from_the_figures():
    table = readme.ratios(FIGURES).splitlines()
    assert len(table) == 12
    assert "| CPU of the process at 100 Hz, of the script's | 0.55x | at most 0.6x | met |" in table
    assert "| memory beyond bare | 20 MB | at most 15 MB | missed |" in table
    assert "| throughput of a 10 ms model, of bare | not measured | | |" in table
    assert readme.described(FIGURES).endswith("**Busy machine**: the load was 3.0 on 2 cores before the first measure.")
    assert readme.targets(FIGURES).splitlines()[2:] == [
        "| CPU of the whole process at 100 Hz, % | script 10, edged 5.5 | edged at most 0.6x script | 0.55 | met |",
        "| resident memory, MB | bare 40, edged 60 | at most + 15 MB | 20 | missed |",
        "| throughput on a model of about 10 ms | skipped: no model | | | |",
    ]
    assert readme.plain_list(FIGURES, "warm CPU of each stage of a message").splitlines()[2:] == [
        "| decode | 5.0 |",
        "| preprocess | 3.8 |",
    ]


def test_a_table_replaces_what_its_markers_hold():
    text = "a\n<!-- benchmarks: one -->\nold\n<!-- benchmarks: end -->\nb\n"
    assert readme.replaced(text, "one", "new") == text.replace("old", "new")
    with pytest.raises(ValueError, match="no <!-- benchmarks: two -->"):
        readme.replaced(text, "two", "new")


def test_the_manual_has_a_place_for_each_table():
    readme.replaced(readme.README.read_text(), "ratios", "")
    for marker in ("run", "targets", *readme.PLAIN_LISTS):
        readme.replaced(readme.DOCS.read_text(), marker, "")


def test_stages_are_in_the_order_of_the_path():
    (stages,) = stages_of_a_message.measure(rounds=1, runs=10)
    first, *_, put, last = stages.variants
    assert (first, put, last) == ("source: decode a line", "outbox: put", "of it, the kernel's sending")


def test_imports_are_counted_by_package():
    lines = [
        "import time: self [us] | cumulative | imported package\n",
        "import time:       100 |        100 |   numpy.linalg\n",
        "import time:        20 |        120 | numpy\n",
        "import time:        30 |         30 |     edged.core.window\n",
        "import time:        40 |         70 | edged.flow.pipeline\n",
    ]
    assert imports.by_package(imports.imports(lines)) == {"numpy": 120, "edged.core": 30, "edged.flow": 40}


def test_imports_end_with_the_first_inference():
    (budget,) = imports.measure(rounds=1)
    assert budget.variants["all"][0] > budget.variants["edged.core"][0] > 0


def test_the_command_prints_the_table_and_writes_the_figures(tmp_path: Path):
    options = ["--rounds", "1", "--only", "added_cpu", "--json", str(tmp_path / "build" / "bench.json")]
    command = [sys.executable, "-m", "benchmarks.run", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "edged adds at most 45 us" in done.stdout
    written = json.loads((tmp_path / "build" / "bench.json").read_text())
    assert written["rounds"] == 1
    assert written["measures"]["added_cpu"]["seconds"] > 0
    assert written["python"] == sys.version.split()[0]
    assert [result["name"] for result in written["results"]] == [
        "CPU of an inference on a tiny model",
        "CPU added to an inference, window to encoded message",
    ]


def test_an_update_is_taken_by_a_daemon_that_infers():
    figures = {figure.name: figure for figure in updates.measure(rounds=1, sizes={"small": 1000}, cuts=1)}
    assert figures["windows lost in an update"].variants == {"small": [0]}
    assert figures["from the call to serving"].variants["small"][0] > 0


def test_what_a_process_adds_is_measured_on_both_sides():
    tiny, large = isolation.measure(rounds=2, turns=1)
    same_core, *other = ["process on the same core", "process on another core"][: len(os.sched_getaffinity(0))]
    assert {name: len(values) for name, values in tiny.variants.items()} == dict.fromkeys(
        ["thread", same_core, *other], 2
    )
    assert min(tiny.differences(same_core, "thread")) > 0
    if isinstance(large, Skipped):
        assert "EDGED_TEST_MODELS" in large.reason
    else:
        assert [target.limit for target in large.targets] == [1.0, *(1.0 for _ in other)]


def test_a_backlog_is_sent_and_the_card_is_spared():
    wear, first, rate, *_ = spool.measure(rounds=1, seconds=0.1, small=200, large=2000, outage=0.1)
    assert isinstance(wear, Skipped) or wear.variants["online"] == [0]
    assert list(rate.variants) == ["small", "large", "paho"]
    assert all(value > 0 for (value,) in [*rate.variants.values(), *first.variants.values()])
