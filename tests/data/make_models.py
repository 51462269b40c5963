"""Make the small models in this folder: `python tests/data/make_models.py`, with TensorFlow installed (extra `train`).

Each model has a few kilobytes and computes a result that can be checked by hand.
"""

import io
import tempfile
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

HERE = Path(__file__).parent
INT16X8 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8


def main() -> None:
    affine = concrete(Affine())
    write("float.tflite", convert(affine))
    write("int8.tflite", convert(affine, types=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8], io=tf.int8))
    write("uint8.tflite", convert(affine, types=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8], io=tf.uint8))
    write("int16x8.tflite", convert(affine, types=[INT16X8], io=tf.int16))
    write("dynamic_range.tflite", convert(concrete(Wide()), optimise=True))
    write("two_by_two.tflite", convert(concrete(SumAndDifference())))
    write("stateful.tflite", from_saved(Accumulator(), "serving_default"))
    write("signatures.tflite", from_saved(TwoFunctions()))
    write("dynamic.tflite", convert(concrete(Positives())))
    write("edgetpu.tflite", with_op(convert(affine), custom=b"edgetpu-custom-op"))
    write("custom_op.tflite", with_op(convert(affine), custom=b"my-op"))
    write("too_new.tflite", with_op(convert(affine), version=99))
    write("open.tflite", with_open_rows(convert(affine)))
    write("metadata.tflite", with_metadata(convert(affine)))


class Affine(tf.Module):
    """y = W x + 1 with W the 3 by 4 matrix of 0.5 on the diagonal; x of 4 values in -1..1."""

    @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32, name="x")])
    def __call__(self, x):
        return {"y": tf.matmul(x, tf.eye(4, 3) * 0.5) + 1.0}


class Wide(tf.Module):
    """Sum of x in 2 groups of 32; big enough for quantised weights."""

    @tf.function(input_signature=[tf.TensorSpec((1, 64), tf.float32, name="x")])
    def __call__(self, x):
        group = np.repeat(np.eye(2, dtype=np.float32), 32, axis=0)
        spread = tf.matmul(x, tf.constant(np.tile(group, (1, 16))))
        return {"y": spread[:, :2]}


class SumAndDifference(tf.Module):
    @tf.function(
        input_signature=[
            tf.TensorSpec((1, 3), tf.float32, name="a"),
            tf.TensorSpec((1, 3), tf.float32, name="b"),
        ]
    )
    def __call__(self, a, b):
        return {"sum": a + b, "difference": a - b}


class Positives(tf.Module):
    """Model for the positive inputs, of any number."""

    @tf.function(input_signature=[tf.TensorSpec((4,), tf.float32, name="x")])
    def __call__(self, x):
        return {"y": tf.boolean_mask(x, x > 0)}


class Accumulator(tf.Module):
    """Model for the sum of all inputs so far."""

    def __init__(self):
        super().__init__()
        self.total = tf.Variable(tf.zeros((1, 1)))

    @tf.function(input_signature=[tf.TensorSpec((1, 1), tf.float32, name="x")])
    def serving_default(self, x):
        return {"total": self.total.assign_add(x)}


class TwoFunctions(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 2), tf.float32, name="x")])
    def double(self, x):
        return {"doubled": x * 2.0}

    @tf.function(input_signature=[tf.TensorSpec((1, 2), tf.float32, name="x")])
    def negate(self, x):
        return {"negated": -x}


def concrete(module: tf.Module) -> tf.lite.TFLiteConverter:
    return lambda: tf.lite.TFLiteConverter.from_concrete_functions([module.__call__.get_concrete_function()], module)


def convert(converter, *, types=(), io=tf.float32, optimise=False) -> bytes:
    converter = converter()
    if types:
        converter.representative_dataset = examples
        converter.target_spec.supported_ops = list(types)
        converter.inference_input_type = converter.inference_output_type = io
    if types or optimise:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def examples():
    random = np.random.default_rng(1)
    for _ in range(100):
        yield [random.uniform(-1, 1, (1, 4)).astype(np.float32)]


def from_saved(module: tf.Module, *names: str) -> bytes:
    names = names or ("double", "negate")
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={name: getattr(module, name) for name in names})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(names))
        converter.experimental_enable_resource_variables = True
        return converter.convert()


def with_op(model: bytes, *, custom: bytes | None = None, version: int = 1) -> bytes:
    """Replace the only op of the model by an op unknown to CPU runtimes."""
    unpacked = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    (code,) = unpacked.operatorCodes
    code.version = version
    if custom is not None:
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = custom
        for operator in unpacked.subgraphs[0].operators:
            operator.builtinOptions, operator.builtinOptionsType = None, 0
    return pack(unpacked)


def pack(model: schema.ModelT) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def with_open_rows(model: bytes) -> bytes:
    """Give the model an input with an open number of rows."""
    unpacked = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    (graph,) = unpacked.subgraphs
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        tensor.shapeSignature = [-1, tensor.shape[1]]
    return pack(unpacked)


def with_metadata(model: bytes) -> bytes:
    """Add a TFLITE_METADATA buffer and its label file, zipped at the end."""
    unpacked = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(metadata(), np.uint8)
    unpacked.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name = b"TFLITE_METADATA"
    entry.buffer = len(unpacked.buffers) - 1
    unpacked.metadata = [*(unpacked.metadata or []), entry]
    appended = io.BytesIO(pack(unpacked))
    with zipfile.ZipFile(appended, "a") as archive:
        archive.writestr(zipfile.ZipInfo("labels.txt"), "red\ngreen\nblue\n")
    return appended.getvalue()


def metadata() -> bytes:
    """The metadata's own flatbuffer, schema M001.

    The input is normalised by (x - 2) / 4; the output has the labels in labels.txt and a threshold of 0.25.
    """
    b = flatbuffers.Builder(256)
    normalise = table(b, {0: floats(b, [2.0]), 1: floats(b, [4.0])})
    threshold = table(b, {}, {0: 0.25})
    stats = table(b, {0: floats(b, [6.0]), 1: floats(b, [-2.0])})
    units_in = vector(b, [unit(b, 1, normalise)])
    units_out = vector(b, [unit(b, 3, threshold)])
    name = b.CreateString("labels.txt")
    labels = vector(b, [associated(b, name, 2)])
    tensor_in = table(b, {0: b.CreateString("reading"), 4: units_in, 5: stats})
    tensor_out = table(b, {0: b.CreateString("colour"), 4: units_out, 6: labels})
    subgraph = table(b, {2: vector(b, [tensor_in]), 3: vector(b, [tensor_out])})
    model = table(b, {0: b.CreateString("colours"), 3: vector(b, [subgraph])})
    b.Finish(model, b"M001")
    return bytes(b.Output())


def table(b, offsets, numbers=None):
    b.StartObject(8)
    for slot, offset in offsets.items():
        b.PrependUOffsetTRelativeSlot(slot, offset, 0)
    for slot, number in (numbers or {}).items():
        b.PrependFloat32Slot(slot, number, 0.0)
    return b.EndObject()


def unit(b, kind, options):
    b.StartObject(2)
    b.PrependUint8Slot(0, kind, 0)
    b.PrependUOffsetTRelativeSlot(1, options, 0)
    return b.EndObject()


def associated(b, name, kind):
    b.StartObject(5)
    b.PrependUOffsetTRelativeSlot(0, name, 0)
    b.PrependInt8Slot(2, kind, 0)
    return b.EndObject()


def floats(b, values):
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependFloat32(value)
    return b.EndVector()


def vector(b, offsets):
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return b.EndVector()


def write(name: str, model: bytes) -> None:
    (HERE / name).write_bytes(model)
    print(f"{name}: {len(model)} bytes")


if __name__ == "__main__":
    main()
