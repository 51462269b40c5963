import json
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edged.api import BundleError, ModelError
from edged.backends.tflite import TfliteBackend
from edged.testing.backend_contract import BackendContract
from tests.real_models import real_model

DATA = Path(__file__).resolve().parents[1] / "data"


def load(name: str, signature: str | None = None):
    return TfliteBackend().load(DATA / name, signature=signature)


def runtime() -> str:
    return load("float.tflite").info.runtime.split()[0]


def quantised(spec, values) -> np.ndarray:
    limits = np.iinfo(spec.dtype)
    stored = np.round(np.array(values, np.float64) / spec.scale) + spec.zero_point
    return np.clip(stored, limits.min, limits.max).astype(spec.dtype)


def real(spec, stored) -> np.ndarray:
    return (stored.astype(np.float64) - spec.zero_point) * spec.scale


class TestFloatContract(BackendContract):
    @pytest.fixture
    def backend(self):
        return TfliteBackend()

    @pytest.fixture
    def model_file(self):
        return DATA / "float.tflite"


class TestStatefulContract(TestFloatContract):
    @pytest.fixture
    def model_file(self):
        return DATA / "stateful.tflite"


class TestManyTensorsContract(TestFloatContract):
    @pytest.fixture
    def model_file(self):
        return DATA / "two_by_two.tflite"


class TestSecondSubgraphContract(TestFloatContract):
    @pytest.fixture
    def model_file(self):
        return DATA / "signatures.tflite"

    @pytest.fixture
    def signature(self):
        return "negate"


def test_a_float_model():
    runner = load("float.tflite")
    (output,) = runner.run([np.array([[1, -1, 0.5, 0.25]], np.float32)])
    assert output.tolist() == [[1.5, 0.5, 1.25]]
    assert (runner.inputs[0].shape, runner.inputs[0].dtype, runner.inputs[0].scale) == ((1, 4), "float32", 0.0)
    assert runner.info.nodes == 1


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("int8.tflite", "int8", 0.01), ("uint8.tflite", "uint8", 0.01), ("int16x8.tflite", "int16", 0.005)],
)
def test_a_quantised_model(name, dtype, tolerance):
    runner = load(name)
    assert (runner.inputs[0].dtype, runner.outputs[0].dtype) == (dtype, dtype)
    (output,) = runner.run([quantised(runner.inputs[0], [[1, -1, 0.5, 0.25]])])
    assert real(runner.outputs[0], output) == pytest.approx(np.array([[1.5, 0.5, 1.25]]), abs=tolerance)


def test_open_axes_are_resized_to_the_shapes_that_are_stated():
    runner = TfliteBackend(shapes=((3, 4),)).load(DATA / "open.tflite")
    assert (runner.inputs[0].shape, runner.outputs[0].shape) == ((3, 4), (3, 3))
    (output,) = runner.run([np.ones((3, 4), np.float32)])
    assert output.tolist() == [[1.5] * 3] * 3
    runner.close()


@pytest.mark.parametrize("shape", [(3, 5), (1, 3, 4), (1, 4)])
def test_axes_that_the_file_states_stay_as_they_are(shape):
    runner = TfliteBackend(shapes=(shape,)).load(DATA / "open.tflite")
    assert runner.inputs[0].shape == (1, 4)
    runner.close()


def test_a_dynamic_range_model():
    if runtime() == "tflite-runtime":
        # This runtime is older than the converter of the file, and reports so.
        with pytest.raises(ModelError, match="needs the op FULLY_CONNECTED in version 12, which tflite-runtime"):
            load("dynamic_range.tflite")
        return
    runner = load("dynamic_range.tflite")
    (output,) = runner.run([np.repeat(np.array([[0.5, -0.25]], np.float32), 32, axis=1)])
    assert output == pytest.approx(np.array([[16.0, -8.0]]), rel=0.02)


def test_several_inputs_and_outputs_come_in_the_order_of_the_specs():
    runner = load("two_by_two.tflite")
    values = {"serving_default_a:0": [[1, 2, 3]], "serving_default_b:0": [[10, 20, 30]]}
    outputs = runner.run([np.array(values[spec.name], np.float32) for spec in runner.inputs])
    assert sorted(output.tolist() for output in outputs) == [[[-9, -18, -27]], [[11, 22, 33]]]


def test_a_signature_gives_the_tensors_its_own_names():
    runner = load("two_by_two.tflite", signature="serving_default")
    given = {"a": np.array([[1, 2, 3]], np.float32), "b": np.array([[10, 20, 30]], np.float32)}
    for _ in range(2):
        outputs = runner.run([given[spec.name] for spec in runner.inputs])
        named = {spec.name: output.tolist() for spec, output in zip(runner.outputs, outputs, strict=True)}
        assert named == {"sum": [[11, 22, 33]], "difference": [[-9, -18, -27]]}


@pytest.mark.parametrize(("name", "answer"), [("double", [[2, 4]]), ("negate", [[-1, -2]])])
def test_a_signature_of_any_subgraph_runs(name, answer):
    runner = load("signatures.tflite", signature=name)
    assert [spec.name for spec in runner.inputs] == ["x"]
    for _ in range(3):
        assert runner.run([np.array([[1, 2]], np.float32)])[0].tolist() == answer


def test_an_unknown_signature_is_answered_with_those_there_are():
    with pytest.raises(ModelError, match=r"no signature 'triple' \(name one of double, negate\)"):
        load("signatures.tflite", signature="triple")


def test_a_stateful_model_remembers_until_it_is_reset():
    runner = load("stateful.tflite")
    one = [np.ones((1, 1), np.float32)]
    assert [runner.run(one)[0].item() for _ in range(3)] == [1, 2, 3]
    runner.reset()
    assert [runner.run(one)[0].item() for _ in range(2)] == [1, 2]


def test_outputs_may_have_another_shape_on_every_run():
    runner = load("dynamic.tflite")
    assert runner.run([np.array([1, -1, 2, 3], np.float32)])[0].tolist() == [1, 2, 3]
    assert runner.run([np.array([-1, -1, 2, -3], np.float32)])[0].tolist() == [2]


def test_outputs_stay_as_they_were_when_it_runs_again():
    runner = load("float.tflite")
    (first,) = runner.run([np.zeros((1, 4), np.float32)])
    runner.run([np.ones((1, 4), np.float32)])
    assert first.tolist() == [[1, 1, 1]]


def test_a_closed_model_says_so():
    runner = load("float.tflite")
    runner.close()
    runner.reset()
    with pytest.raises(ModelError, match="closed"):
        runner.run([np.zeros((1, 4), np.float32)])


def test_a_model_for_the_edge_tpu_is_refused_by_name():
    with pytest.raises(ModelError, match="compiled for the Edge TPU and does not run on a CPU"):
        load("edgetpu.tflite")


def test_a_custom_op_is_named():
    with pytest.raises(ModelError, match=r"needs the custom op my-op, which .* does not have"):
        load("custom_op.tflite")


def test_an_op_in_too_new_a_version_is_named():
    with pytest.raises(ModelError, match=r"needs the op FULLY_CONNECTED in version 99, which .* \(install a newer"):
        load("too_new.tflite")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 500, 900])
def test_a_truncated_model_is_refused_before_a_runtime_sees_it(tmp_path, keep):
    file = tmp_path / "cut.tflite"
    file.write_bytes((DATA / "float.tflite").read_bytes()[:keep])
    with pytest.raises(BundleError, match=r"cut\.tflite"):
        TfliteBackend().load(file)


def test_a_file_that_changes_is_verified_again(tmp_path):
    file = tmp_path / "model.tflite"
    file.write_bytes((DATA / "float.tflite").read_bytes())
    TfliteBackend().load(file).close()
    TfliteBackend().load(file).close()
    file.write_bytes((DATA / "float.tflite").read_bytes()[:500])
    with pytest.raises(BundleError, match=r"model\.tflite"):
        TfliteBackend().load(file)
    (tmp_path / "other").write_bytes((DATA / "custom_op.tflite").read_bytes())
    (tmp_path / "other").rename(file)
    with pytest.raises(ModelError, match="needs the custom op my-op"):
        TfliteBackend().load(file)


def test_a_huge_file_is_refused(tmp_path):
    file = tmp_path / "huge.tflite"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(BundleError, match=r"huge\.tflite has 1099511627776 bytes"):
        TfliteBackend().load(file)


@pytest.mark.parametrize("options", [{"threads": -1}, {"threads": 17}, {"runtime": "other"}])
def test_options_are_bounded(options):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(options, TfliteBackend)


def test_a_runtime_that_is_not_installed_is_named_with_what_to_install():
    absent = "ai-edge-litert" if runtime() == "tflite-runtime" else "tflite-runtime"
    if find_spec(absent.replace("-", "_")):
        pytest.skip("both runtimes are installed")
    with pytest.raises(ModelError, match=absent) as refused:
        TfliteBackend(runtime=absent).load(DATA / "float.tflite")
    assert "pip install ai-edge-litert" in refused.value.hint


# Real models


@pytest.mark.parametrize("name", ["hey_jarvis.tflite", "okay_nabu.tflite"])
def test_a_streaming_wake_word_model_is_reset_to_its_beginning(name):
    runner = TfliteBackend().load(real_model(name))
    random = np.random.default_rng(1)
    stream = [random.integers(-128, 128, (1, 3, 40)).astype(np.int8) for _ in range(60)]
    first = [runner.run([features])[0].item() for features in stream]
    runner.reset()
    assert [runner.run([features])[0].item() for features in stream] == first
    assert (runner.outputs[0].shape, runner.outputs[0].dtype) == ((1, 1), "uint8")


def test_a_detection_model_with_memory_outside():
    runner = TfliteBackend().load(real_model("automl_traffic_ssd_lstm.tflite"))
    outputs = runner.run([np.zeros(spec.shape, spec.dtype) for spec in runner.inputs])
    shapes = {spec.name: output.shape for spec, output in zip(runner.outputs, outputs, strict=True)}
    assert shapes["TFLite_Detection_PostProcess"] == (1, 40, 4)
    assert shapes["raw_outputs/lstm_c"] == (1, 8, 8, 320)


def test_an_lstm():
    runner = TfliteBackend().load(real_model("keras_lstm_mnist_ptq.tflite"))
    (output,) = runner.run([np.zeros((1, 28, 28), np.uint8)])
    assert output.shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobilenet_v1_0.25_128_quant_edgetpu.tflite", "the Edge TPU"),
        ("tflm_person_detect_vela.tflite", "an Arm Ethos-U"),
        ("model_invoking_error.tflite", "the custom op fake-op-double"),
    ],
)
def test_a_model_that_cannot_run_here_says_why(name, reason):
    with pytest.raises(ModelError, match=reason):
        TfliteBackend().load(real_model(name))


@pytest.mark.parametrize("model", ["mobilenet_v2_1.0_224_quant", "tf2_mobilenet_v2_1.0_224_ptq"])
def test_pictures_are_classified_as_they_should_be(model):
    image = pytest.importorskip("PIL.Image")
    golden = json.loads(real_model("golden.json").read_text())
    runner = TfliteBackend().load(real_model(f"{model}.tflite"))
    (spec,) = runner.inputs
    for name in ("cat.bmp", "parrot.jpg"):
        picture = image.open(real_model(f"images/{name}")).convert("RGB").resize(spec.shape[2:0:-1], image.BILINEAR)
        pixels = np.asarray(picture)[np.newaxis]
        (output,) = runner.run([pixels if spec.dtype == "uint8" else (pixels ^ 0x80).view(np.int8)])
        scores = real(runner.outputs[0], output)[0]
        [[class_id, _, _, score]] = golden[f"{model}:{name}"]["builtin"]
        assert scores.argmax() == class_id
        assert scores.max() == pytest.approx(score, abs=0.10)
