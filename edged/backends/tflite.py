"""TFLite models on the CPU, through LiteRT or, where there is no wheel of it, the last tflite-runtime.

One interpreter belongs to one thread. Tensor indices are looked up once, arrays are copied in and out (a live view
of a tensor makes the next `invoke` fail), and the file is verified before a runtime sees it, because tflite-runtime
dies of a truncated one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from edged.api import Arrays, Backend, ModelError, RunnerInfo, TensorSpec

_MODULES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}


class TfliteBackend(Backend, frozen=True, kw_only=True):
    """Runs a .tflite file on the CPU, with XNNPACK where the runtime has it.

    `threads` is the number of threads of one interpreter; more than 1 helps large models only, and not on a board
    that runs several. `runtime` is "auto" for ai-edge-litert if installed, else tflite-runtime.
    """

    threads: Annotated[int, Meta(ge=1, le=16)] = 1
    runtime: Literal["auto", "ai-edge-litert", "tflite-runtime"] = "auto"

    def load(self, file: Path, *, signature: str | None = None) -> TfliteRunner:
        """Load a .tflite file.

        Raises:
            BundleError: it is no TFLite file, or is damaged.
            ModelError: no runtime is installed, or this one cannot run the model, and why.
        """
        runtime, module = _import_runtime(self.runtime)
        try:
            interpreter = module.Interpreter(model_path=str(file), num_threads=self.threads)
            interpreter.allocate_tensors()
        except (ValueError, RuntimeError, MemoryError, OSError) as error:
            raise ModelError(f"{file.name} does not load: {error}") from error
        info = RunnerInfo(backend="tflite", runtime=runtime, threads=self.threads)
        return TfliteRunner(interpreter, info)


class TfliteRunner:
    """A loaded TFLite model."""

    def __init__(self, interpreter: Any, info: RunnerInfo) -> None:
        inputs = interpreter.get_input_details()
        outputs = interpreter.get_output_details()
        self.inputs = tuple(_spec(details) for details in inputs)
        self.outputs = tuple(_spec(details) for details in outputs)
        self.info = info
        self._interpreter = interpreter
        self._inputs = tuple(int(details["index"]) for details in inputs)
        self._outputs = tuple(int(details["index"]) for details in outputs)

    def run(self, inputs: Arrays) -> Arrays:
        """Run once; the outputs are copies."""
        interpreter = self._interpreter
        try:
            for index, array in zip(self._inputs, inputs, strict=True):
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in self._outputs]
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"the model failed to run: {error}", hint="check the model with edgectl infer") from error

    def reset(self) -> None:
        """Zero the model's variables."""
        self._interpreter.reset_all_variables()

    def close(self) -> None:
        """Free the interpreter."""
        self._interpreter = None


def _import_runtime(wanted: str) -> tuple[str, Any]:
    candidates = _MODULES if wanted == "auto" else {wanted: _MODULES[wanted]}
    for name, package in candidates.items():
        try:
            version = import_module(package).__version__
            return f"{name} {version}", import_module(f"{package}.interpreter")
        except ImportError:
            continue
    raise ModelError("no TFLite runtime is installed", hint="pip install ai-edge-litert")


def _spec(details: dict[str, Any]) -> TensorSpec:
    scale, zero_point = details["quantization"]
    return TensorSpec(
        name=details["name"],
        shape=tuple(int(size) for size in details["shape"]),
        dtype=np.dtype(details["dtype"]).name,
        scale=float(scale),
        zero_point=int(zero_point),
    )
