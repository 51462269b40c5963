import gc
import subprocess
from pathlib import Path

import pytest

from edged.api import DeviceError, ModelError
from edged.backends.delegates import Delegation
from edged.backends.probe import ProbeAnswer, probe
from edged.core.acceleration import Rules
from tests.bundles import DATA
from tests.delegates import faulty_library

CREATE = "void *tflite_plugin_create_delegate(char **keys, char **values, unsigned long count, void (*report)(char *))"
DESTROY = "void tflite_plugin_destroy_delegate(void *delegate) {}"


@pytest.fixture
def library(tmp_path):
    """Return a function that compiles a library of a line of C and returns a delegation to it."""

    def library(body: str) -> Delegation:
        (tmp_path / "delegate.c").write_text(
            f"#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n{CREATE} {{ {body} }}\n{DESTROY}\n"
        )
        compiler = ["gcc", "-shared", "-fPIC", "-o", tmp_path / "libdelegate.so", tmp_path / "delegate.c"]
        subprocess.run(compiler, check=True)
        return delegation(str(tmp_path / "libdelegate.so"))

    return library


def delegation(path: str) -> Delegation:
    return Delegation(name="mine", kind="external", device="", library=path, options={})


def test_a_library_that_makes_a_delegate(library):
    assert probe(library("return calloc(1, 200);"), Rules()) == ProbeAnswer()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("*(volatile int *)0 = 1; return 0;", r"kills the process with SIGSEGV \(Segmentation fault\)"),
        (
            'fprintf(stderr, "F: no such\\tring\\n"); abort();',
            r'kills .* SIGABRT \(Aborted\); the last line of output: "F: no suchring"',
        ),
        ("exit(3);", "makes the process exit with 3"),
        ("exit(0);", "makes the process exit with 0"),
        ('printf("{}"); exit(0);', "makes the process exit with 0"),
    ],
)
def test_a_library_that_does_not_fit_the_runtime(library, body, words):
    with pytest.raises(
        DeviceError, match=rf"mine: .*libdelegate\.so does not fit this runtime: loading it {words}"
    ) as no:
        probe(library(body), Rules())
    assert "was built for this TFLite runtime" in no.value.hint


def test_a_library_that_hangs(library):
    with pytest.raises(DeviceError, match=r"mine: loading .*libdelegate\.so was not done in 1 s"):
        probe(library("for (;;) pause();"), Rules(load_seconds=1.0))


def test_a_library_that_talks_without_end_is_heard(library):
    talk = 'for (int i = 0; i < 50000; i++) fprintf(stderr, "line %d\\n", i); abort();'
    with pytest.raises(DeviceError, match='the last line of output: "line 49999"'):
        probe(library(talk), Rules())


def test_a_library_that_eats_all_it_can(library):
    eat = "for (;;) { char *p = malloc(1 << 20); if (!p) abort(); for (int i = 0; i < 1 << 20; i += 4096) p[i] = 1; }"
    with pytest.raises(DeviceError, match="does not fit this runtime"):
        probe(library(eat), Rules(memory=256 << 20))


def test_a_delegate_that_finds_no_device_says_nothing(library):
    with pytest.raises(DeviceError, match=r"mine: .*libdelegate\.so refuses to work, without a reason"):
        probe(library("return 0;"), Rules())


def test_a_delegate_that_says_what_it_lacks(library):
    with pytest.raises(DeviceError, match="refuses to work: no ring 0"):
        probe(library('report("no ring 0"); return 0;'), Rules())


def test_a_library_that_is_not_there():
    with pytest.raises(DeviceError, match=r"mine: /nowhere/libx\.so does not exist"):
        probe(delegation("/nowhere/libx.so"), Rules())


def test_a_file_that_is_no_library(tmp_path):
    (tmp_path / "libx.so").write_text("#!/bin/sh\n" * 100)
    with pytest.raises(DeviceError, match=r"mine: .*libx\.so is damaged, or for another processor: invalid ELF header"):
        probe(delegation(str(tmp_path / "libx.so")), Rules())


def test_a_library_that_is_no_delegate(tmp_path):
    (tmp_path / "x.c").write_text("int x;")
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "libx.so", tmp_path / "x.c"], check=True)
    with pytest.raises(DeviceError, match=r"libx\.so is a library, but no TFLite delegate"):
        probe(delegation(str(tmp_path / "libx.so")), Rules())


def test_a_library_that_needs_another(tmp_path):
    (tmp_path / "usb.c").write_text("int usb(void) { return 1; }")
    (tmp_path / "x.c").write_text("int usb(void); int x(void) { return usb(); }")
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "libusb-9.so", tmp_path / "usb.c"], check=True)
    linked = ["-L", tmp_path, "-l:libusb-9.so"]
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "libx.so", tmp_path / "x.c", *linked], check=True)
    (tmp_path / "libusb-9.so").unlink()
    with pytest.raises(DeviceError, match=r"libx\.so needs libusb-9\.so, which is not installed"):
        probe(delegation(str(tmp_path / "libx.so")), Rules())


def test_a_library_with_a_symbol_that_nobody_has(tmp_path):
    (tmp_path / "x.c").write_text("int tflite_of_old; extern int gone(void); int x(void) { return gone(); }")
    subprocess.run(["gcc", "-shared", "-Wl,-z,now", "-o", tmp_path / "libx.so", tmp_path / "x.c"], check=True)
    with pytest.raises(DeviceError, match=r"libx\.so does not fit this system: undefined symbol: gone"):
        probe(delegation(str(tmp_path / "libx.so")), Rules())


def test_no_descriptor_is_left(library):
    loaded = library("return calloc(1, 200);")
    gc.collect()  # descriptors left open by other tests must not be closed during this test
    before = [*Path("/proc/self/fd").iterdir()]
    probe(loaded, Rules())
    assert [*Path("/proc/self/fd").iterdir()] == before


def orders(**options: str) -> Delegation:
    return Delegation(name="faulty", kind="external", device="", library=faulty_library(), options=options)


@pytest.mark.parametrize(
    ("model", "options", "answer"),
    [
        ("float.tflite", {}, ProbeAnswer(nodes=1, delegated=1)),
        ("uint8.tflite", {}, ProbeAnswer(nodes=3, delegated=1)),
        ("float.tflite", {"take": "none"}, ProbeAnswer(nodes=1, delegated=0)),
    ],
)
def test_how_much_it_takes_of_a_model(model, options, answer):
    assert probe(orders(**options), Rules(), DATA / model) == answer


def test_a_model_that_it_fails_to_take():
    with pytest.raises(ModelError, match=r"faulty fails to take float\.tflite: .*prepare failed, as told"):
        probe(orders(fail="prepare"), Rules(), DATA / "float.tflite")
