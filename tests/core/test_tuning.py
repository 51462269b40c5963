"""Choices from literal records of measurements."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edged.core import tuning
from edged.core.errors import StoreError
from edged.core.tuning import Environment, Library, Measurement, Surroundings, TuningRecord, choose, stale
from edged.core.ways import Way, as_in_manifest

LIBRARY = Library(path="/usr/lib/libedgetpu.so.1", bytes=1_000_000, mtime_ns=7)
EDGETPU = Surroundings(library=LIBRARY, devices=("usb:0",), options={})
HERE = Environment(runtime="ai-edge-litert 2.3.0", kernel="6.12.34", processors=4, delegates={"edgetpu": EDGETPU})
DIGEST = "d" * 64


def cpu(milliseconds, threads=1, failure=""):
    return Measurement(threads=threads, p50=milliseconds / 1e3, failure=failure)


def on(delegate, milliseconds, variant="v", failure=""):
    return Measurement(delegate=delegate, variant=variant, p50=milliseconds / 1e3, failure=failure)


def record(*measurements, **parts):
    whole = {"model": "motion", "version": "1.0", "digest": DIGEST, "environment": HERE, "measured": 1.7e9}
    return TuningRecord(**whole | parts, measurements=measurements or (cpu(1),))


TPU, NPU = Way("edgetpu", "v"), Way("teflon", "v")


@pytest.mark.parametrize(
    ("measurements", "order", "threads"),
    [
        ((cpu(5), on("edgetpu", 1), on("teflon", 2)), (TPU, NPU), 1),
        ((cpu(5), on("edgetpu", 2), on("teflon", 1)), (NPU, TPU), 1),
        ((cpu(5), on("edgetpu", 9), on("teflon", 1)), (NPU,), 1),  # ways slower than the CPU are left out
        ((cpu(5), on("edgetpu", 5), on("teflon", 9)), (TPU,), 1),  # as fast as the CPU, which saves the CPU
        ((cpu(1), on("edgetpu", 2), on("teflon", 3)), (), 1),
        ((cpu(5), on("edgetpu", 1), on("teflon", 2, failure="wrong")), (TPU,), 1),
        ((cpu(5), on("edgetpu", 1, failure="wrong"), on("teflon", 2, failure="wrong")), (), 1),
        ((cpu(5, failure="hung"), on("teflon", 2)), (NPU, TPU), 1),  # without a measurement of the CPU, all are tried
        ((cpu(8), cpu(4, 2), cpu(3.9, 3), on("edgetpu", 2)), (TPU,), 2),
        ((cpu(3), cpu(9, 2), on("edgetpu", 4)), (), 1),
    ],
)
def test_the_fastest_is_tried_first(measurements, order, threads):
    found = choose(record(*measurements), [TPU, NPU])
    assert (found.order, found.threads) == (order, threads)


@pytest.mark.parametrize(
    ("measurements", "order"),
    [
        ((cpu(1), on("edgetpu", 3), on("teflon", 2)), (NPU, TPU)),
        ((cpu(1), on("edgetpu", 3, failure="wrong"), on("teflon", 2)), (NPU, TPU)),
        ((cpu(1),), (TPU, NPU)),
    ],
)
def test_a_model_that_is_pinned_to_a_delegate_is_never_kept_off_it(measurements, order):
    assert choose(record(*measurements), [TPU, NPU], pinned=True).order == order


def test_what_was_measured_elsewhere_is_no_way_here():
    assert choose(record(cpu(5), on("teflon", 1)), [TPU]).order == ()


@pytest.mark.parametrize(
    ("milliseconds", "threads"),
    [
        ({1: 10.0}, 1),
        ({1: 10.0, 2: 8.0}, 2),
        ({1: 10.0, 2: 9.5}, 1),  # not worth a second processor
        ({1: 10.0, 2: 9.5, 3: 8.9, 4: 8.5}, 3),
        ({2: 3.0, 4: 1.0}, 4),
        ({}, 1),
    ],
)
def test_more_threads_have_to_be_worth_it(milliseconds, threads):
    measured = [cpu(taken, count) for count, taken in milliseconds.items()]
    assert choose(record(*measured, on("edgetpu", 1)), []).threads == threads


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (as_in_manifest([TPU]), "as in the manifest: not measured here by edgectl tune"),
        (choose(record(), [TPU], stale="the kernel is new"), "as in the manifest: the kernel is new"),
        (
            choose(record(cpu(8), cpu(2.5, 2), on("edgetpu", 0.125, "tpu")), [Way("edgetpu", "tpu")]),
            "measured here: edgetpu (tpu) took 0.125 ms, the CPU with 2 threads 2.5 ms",
        ),
        (
            choose(record(cpu(1), on("edgetpu", 3, "")), [Way("edgetpu", "")]),
            "measured here: the CPU with 1 thread took 1 ms, edgetpu 3 ms",
        ),
        (choose(record(cpu(1, failure="it hung")), []), "no way that was measured here works"),
    ],
)
def test_it_says_why(found, why):
    assert found.why == why


def test_without_a_record_the_manifest_has_the_order():
    assert as_in_manifest([NPU, TPU])[:2] == ((NPU, TPU), 1)
    assert choose(record(cpu(1), cpu(0.1, 2)), [NPU, TPU], stale="it is old")[:2] == ((NPU, TPU), 1)


def elsewhere(**parts):
    return replace(HERE, delegates={"edgetpu": replace(EDGETPU, **parts)})


@pytest.mark.parametrize(
    ("digest", "here", "why"),
    [
        (DIGEST, HERE, ""),
        ("e" * 64, HERE, "the record is for version 1.0, another version is loaded"),
        (
            DIGEST,
            replace(HERE, runtime="ai-edge-litert 2.4.0"),
            "measured with ai-edge-litert 2.3.0, now ai-edge-litert 2.4.0",
        ),
        (
            DIGEST,
            replace(HERE, kernel="6.12.40"),
            "measured under kernel 6.12.34, now 6.12.40",
        ),
        (DIGEST, replace(HERE, processors=2), "measured on 4 processors, now 2"),
        (DIGEST, replace(HERE, delegates={}), "the delegate edgetpu is gone since the measurement"),
        (
            DIGEST,
            replace(HERE, delegates={"edgetpu": EDGETPU, "teflon": EDGETPU}),
            "the delegate teflon is new since the measurement",
        ),
        (DIGEST, elsewhere(devices=("usb:0", "usb:1")), "the devices of edgetpu changed since the measurement"),
        (DIGEST, elsewhere(library=None), "the library of edgetpu changed since the measurement"),
        (
            DIGEST,
            elsewhere(library=replace(LIBRARY, mtime_ns=8)),
            "the library of edgetpu changed since the measurement",
        ),
        (DIGEST, elsewhere(options={"device": "usb"}), "the options of edgetpu changed since the measurement"),
    ],
)
def test_a_record_is_worth_nothing_where_anything_has_changed(digest, here, why):
    assert stale(record(), digest, here) == why


def test_a_record_comes_back_as_it_was():
    whole = record(cpu(1), replace(on("edgetpu", 2, failure="no"), hint="plug it in", celsius_before=48.5))
    assert tuning.decode(tuning.encode(whole)) == whole


SOUND = tuning.encode(record(cpu(1), on("edgetpu", 2)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        SOUND[:-10],
        SOUND.replace(b"edged.tuning/1", b"edged.tuning/2"),
        SOUND.replace(b'"motion"', b'"../motion"'),
        SOUND.replace(b'"measured"', b'"more": 1, "measured"'),
        SOUND.replace(b'"threads": 1', b'"threads": 17'),
        SOUND.replace(b'"p50": 0.001', b'"p50": -1'),
        SOUND.replace(b'"p50": 0.001', b'"p50": 1e999'),
        SOUND + b" " * tuning.MAX_RECORD_BYTES,
        b"\xff" + SOUND,
    ],
)
def test_a_damaged_record_is_refused(data):
    assert data != SOUND
    with pytest.raises(StoreError, match="is damaged"):
        tuning.decode(data)


@given(st.binary(max_size=200) | st.integers(0, len(SOUND)).map(lambda at: SOUND[:at] + b"\0" + SOUND[at + 1 :]))
def test_whatever_is_in_a_file_it_is_a_record_or_refused(data):
    try:
        found = tuning.decode(data)
    except StoreError:
        return
    assert isinstance(found, TuningRecord)


def test_the_largest_record_fits():
    each = msgspec.structs.replace(on("edgetpu", 1), failure="f" * tuning.MAX_TEXT, hint="h" * tuning.MAX_TEXT)
    whole = record(*[each] * 64)
    assert tuning.decode(tuning.encode(whole)) == whole
