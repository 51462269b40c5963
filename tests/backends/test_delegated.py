"""DelegatedTflite with a real delegate, loaded by the real runtime. Without faults no child process is needed."""

import msgspec
import numpy as np
import pytest

from edged.api import DeviceError, ModelError
from edged.backends.tflite import DelegatedTflite, TfliteBackend
from edged.testing.backend_contract import BackendContract
from tests.bundles import DATA
from tests.delegates import faulty
from tests.real_models import real_model


def ones(runner):
    return [np.ones(spec.shape, spec.dtype) for spec in runner.inputs]


class TestDelegatedContract(BackendContract):
    @pytest.fixture
    def backend(self):
        return faulty()

    @pytest.fixture
    def model_file(self):
        return DATA / "float.tflite"

    def test_the_configuration_is_made_from_a_table_and_refuses_unknown_keys(self, backend):
        """A delegate is found on the board; a table in the configuration cannot make one."""
        with pytest.raises(msgspec.ValidationError, match="`device`"):
            msgspec.convert({**msgspec.to_builtins(backend), "device": "usb:0"}, DelegatedTflite)


class TestCompiledContract(TestDelegatedContract):
    @pytest.fixture
    def model_file(self):
        return DATA / "edgetpu.tflite"


def test_it_travels_to_a_child_as_json():
    options = DelegatedTflite(
        delegate="coral", library="/usr/lib/libedgetpu.so.1", options={"device": "usb:0"}, threads=2
    )
    assert msgspec.json.decode(msgspec.json.encode(options), type=DelegatedTflite) == options


@pytest.mark.parametrize(
    ("model", "options", "nodes", "delegated"),
    [
        ("float.tflite", {}, 1, 1),
        ("int8.tflite", {}, 1, 1),
        ("uint8.tflite", {}, 3, 1),
        ("edgetpu.tflite", {}, 1, 1),
        ("float.tflite", {"take": "none"}, 1, 0),
    ],
)
def test_what_the_delegate_took(model, options, nodes, delegated):
    runner = faulty(**options).load(DATA / model)
    assert (runner.info.delegate, runner.info.nodes, runner.info.delegated) == ("faulty", nodes, delegated)


def test_what_the_runtimes_own_delegate_took_is_not_counted():
    runner = faulty().load(real_model("mlperf_tiny_kws_fp32.tflite"))
    assert 0 < runner.info.delegated < runner.info.nodes
    assert TfliteBackend().load(real_model("mlperf_tiny_kws_fp32.tflite")).info.delegated == 0


def test_several_nodes_in_a_row_are_one_for_the_delegate_and_several_for_us():
    info = faulty().load(real_model("mlperf_tiny_ad01_int8.tflite")).info
    assert (info.nodes, info.delegated) == (10, 10)


@pytest.mark.parametrize("model", ["int8.tflite", "uint8.tflite", "float.tflite"])
def test_it_computes_what_the_cpu_computes(model):
    accelerated, cpu = faulty().load(DATA / model), TfliteBackend().load(DATA / model)
    assert (accelerated.inputs, accelerated.outputs) == (cpu.inputs, cpu.outputs)
    np.testing.assert_allclose(accelerated.run(ones(cpu))[0].astype(float), cpu.run(ones(cpu))[0].astype(float), atol=1)


def test_what_is_left_of_a_compiled_file_nothing_else_can_run():
    with pytest.raises(ModelError, match=r"faulty leaves the op edgetpu-custom-op of edgetpu\.tflite, which nothing"):
        faulty(take="none").load(DATA / "edgetpu.tflite")


def test_a_file_compiled_for_another_accelerator():
    with pytest.raises(ModelError, match=r"faulty leaves the op ethos-u of tflm_person_detect_vela\.tflite"):
        faulty().load(real_model("tflm_person_detect_vela.tflite"))


def test_a_delegate_that_fails_to_take_the_model():
    with pytest.raises(
        ModelError, match=r"faulty fails to take float\.tflite: .*prepare failed, as told \("
    ) as refused:
        faulty(fail="prepare").load(DATA / "float.tflite")
    assert "for the version of the delegate" in refused.value.hint


def test_a_delegate_that_cannot_be_made():
    with pytest.raises(DeviceError, match=r"faulty: .* refuses to work: .*unknown option speed") as refused:
        faulty(speed="high").load(DATA / "float.tflite")
    assert "edgectl devices" in refused.value.hint


def test_a_delegate_that_fails_to_run_and_recovers():
    runner = faulty(fail="invoke", recover="1").load(DATA / "float.tflite")
    with pytest.raises(ModelError, match=r"the model failed to run: .*invoke failed, as told") as failed:
        runner.run(ones(runner))
    assert failed.value.hint == "check the accelerator: edgectl devices"
    assert runner.run(ones(runner))[0].tolist() == [[1.5, 1.5, 1.5]]
