"""Run TFLite models through LiteRT or, on platforms without a LiteRT wheel, the last tflite-runtime.

`TfliteBackend` runs models on the CPU. `DelegatedTflite` gives a vendor's delegate as much of the graph as the delegate
accepts; since such libraries abort, hang and hold the interpreter lock, load `DelegatedTflite` only in a child process.

One thread at a time uses an interpreter. Tensor indices are looked up once, and arrays are copied in and out, as a
live view of a tensor makes the next `invoke` fail. The file is verified before a runtime opens the file, because
tflite-runtime crashes on a truncated file, and because edged's error messages are clearer than the runtime's.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta
from msgspec.structs import replace

from edged.api import Arrays, Backend, BundleError, DeviceError, ModelError, RunnerInfo, TensorSpec
from edged.core.manifest import MAX_FILE_BYTES
from edged.core.manifest_parts import Name
from edged.core.tflite_file import Signature, TfliteFile, inspect


class TfliteBackend(Backend, frozen=True, kw_only=True):
    """Options of [models.X] with backend = "tflite": a .tflite file on the CPU, with XNNPACK where the runtime has it.

    Keys:
        threads: Threads of one interpreter. More than 1 helps large models, and makes quantised ones far slower under
            tflite-runtime. 0 takes the number that `edgectl tune` found best, or 1.
        runtime: Python package that runs the model: "auto" takes ai-edge-litert if installed, else tflite-runtime.
        shapes: Shapes of the input tensors. Leave this key out: the shapes are those of the manifest.
    """

    threads: Annotated[int, Meta(ge=0, le=16)] = 0
    runtime: Literal["auto", "ai-edge-litert", "tflite-runtime"] = "auto"
    shapes: tuple[tuple[int, ...], ...] = ()

    def load(self, file: Path, *, signature: str | None = None) -> TfliteRunner:
        """Load a .tflite file. With `signature`, the tensors have the signature's own names.

        Raises:
            BundleError: the file is no TFLite file, or is damaged.
            ModelError: no runtime is installed, or the installed runtime cannot run the model.
        """
        structure = _verify(file)
        if structure.obstacle:
            reason, remedy = structure.obstacle
            raise ModelError(f"{file.name} {reason}", hint=remedy)
        runtime = _import_runtime(self.runtime)
        threads = self.threads or 1
        info = RunnerInfo(backend="tflite", runtime=runtime.title, threads=threads, nodes=structure.nodes)
        shapes = self.shapes if signature is None or len(self.shapes) == 1 else ()  # a signature has its own order

        def open_interpreter() -> _Opened:
            return _open_interpreter(runtime, file, threads, kernels=self.kernels, shapes=shapes)

        return _load(file, structure, signature, info, open_interpreter)

    @property
    def kernels(self) -> str:
        """Return the runtime's name for the kernels to use."""
        return "AUTO"

    def title(self) -> str:
        """Name and version of the runtime, as in RunnerInfo. Raises ModelError if none is installed."""
        return _import_runtime(self.runtime).title


class OtherKernels(TfliteBackend, frozen=True, kw_only=True):
    """Run a model with other kernels than the runtime's best, for comparing results; not meant for serving."""

    reference: bool

    @property
    def kernels(self) -> str:
        """Return the name of the reference kernels, or of the built-in kernels without XNNPACK."""
        return "BUILTIN_REF" if self.reference else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"


class DelegatedTflite(TfliteBackend, frozen=True, kw_only=True):
    """Run a .tflite file on an accelerator, and the nodes not taken by the delegate on the CPU.

    `delegate` is the accelerator's name in the configuration, `library` the path of the delegate's shared library, and
    `options` are passed to the library. Load a model only in a child process. `RunnerInfo.delegated` is the number of
    nodes taken by the delegate.
    """

    delegate: Name
    library: Annotated[str, Meta(min_length=1, max_length=4096)]
    options: dict[str, str] = msgspec.field(default_factory=dict)

    def load(self, file: Path, *, signature: str | None = None) -> TfliteRunner:
        """Load a .tflite file; the file may be compiled for the accelerator.

        Raises:
            BundleError: the file is no TFLite file, or is damaged.
            DeviceError: the delegate cannot be loaded, or refuses to work on this board.
            ModelError: no runtime is installed, or runtime or delegate cannot run the model.
        """
        structure = _verify(file)
        runtime = _import_runtime(self.runtime)
        info = RunnerInfo(
            backend="tflite",
            runtime=runtime.title,
            delegate=self.delegate,
            threads=self.threads or 1,
            nodes=structure.nodes,
        )
        return _load(file, structure, signature, info, lambda: self._open(runtime, file))

    def load_delegate(self) -> Any:
        """Load the delegate alone, as a check, and return the runtime's object.

        Raises:
            DeviceError: the delegate cannot be loaded.
            ModelError: no runtime is installed.
        """
        return _load_delegate(_import_runtime(self.runtime).module, self.delegate, self.library, self.options)

    def _open(self, runtime: _Runtime, file: Path) -> _Opened:
        delegate = _load_delegate(runtime.module, self.delegate, self.library, self.options)
        return _open_interpreter(runtime, file, self.threads or 1, self.delegate, [delegate])


class TfliteRunner:
    """A loaded TFLite model.

    `reset` zeroes variable tensors in place. No runtime can zero resource variables, so a model with resource variables
    (`remembers`) is loaded again.
    """

    def __init__(self, open_model: Callable[[], _Graph | _Subgraph], info: RunnerInfo, *, remembers: bool) -> None:
        self._open_model = open_model
        self._remembers = remembers
        self._model: _Graph | _Subgraph | None = open_model()
        self.inputs = self._model.inputs
        self.outputs = self._model.outputs
        self.info = replace(info, delegated=self._model.delegated)

    def run(self, inputs: Arrays) -> Arrays:
        """Run once; the outputs are copies."""
        if self._model is None:
            raise ModelError("the model is closed", hint="load it again")
        try:
            return self._model.run(inputs)
        except (ValueError, RuntimeError, MemoryError) as error:
            hint = _COMPARE if self.info.delegate == "cpu" else _SEE_DEVICES
            raise ModelError(f"the model failed to run: {_first_line(error)}", hint=hint) from error

    def reset(self) -> None:
        """Forget earlier runs. Raises ModelError if the model cannot be loaded again."""
        if self._model is None:
            return
        if self._remembers:
            self._model = None
            self._model = self._open_model()
        else:
            self._model.interpreter.reset_all_variables()

    def close(self) -> None:
        """Free the interpreter."""
        self._model = None


_COMPARE = "compare the manifest's tensors with the model's: edgectl models"
_SEE_DEVICES = "check the accelerator: edgectl devices"


def _load(
    file: Path, structure: TfliteFile, signature: str | None, info: RunnerInfo, open_interpreter: Callable[[], _Opened]
) -> TfliteRunner:
    _refuse_flex_ops(file, structure)
    chosen = _choose_signature(file, structure, signature)

    def open_model() -> _Graph | _Subgraph:
        opened = open_interpreter()
        if chosen is not None:
            return _open_signature(opened, chosen)
        interpreter = opened.interpreter
        return _Graph(opened, interpreter.get_input_details(), interpreter.get_output_details())

    return TfliteRunner(open_model, info, remembers=structure.remembers)


# Two ways to run


class _Graph:
    """The first subgraph, by tensor index: the fast way, and the only way for files without signatures."""

    def __init__(self, opened: _Opened, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.interpreter, self.delegated = opened
        self.inputs = tuple(_spec(details) for details in inputs)
        self.outputs = tuple(_spec(details) for details in outputs)
        self._inputs = tuple(int(details["index"]) for details in inputs)
        self._outputs = tuple(int(details["index"]) for details in outputs)

    def run(self, inputs: Arrays) -> Arrays:
        interpreter = self.interpreter
        for index, array in zip(self._inputs, inputs, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return list(map(interpreter.get_tensor, self._outputs))


class _Subgraph:
    """Any other subgraph, run by a signature runner. A signature runner silently resizes tensors to wrong inputs."""

    def __init__(self, opened: _Opened, signature: Signature) -> None:
        self.interpreter, self.delegated = opened
        self._call = self.interpreter.get_signature_runner(signature.name)
        self._signature = signature
        inputs, outputs = self._call.get_input_details(), self._call.get_output_details()
        self.inputs = tuple(_spec(inputs[name], name) for name in signature.inputs)
        self.outputs = tuple(_spec(outputs[name], name) for name in signature.outputs)

    def run(self, inputs: Arrays) -> Arrays:
        for spec, array in zip(self.inputs, inputs, strict=True):
            if array.shape != spec.shape:
                raise ValueError(f"the input {spec.name!r} has the shape {array.shape}, not {spec.shape}")
        outputs = self._call(**dict(zip(self._signature.inputs, inputs, strict=True)))
        return [outputs[name] for name in self._signature.outputs]


def _open_signature(opened: _Opened, signature: Signature) -> _Graph | _Subgraph:
    if signature.subgraph != 0:
        return _Subgraph(opened, signature)
    # A signature runner makes invoke() fail while referenced; this runner is dropped after reading the details.
    runner = opened.interpreter.get_signature_runner(signature.name)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    return _Graph(
        opened,
        [{**inputs[name], "name": name} for name in signature.inputs],
        [{**outputs[name], "name": name} for name in signature.outputs],
    )


def _spec(details: dict[str, Any], name: str | None = None) -> TensorSpec:
    scale, zero_point = details["quantization"]
    return TensorSpec(
        name=name or details["name"],
        shape=tuple(int(size) for size in details["shape"]),
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scale),
        zero_point=int(zero_point),
    )


# The file


def _verify(file: Path) -> TfliteFile:
    """Return the structure of a file. A file that has not changed since the last call is not read again."""
    try:
        found = file.stat()
        if not 0 < found.st_size <= MAX_FILE_BYTES:
            raise BundleError(f"{file.name} has {found.st_size} bytes", hint=f"1 to {MAX_FILE_BYTES} are allowed")
        return _inspect(file, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}", hint="install the model again") from error


@lru_cache(maxsize=1)
def _inspect(file: Path, _content: tuple[int, ...]) -> TfliteFile:
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return inspect(memoryview(mapped))
    except BundleError as error:
        raise BundleError(f"{file.name}: {error.message}", hint=error.hint) from error


def _refuse_flex_ops(file: Path, structure: TfliteFile) -> None:
    for op in structure.custom_ops:
        if op.startswith("Flex"):
            raise ModelError(
                f"{file.name} needs the TensorFlow op {op[4:]}, which no TFLite runtime has",
                hint="convert it again with TFLITE_BUILTINS as the only supported ops",
            )


def _choose_signature(file: Path, structure: TfliteFile, name: str | None) -> Signature | None:
    if name is None:
        return None
    for signature in structure.signatures:
        if signature.name == name:
            return signature
    known = ", ".join(signature.name for signature in structure.signatures)
    raise ModelError(
        f"{file.name} has no signature {name!r}",
        hint=f"name one of {known}" if known else "leave `signature` out: the file has no signatures",
    )


# The runtime


_PACKAGES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}


class _Runtime(NamedTuple):
    """Name and version of a runtime, and its module with Interpreter and load_delegate."""

    title: str
    module: Any


class _Opened(NamedTuple):
    """An interpreter ready to run, and the number of nodes of the first subgraph taken by the delegate."""

    interpreter: Any
    delegated: int


def _import_runtime(wanted: str) -> _Runtime:
    failures = []
    for name in _PACKAGES if wanted == "auto" else (wanted,):
        try:
            package = import_module(_PACKAGES[name])
            return _Runtime(f"{name} {package.__version__}", import_module(f"{_PACKAGES[name]}.interpreter"))
        except ImportError as error:
            failures.append(f"{name}: {error}")
    raise ModelError(
        f"no TFLite runtime can be imported ({'; '.join(failures)})",
        hint="pip install ai-edge-litert, or on 32-bit ARM: pip install tflite-runtime 'numpy<2', "
        "which needs Python 3.11 or older",
    )


def _open_interpreter(
    runtime: _Runtime,
    file: Path,
    threads: int,
    delegate: str = "",
    delegates: list[Any] | None = None,
    kernels: str = "AUTO",
    shapes: tuple[tuple[int, ...], ...] = (),
) -> _Opened:
    try:
        interpreter = runtime.module.Interpreter(
            model_path=str(file),
            num_threads=threads,
            experimental_delegates=delegates,
            experimental_op_resolver_type=runtime.module.OpResolverType[kernels],
        )
        # Count before tensors are allocated: then the runtime's own delegate for the CPU takes nodes, too.
        delegated = _count_delegated(interpreter._get_ops_details()) if delegates else 0
        _resize(interpreter, shapes)
        interpreter.allocate_tensors()
    except MemoryError as error:
        raise ModelError(
            f"{file.name}: there is not enough memory to load it", hint="free some memory", retryable=True
        ) from error
    except (ValueError, RuntimeError, SystemError) as error:
        raise (_explain_delegated(file, delegate, error) if delegates else _explain(file, runtime, error)) from error
    return _Opened(interpreter, delegated)


def _resize(interpreter: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Give `shapes` to inputs with open axes; shapes that do not fit are ignored."""
    for details, shape in zip(interpreter.get_input_details(), shapes, strict=False):
        signature = tuple(int(size) for size in details["shape_signature"])
        fits = len(signature) == len(shape) and all(a in (-1, b) for a, b in zip(signature, shape, strict=True))
        if fits and shape != tuple(int(size) for size in details["shape"]):
            interpreter.resize_tensor_input(details["index"], shape, strict=True)


def _count_delegated(ops: list[dict[str, Any]]) -> int:
    """Return the number of nodes replaced by a delegate's own nodes; the graph holds replaced and own nodes together.

    The nodes replaced by a delegate's node are the nodes between the inputs and the outputs of the delegate's node.
    """
    makers = {int(output): op for op in ops if op["op_name"] != _DELEGATE for output in op["outputs"]}
    taken: set[int] = set()
    for op in ops:
        if op["op_name"] == _DELEGATE:
            given, todo = set(op["inputs"]), list(op["outputs"])
            while todo:
                tensor = int(todo.pop())
                maker = makers.get(tensor)
                if tensor not in given and maker is not None and maker["index"] not in taken:
                    taken.add(maker["index"])
                    todo.extend(maker["inputs"])
    return len(taken)


_DELEGATE = "DELEGATE"


def _explain(file: Path, runtime: _Runtime, error: Exception) -> ModelError:
    if found := _UNKNOWN_CUSTOM_OP.search(str(error)):
        return ModelError(
            f"{file.name} needs the custom op {found[1]}, which {runtime.title} does not have",
            hint="convert the model without it",
        )
    if found := _UNKNOWN_BUILTIN_OP.search(str(error)):
        return ModelError(
            f"{file.name} needs the op {found[1]} in version {found[2]}, which {runtime.title} does not have",
            hint="install a newer runtime, or convert the model with an older converter",
        )
    if isinstance(error, SystemError):
        return ModelError(f"{runtime.title} does not work here: {_first_line(error)}", hint="pip install 'numpy<2'")
    return ModelError(
        f"{file.name} does not load in {runtime.title}: {_first_line(error)}",
        hint="fetch or convert the model again, or try another version of the runtime",
    )


_UNKNOWN_CUSTOM_OP = re.compile(r"unresolved custom op: (\S+?)\.?(?:\s|$)")
_UNKNOWN_BUILTIN_OP = re.compile(r"builtin opcode '(\w+)' version '(\d+)'")


# The delegate


_ENTRY = "tflite_plugin_create_delegate"


def _load_delegate(module: Any, name: str, library: str, options: Mapping[str, str]) -> Any:
    try:
        getattr(ctypes.CDLL(library), _ENTRY)  # the runtime would fail as well, but print to standard error
    except OSError as error:
        raise _explain_library(name, library, str(error)) from error
    except AttributeError as error:
        raise DeviceError(
            f"{name}: {library} is a library, but no TFLite delegate: the function {_ENTRY} is missing",
            hint=f"name the delegate's library: [delegates.{name}] library",
        ) from error
    try:
        return module.load_delegate(library, dict(options))
    except ValueError as error:
        said = " ".join(str(error).split("\n")[1:]).strip()
        raise DeviceError(
            f"{name}: {library} refuses to work" + (f": {said}" if said else ", without a reason"),
            hint="check device, options and other programs using the device: edgectl devices",
            retryable=True,
        ) from error


def _explain_library(name: str, library: str, said: str) -> DeviceError:
    missing = said.partition(": cannot open shared object file")[0]
    if missing == library:
        return DeviceError(
            f"{name}: {library} does not exist", hint=f"install it, or correct its path: [delegates.{name}] library"
        )
    if missing != said:
        return DeviceError(
            f"{name}: {library} needs {missing}, which is not installed", hint=f"install the package with {missing}"
        )
    if "ELF" in said or "too short" in said:
        return DeviceError(
            f"{name}: {library} is damaged, or for another processor: {said.rpartition(': ')[2]}",
            hint="install the library for this processor",
        )
    return DeviceError(
        f"{name}: {library} does not fit this system: {said.removeprefix(f'{library}: ')}",
        hint="install the version built for this system and this TFLite runtime",
    )


def _explain_delegated(file: Path, delegate: str, error: Exception) -> ModelError:
    if found := _UNKNOWN_CUSTOM_OP.search(str(error)):
        return ModelError(
            f"{delegate} leaves the op {found[1]} of {file.name}, which nothing else can run",
            hint="compile the model for this accelerator, and for the version of the library installed on this board",
        )
    return ModelError(
        f"{delegate} fails to take {file.name}: {_first_line(error).removesuffix(_RESTORED)}",
        hint="compile or convert the model for the version of the delegate installed on this board",
    )


_RESTORED = "Restored original execution plan after delegate application failure."


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
