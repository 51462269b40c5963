"""CPU added to an inference on its way from a window to an encoded message, on a tiny model.

The window of the script is a list of rows, the window of edged an array: each variant begins with the output of its
own reader. The windows of edged wait in the mailbox before the measurement. Waking a thread for each window costs more
or less with their rate; the measure `latency` includes that cost, in the CPU time of the whole process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.bare import Bare
from benchmarks.inline import Counter, pipeline, recorded, served
from benchmarks.report import Figure, Target
from benchmarks.user_script import Classifier, make_message
from edged.api import Window
from edged.core.preprocess import Preprocessor
from edged.models.store import FACTORY, Store


def measure(rounds: int, inferences: int = 5000) -> list[Figure]:
    bundle = Store(FACTORY).find("motion")
    length = bundle.manifest.window.length
    samples = recorded()
    windows = [samples[at : at + length] for at in range(0, len(samples) - length, length // 2)]
    rows = [window.tolist() for window in windows]
    preprocess = Preprocessor(bundle.manifest)
    tensors = [preprocess(window)[0].copy() for window in windows]
    bare, classifier = Bare(bundle.model), Classifier(str(bundle.model))

    def run_bare() -> float:
        return _cpu(lambda: bare.run(tensors, inferences))

    def run_script() -> float:
        def script() -> None:
            for seq in range(inferences):
                make_message(seq, classifier(rows[seq % len(rows)]))

        return _cpu(script)

    def run_edged() -> float:
        outbox, model = Counter(), served(bundle)
        flow = pipeline(bundle, outbox, capacity=inferences)
        outbox.expect(inferences)

        def edged() -> None:
            for seq in range(inferences):
                flow.mailbox.put(Window(windows[seq % len(windows)], seq, time.monotonic()))
            flow.mailbox.ring()
            flow.serve(model)  # starts the worker
            outbox.wait()

        spent = _cpu(edged)
        flow.stop()
        flow.join(10)
        return spent

    variants = {"bare": run_bare, "script": run_script, "edged": run_edged}
    for run in variants.values():
        run()  # to warm up
    whole = Figure("CPU of an inference on a tiny model", "us", {name: [] for name in variants})
    for _ in range(rounds):
        for name, run in variants.items():
            whole.variants[name].append(run() / inferences * 1e6)

    added = Figure(
        "CPU added to an inference, window to encoded message",
        "us",
        {name: whole.differences(name, "bare") for name in ("script", "edged")},
    )
    added.targets.append(Target("edged adds at most 45 us", added.variants["edged"], 45))
    return [whole, added]


def _cpu(run: Callable[[], None]) -> float:
    """Return the seconds of CPU that all threads take for a run."""
    begun = time.process_time()
    run()
    return time.process_time() - begun
