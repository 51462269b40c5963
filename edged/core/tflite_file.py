"""Reader of the structure of a .tflite file without a runtime, safe against damaged and hostile files.

A .tflite file is a FlatBuffer: tables that refer to each other by offsets, which may be damaged or forged. Every read
is therefore checked against the end of the file. All reads together are limited by a budget, since offsets may also
make a small file look endless, or give one long name to thousands of tables. An accepted file is complete: every table,
vector and weight lies within the file. Only the digest and the golden samples prove that the weights are correct.

The layout is TFLite's schema (version 3, identifier TFL3) and, for the metadata buffer, the metadata schema (M001).
Field numbers below are positions in those schemas. Label files are in a zip archive appended to the file.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from edged.core.errors import BundleError
from edged.core.types import TensorSpec

MAX_WORK = 200_000
MAX_TEXT_BYTES = 1 << 16
MAX_ARCHIVE_BYTES = 4 << 20
MAX_LABELS = 100_000
DETECTION_OP = "TFLite_Detection_PostProcess"
_TEXT_PART = 64
"""Number of bytes of text at the cost of a table."""
_ARCHIVE_WORK = 20_000
"""Cost of opening the archive, which takes far longer than reading a table."""

_AGAIN = "fetch or convert the model again"


class TensorMetadata(NamedTuple):
    """Metadata of one input or output; absent parts are empty or None.

    `mean` and `std` are the normalisation (x - mean) / std, `low` and `high` the range of values seen, `threshold`
    the least score that counts, `labels` the names of the elements along the last axis, `value_labels` the names of
    the values of an element, counted from 0. `content` is "image", "audio"
    or "" for other content; audio has a `sample_rate`, 0 if unstated, and a number of `channels`.
    """

    name: str = ""
    content: str = ""
    sample_rate: int = 0
    channels: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    threshold: float | None = None
    labels: tuple[str, ...] = ()
    value_labels: tuple[str, ...] = ()


class Signature(NamedTuple):
    """Named entry point of a model: names of the inputs and outputs, and index of the subgraph."""

    name: str
    subgraph: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class TfliteFile(NamedTuple):
    """Content of a .tflite file.

    `inputs`, `outputs` and the number of `nodes` belong to the first subgraph. `ops` are the names of all operations,
    `custom_ops` the operations outside the schema. `input_metadata` and `output_metadata` are as long as `inputs` and
    `outputs`, or empty if the file has no metadata. `dynamic` holds the axes of open size of each input. `last_ops`
    holds the operation that computes each output, "" if unknown; operations that only change shape or storage are
    skipped. `detection_outputs` are the indices of the outputs with boxes, classes, scores and number of boxes, if the
    operation TFLite_Detection_PostProcess computes them. `stateful` is true if a run depends on earlier runs.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    ops: tuple[str, ...]
    custom_ops: tuple[str, ...]
    signatures: tuple[Signature, ...] = ()
    input_metadata: tuple[TensorMetadata, ...] = ()
    output_metadata: tuple[TensorMetadata, ...] = ()
    dynamic: tuple[tuple[int, ...], ...] = ()
    last_ops: tuple[str, ...] = ()
    detection_outputs: tuple[int, ...] = ()
    stateful: bool = False

    @property
    def remembers(self) -> bool:
        """Return whether the model keeps resource variables from one run to the next."""
        return "VAR_HANDLE" in self.ops

    @property
    def compiled_for(self) -> str | None:
        """Return the kind of delegate that the file is compiled for, or None if it runs on a CPU."""
        return next((_COMPILED[op] for op in self.custom_ops if op in _COMPILED), None)

    @property
    def obstacle(self) -> tuple[str, str] | None:
        """Return the reason why no CPU can run the file, with the remedy, or None if none is apparent."""
        if self.compiled_for:
            return (
                f"is compiled for {_ACCELERATORS[self.compiled_for]} and does not run on a CPU",
                "use the original model; add the compiled file as a variant: edgectl pack --variant",
            )
        for op in self.custom_ops:
            if op.startswith("Flex"):
                return (
                    f"needs the TensorFlow op {op[4:]}, which no TFLite runtime has",
                    "convert the model again with TFLITE_BUILTINS as the only supported ops",
                )
        return None

    @property
    def strange_ops(self) -> tuple[str, ...]:
        """Return the custom ops that TFLite's own runtimes lack."""
        return tuple(op for op in self.custom_ops if op not in _KNOWN_CUSTOM_OPS)


def inspect(data: bytes | memoryview) -> TfliteFile:
    """Read and verify a .tflite file.

    Raises:
        BundleError: `data` is not a TFLite file, or is truncated or damaged.
    """
    reader = _Reader(memoryview(data).cast("B"))
    if reader.identifier() != b"TFL3":
        raise BundleError("not a TFLite file: the identifier TFL3 is missing", hint="name a .tflite file")
    model = reader.root()
    buffers = [_read_buffer(reader, buffer) for buffer in model.tables(4)]
    codes = [_read_op_name(code) for code in model.tables(1)]
    subgraphs = [_read_subgraph(subgraph, codes, len(buffers)) for subgraph in model.tables(2)]
    if not subgraphs:
        raise BundleError("damaged TFLite file: no subgraph", hint=_AGAIN)
    main = subgraphs[0]
    ops = {op for subgraph in subgraphs for op in subgraph.ops}
    metadata = _find_metadata(reader, model, buffers)
    return TfliteFile(
        inputs=main.inputs,
        outputs=main.outputs,
        nodes=len(main.ops),
        ops=tuple(sorted(op.name for op in ops)),
        custom_ops=tuple(sorted(op.name for op in ops if op.custom)),
        signatures=tuple(_read_signature(signature, len(subgraphs)) for signature in model.tables(7)),
        input_metadata=_read_metadata(reader, metadata, 2, len(main.inputs)),
        output_metadata=_read_metadata(reader, metadata, 3, len(main.outputs)),
        dynamic=main.dynamic,
        last_ops=main.last_ops,
        detection_outputs=main.detection_outputs,
        stateful="VAR_HANDLE" in {op.name for op in ops} or any(subgraph.variables for subgraph in subgraphs),
    )


def _damaged(what: str) -> BundleError:
    return BundleError(f"truncated or damaged TFLite file: {what}", hint=_AGAIN)


# The model


class _Op(NamedTuple):
    name: str
    custom: bool


class _Subgraph(NamedTuple):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: list[_Op]
    dynamic: tuple[tuple[int, ...], ...]
    last_ops: tuple[str, ...]
    detection_outputs: tuple[int, ...]
    variables: bool


def _read_buffer(reader: _Reader, buffer: _Table) -> memoryview:
    """Return the data of a buffer; in models over 2 GB they lie behind the tables."""
    offset, size = buffer.number(1, "Q"), buffer.number(2, "Q")
    return reader.bytes_at(offset, size) if offset > 1 else buffer.data(0)


def _read_op_name(code: _Table) -> _Op:
    # Newer codes, above 127, are in a wider field; the older field then holds 127.
    builtin = max(code.number(0, "b"), code.number(3, "i"))
    if builtin == _CUSTOM:
        return _Op(code.text(1), custom=True)
    return _Op(_BUILTIN_OPS[builtin] if 0 <= builtin < len(_BUILTIN_OPS) else f"BUILTIN_{builtin}", custom=False)


def _read_subgraph(subgraph: _Table, codes: list[_Op], buffers: int) -> _Subgraph:
    tensors = list(subgraph.tables(0))
    for tensor in tensors:
        _verify_tensor(tensor, buffers)
    ops = []
    makers: dict[int, tuple[str, int]] = {}
    detected: tuple[int, ...] = ()
    for operator in subgraph.tables(3):
        given, made = _verify_operator(operator, len(tensors))
        op = codes[_index(operator.number(0, "I"), len(codes), "operator code")]
        ops.append(op)
        makers |= dict.fromkeys(made, (op.name, given[0] if given else -1))
        detected = made if op.name == DETECTION_OP else detected
    indices = [
        [_index(index, len(tensors), "tensor") for index in subgraph.numbers(slot, "i")]  # inputs, then outputs
        for slot in (1, 2)
    ]
    return _Subgraph(
        inputs=tuple(_read_spec(tensors[index]) for index in indices[0]),
        outputs=tuple(_read_spec(tensors[index]) for index in indices[1]),
        ops=ops,
        dynamic=tuple(_open_axes(tensors[index]) for index in indices[0]),
        last_ops=tuple(_last_op(makers, index) for index in indices[1]),
        detection_outputs=tuple(indices[1].index(index) for index in detected if index in indices[1]),
        variables=any(tensor.number(5, "b") for tensor in tensors),
    )


def _open_axes(tensor: _Table) -> tuple[int, ...]:
    """Return the axes whose size is open in the shape's signature."""
    return tuple(axis for axis, size in enumerate(tensor.numbers(7, "i")) if size == -1)


def _last_op(makers: dict[int, tuple[str, int]], tensor: int) -> str:
    """Return the operation that computes a tensor, skipping a limited number of _PASSING operations."""
    for _ in range(_MAX_PASSING + 1):
        name, tensor = makers.get(tensor, ("", -1))
        if name not in _PASSING:
            return name
    return ""


def _verify_tensor(tensor: _Table, buffers: int) -> None:
    tensor.numbers(0, "i")
    tensor.data(3)
    _index(tensor.number(2, "I"), max(buffers, 1), "buffer")


def _verify_operator(operator: _Table, tensors: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the input tensors and the output tensors of an operator."""
    given, made = operator.numbers(1, "i"), operator.numbers(2, "i")
    for index in (*given, *made):
        if index != -1:  # -1: an omitted optional input
            _index(index, tensors, "tensor")
    operator.table(4)
    operator.data(5)
    return given, made


def _read_spec(tensor: _Table) -> TensorSpec:
    scale, zero_point = 0.0, 0
    quantisation = tensor.table(4)
    if quantisation is not None:
        scales, zero_points = quantisation.numbers(2, "f"), quantisation.numbers(3, "q")
        if len(scales) == 1:  # several scales belong to the channels of a weight, not to an input or output
            scale, zero_point = scales[0], zero_points[0] if zero_points else 0
    return TensorSpec(
        name=tensor.text(3),
        shape=tensor.numbers(0, "i"),
        dtype=_TYPES.get(tensor.number(1, "b"), "unknown"),
        scale=scale,
        zero_point=zero_point,
    )


def _read_signature(signature: _Table, subgraphs: int) -> Signature:
    return Signature(
        name=signature.text(2),
        subgraph=_index(signature.number(4, "I"), subgraphs, "subgraph"),
        inputs=tuple(tensor.text(0) for tensor in signature.tables(0)),
        outputs=tuple(tensor.text(0) for tensor in signature.tables(1)),
    )


def _index(index: int, count: int, what: str) -> int:
    if not 0 <= index < count:
        raise _damaged(f"{what} {index} does not exist")
    return index


# The metadata


def _find_metadata(reader: _Reader, model: _Table, buffers: list[memoryview]) -> _Table | None:
    """Return the metadata of the first subgraph."""
    for entry in model.tables(6):
        if entry.text(0) != "TFLITE_METADATA":
            continue
        inner = _Reader(buffers[_index(entry.number(1, "I"), len(buffers), "buffer")], reader.budget)
        if inner.identifier() == b"M001":
            return next(inner.root().tables(3), None)
    return None


def _read_metadata(reader: _Reader, subgraph: _Table | None, slot: int, count: int) -> tuple[TensorMetadata, ...]:
    if subgraph is None:
        return ()
    found = [_read_tensor_metadata(reader, tensor) for tensor in subgraph.tables(slot)]
    return tuple(found) if len(found) == count else ()


def _read_tensor_metadata(reader: _Reader, tensor: _Table) -> TensorMetadata:
    normalisation = _process_unit(tensor, 1)
    thresholding = _process_unit(tensor, 3)
    stats = tensor.table(5)
    content, sample_rate, channels = _content(tensor)
    return TensorMetadata(
        name=tensor.text(0),
        content=content,
        sample_rate=sample_rate,
        channels=channels,
        mean=_finite(normalisation, 0),
        std=_finite(normalisation, 1),
        high=_finite(stats, 0),
        low=_finite(stats, 1),
        threshold=None if thresholding is None else thresholding.number(0, "f"),
        labels=_read_labels(reader, tensor, _AXIS_LABELS),
        value_labels=_read_labels(reader, tensor, _VALUE_LABELS),
    )


def _content(tensor: _Table) -> tuple[str, int, int]:
    """Return the kind of content of a tensor, and the sample rate and number of channels of audio."""
    content = tensor.table(3)
    kind = "" if content is None else _CONTENTS.get(content.number(0, "B"), "")
    audio = content.table(1) if content is not None and kind == "audio" else None
    return (kind, 0, 0) if audio is None else (kind, audio.number(0, "I"), audio.number(1, "I"))


def _process_unit(tensor: _Table, kind: int) -> _Table | None:
    for unit in tensor.tables(4):
        if unit.number(0, "B") == kind:
            return unit.table(1)
    return None


def _finite(table: _Table | None, slot: int) -> tuple[float, ...]:
    numbers = () if table is None else table.numbers(slot, "f")
    if not all(math.isfinite(number) for number in numbers):
        raise _damaged("a number in the metadata is not finite")
    return numbers


def _read_labels(reader: _Reader, tensor: _Table, kind: int) -> tuple[str, ...]:
    """Return the lines of the first file of labels of a kind."""
    for file in tensor.tables(6):
        if file.number(2, "b") == kind:
            reader.budget.spend(_ARCHIVE_WORK)
            labels = _lines(_read_archived(reader.data, file.text(0)))
            if len(labels) > MAX_LABELS:
                raise _damaged(f"{len(labels)} labels, at most {MAX_LABELS} are allowed")
            return tuple(label.strip() for label in labels)
    return ()


def _lines(text: bytes) -> list[str]:
    try:
        return text.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise _damaged("the labels are not UTF-8") from None


def _read_archived(data: memoryview, name: str) -> bytes:
    """Return a file from the zip archive in the last 4 MB of the data."""
    import zipfile  # few models have archives

    try:
        with zipfile.ZipFile(io.BytesIO(data[-MAX_ARCHIVE_BYTES:])) as archive:
            entry = archive.getinfo(name)
            if entry.file_size > MAX_ARCHIVE_BYTES or entry.compress_type not in (0, zipfile.ZIP_DEFLATED):
                raise _damaged(f"the associated file {name!r} is too big or packed by an unsupported method")
            with archive.open(entry) as file:
                return file.read(entry.file_size)  # read() without a limit would first unpack a zip bomb
    except KeyError:
        raise _damaged(f"the associated file {name!r} is missing") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError, OSError, struct.error) as error:
        raise _damaged(f"the associated file {name!r} cannot be read: {error}") from error


# FlatBuffers


class _Budget:
    """Number of tables, numbers and pieces of text that may still be read."""

    def __init__(self) -> None:
        self._left = MAX_WORK

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise BundleError(f"the TFLite file has more than {MAX_WORK} parts", hint=_AGAIN)


class _Reader:
    """Reader within the bounds of the data."""

    def __init__(self, data: memoryview, budget: _Budget | None = None) -> None:
        self.data = data
        self.budget = budget or _Budget()

    def number(self, position: int, code: str) -> Any:
        layout = _LAYOUTS[code]
        self._hold(position, layout.size)
        return layout.unpack_from(self.data, position)[0]

    def numbers(self, position: int, code: str, count: int) -> tuple[Any, ...]:
        self._hold(position, count * _LAYOUTS[code].size)
        self.budget.spend(count)
        return struct.unpack_from(f"<{count}{code}", self.data, position)

    def bytes_at(self, position: int, count: int) -> memoryview:
        self._hold(position, count)
        return self.data[position : position + count]

    def follow(self, position: int) -> int:
        """Return the target of the offset at `position`; offsets point forwards only."""
        return position + int(self.number(position, "I"))

    def identifier(self) -> bytes:
        return bytes(self.data[4:8])

    def root(self) -> _Table:
        return _Table(self, self.follow(0))

    def _hold(self, position: int, size: int) -> None:
        if position < 0 or position + size > len(self.data):
            raise _damaged(f"the data end at byte {len(self.data)}, but byte {position + size} is needed")


class _Table:
    """Table with fields by number in the schema, any of which may be absent."""

    def __init__(self, reader: _Reader, position: int) -> None:
        reader.budget.spend(1)
        self._reader = reader
        self._position = position
        vtable = position - reader.number(position, "i")
        size = reader.number(vtable, "H")
        self._extent = reader.number(vtable + 2, "H")
        self._fields = reader.numbers(vtable + 4, "H", max(size - 4, 0) // 2)
        reader.bytes_at(position, self._extent)

    def number(self, slot: int, code: str) -> Any:
        at = self._field(slot)
        return self._reader.number(at, code) if at else 0

    def numbers(self, slot: int, code: str) -> tuple[Any, ...]:
        start, count = self._vector(slot)
        return self._reader.numbers(start, code, count) if count else ()

    def data(self, slot: int) -> memoryview:
        """Return a vector of bytes, or the bytes of a string."""
        start, count = self._vector(slot)
        return self._reader.bytes_at(start, count)

    def text(self, slot: int) -> str:
        data = self.data(slot)
        if len(data) > MAX_TEXT_BYTES:
            raise _damaged(f"a name has {len(data)} bytes")
        self._reader.budget.spend(len(data) // _TEXT_PART)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise _damaged("a name is not UTF-8") from None

    def table(self, slot: int) -> _Table | None:
        at = self._field(slot)
        return _Table(self._reader, self._reader.follow(at)) if at else None

    def tables(self, slot: int) -> Iterator[_Table]:
        start, count = self._vector(slot)
        self._reader.bytes_at(start, 4 * count)
        for at in range(start, start + 4 * count, 4):
            yield _Table(self._reader, self._reader.follow(at))

    def _field(self, slot: int) -> int:
        """Return the position of a field, 0 if absent."""
        if slot >= len(self._fields) or self._fields[slot] == 0:
            return 0
        return self._position + int(self._fields[slot])

    def _vector(self, slot: int) -> tuple[int, int]:
        """Return the position of the first element of a vector, and the number of elements."""
        at = self._field(slot)
        if not at:
            return 0, 0
        start = self._reader.follow(at)
        return start + 4, self._reader.number(start, "I")


_LAYOUTS = {code: struct.Struct("<" + code) for code in "bBHiIqQf"}

_TYPE_NAMES = """
float32 float16 int32 uint8 int64 string bool int16 complex64 int8 float64 complex128 uint64 resource variant uint32
uint16 int4 bfloat16 int2 uint4
"""
_TYPES = dict(enumerate(_TYPE_NAMES.split()))

_COMPILED = {"edgetpu-custom-op": "edgetpu", "ethos-u": "ethosu", "NeutronGraph": "neutron"}
"""Operations that compilers for accelerators put in place of the compiled operations."""
_KNOWN_CUSTOM_OPS = {
    "AudioSpectrogram",
    "Convolution2DTransposeBias",
    "MaxPoolingWithArgmax2D",
    "MaxUnpooling2D",
    "Mfcc",
    "NumericVerify",
    "TFLite_Detection_PostProcess",
}
_ACCELERATORS = {"edgetpu": "the Edge TPU", "ethosu": "an Arm Ethos-U", "neutron": "an NXP Neutron"}

_MAX_PASSING = 8
_PASSING = ("QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS")
"""Operations that change the shape or the storage of a tensor, but not the meaning."""

_CONTENTS = {2: "image", 4: "audio"}
_AXIS_LABELS = 2
_VALUE_LABELS = 3
_CUSTOM = 32

_OP_NAMES = """
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM
MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS
SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND
SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN
EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2
GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG
SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT
UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU
SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE
MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND
SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D
CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE
VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL
GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2
UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE
STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM
STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS STABLEHLO_AND
STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR
STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH
STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE
STABLEHLO_PAD STABLEHLO_IOTA STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE
STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE
STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
"""
_BUILTIN_OPS = _OP_NAMES.split()
