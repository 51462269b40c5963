"""TFLite models on the CPU, through LiteRT or, where there is no wheel of it, the last tflite-runtime.

One interpreter belongs to one thread. Tensor indices are looked up once, and arrays are copied in and out: a live view
of a tensor makes the next `invoke` fail. The file is read through before a runtime sees it, because tflite-runtime
dies of a truncated one, and because our words say better than its own what cannot be run here.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from edged.api import Arrays, Backend, BundleError, ModelError, RunnerInfo, TensorSpec
from edged.core.manifest import MAX_FILE_BYTES
from edged.core.tflite_file import Signature, TfliteFile, inspect


class TfliteBackend(Backend, frozen=True, kw_only=True):
    """Runs a .tflite file on the CPU, with XNNPACK where the runtime has it.

    `threads` is the number of threads of one interpreter: more than 1 helps large models, and makes quantised ones far
    slower under tflite-runtime. `runtime` is "auto" for ai-edge-litert if installed, else tflite-runtime.
    """

    threads: Annotated[int, Meta(ge=1, le=16)] = 1
    runtime: Literal["auto", "ai-edge-litert", "tflite-runtime"] = "auto"

    def load(self, file: Path, *, signature: str | None = None) -> TfliteRunner:
        """Load a .tflite file. The tensors carry a signature's own names where one is asked for.

        Raises:
            BundleError: it is no TFLite file, or is damaged.
            ModelError: no runtime is installed, or this one cannot run the model, and why.
        """
        structure = _verify(file)
        _refuse_foreign_ops(file, structure)
        chosen = _choose_signature(file, structure, signature)
        runtime, interpreter_class = _import_runtime(self.runtime)

        def open_model() -> _Graph | _Subgraph:
            interpreter = _open_interpreter(interpreter_class, file, self.threads, runtime)
            if chosen is None:
                return _Graph(interpreter, interpreter.get_input_details(), interpreter.get_output_details())
            return _open_signature(interpreter, chosen)

        info = RunnerInfo(backend="tflite", runtime=runtime, threads=self.threads, nodes=structure.nodes)
        return TfliteRunner(open_model, info, remembers=structure.remembers)


class TfliteRunner:
    """A loaded TFLite model.

    `reset` zeroes variable tensors in place. No runtime can do that with resource variables, so a model that
    `remembers` through those is loaded again.
    """

    def __init__(self, open_model: Callable[[], _Graph | _Subgraph], info: RunnerInfo, *, remembers: bool) -> None:
        self._open_model = open_model
        self._remembers = remembers
        self._model: _Graph | _Subgraph | None = open_model()
        self.inputs = self._model.inputs
        self.outputs = self._model.outputs
        self.info = info

    def run(self, inputs: Arrays) -> Arrays:
        """Run once; the outputs are copies."""
        if self._model is None:
            raise ModelError("the model is closed", hint="load it again")
        try:
            return self._model.run(inputs)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ModelError(f"the model failed to run: {_first_line(error)}", hint=_COMPARE) from error

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


# Two ways to run


class _Graph:
    """The first subgraph, by tensor index: the fast way, and the only one for files without signatures."""

    def __init__(self, interpreter: Any, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.interpreter = interpreter
        self.inputs = tuple(_spec(details) for details in inputs)
        self.outputs = tuple(_spec(details) for details in outputs)
        self._inputs = tuple(int(details["index"]) for details in inputs)
        self._outputs = tuple(int(details["index"]) for details in outputs)

    def run(self, inputs: Arrays) -> Arrays:
        interpreter = self.interpreter
        for index, array in zip(self._inputs, inputs, strict=True):
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._outputs]


class _Subgraph:
    """Another subgraph, which only a signature runner reaches. It would resize itself to wrong inputs in silence."""

    def __init__(self, interpreter: Any, signature: Signature) -> None:
        self.interpreter = interpreter
        self._call = interpreter.get_signature_runner(signature.name)
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


def _open_signature(interpreter: Any, signature: Signature) -> _Graph | _Subgraph:
    if signature.subgraph != 0:
        return _Subgraph(interpreter, signature)
    # A signature runner that is kept makes invoke() fail; this one is gone when the details have been read.
    runner = interpreter.get_signature_runner(signature.name)
    inputs, outputs = runner.get_input_details(), runner.get_output_details()
    return _Graph(
        interpreter,
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
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if not 0 < size <= MAX_FILE_BYTES:
                raise BundleError(f"{file.name} has {size} bytes", hint=f"1 to {MAX_FILE_BYTES} are allowed")
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}", hint="install the model again") from error
    try:
        return inspect(memoryview(mapped))
    except BundleError as error:
        raise BundleError(f"{file.name}: {error.message}", hint=error.hint) from error


def _refuse_foreign_ops(file: Path, structure: TfliteFile) -> None:
    for op in structure.custom_ops:
        if op in _ACCELERATORS:
            raise ModelError(
                f"{file.name} is compiled for {_ACCELERATORS[op]} and does not run on a CPU",
                hint="use the model it was compiled from",
            )
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
        f"{file.name} has no signature {name!r}", hint=f"it has {known}" if known else "it has none: leave it out"
    )


_ACCELERATORS = {"edgetpu-custom-op": "the Edge TPU", "ethos-u": "an Arm Ethos-U"}


# The runtime


_PACKAGES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}


def _import_runtime(wanted: str) -> tuple[str, Callable[..., Any]]:
    """The name and version of the runtime, and its Interpreter."""
    failures = []
    for name in _PACKAGES if wanted == "auto" else (wanted,):
        try:
            package = import_module(_PACKAGES[name])
            interpreter_class = import_module(f"{_PACKAGES[name]}.interpreter").Interpreter
            return f"{name} {package.__version__}", interpreter_class
        except ImportError as error:
            failures.append(f"{name}: {error}")
    raise ModelError(
        f"no TFLite runtime can be imported ({'; '.join(failures)})",
        hint="pip install ai-edge-litert, or on 32-bit ARM: pip install tflite-runtime 'numpy<2', "
        "which needs Python 3.11 or older",
    )


def _open_interpreter(interpreter_class: Callable[..., Any], file: Path, threads: int, runtime: str) -> Any:
    try:
        interpreter = interpreter_class(model_path=str(file), num_threads=threads)
        interpreter.allocate_tensors()
    except MemoryError as error:
        raise ModelError(f"{file.name}: there is not enough memory to load it", hint="free some memory") from error
    except (ValueError, RuntimeError, SystemError) as error:
        raise _explain(file, runtime, error) from error
    return interpreter


def _explain(file: Path, runtime: str, error: Exception) -> ModelError:
    if found := _UNKNOWN_CUSTOM_OP.search(str(error)):
        return ModelError(
            f"{file.name} needs the custom op {found[1]}, which {runtime} does not have",
            hint="convert the model without it",
        )
    if found := _UNKNOWN_BUILTIN_OP.search(str(error)):
        return ModelError(
            f"{file.name} needs the op {found[1]} in version {found[2]}, which {runtime} does not have",
            hint="install a newer runtime, or convert the model with an older converter",
        )
    if isinstance(error, SystemError):
        return ModelError(f"{runtime} does not work here: {_first_line(error)}", hint="pip install 'numpy<2'")
    return ModelError(
        f"{file.name} does not load in {runtime}: {_first_line(error)}",
        hint="fetch or convert the model again, or try another version of the runtime",
    )


_UNKNOWN_CUSTOM_OP = re.compile(r"unresolved custom op: (\S+?)\.?(?:\s|$)")
_UNKNOWN_BUILTIN_OP = re.compile(r"builtin opcode '(\w+)' version '(\d+)'")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
