"""The interpreter alone: as a loop, and as a program that runs a model once, and as often as each line of input says.

The program prints the time after each run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray


class Bare:
    """Loop over set_tensor, invoke and get_tensor."""

    def __init__(self, model: Path) -> None:
        self._interpreter = Interpreter(model_path=str(model), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]

    @property
    def silence(self) -> NDArray[Any]:
        """Return an input of zeros."""
        return np.zeros(self._input["shape"], self._input["dtype"])

    def run(self, inputs: Sequence[NDArray[Any]] | NDArray[Any], times: int) -> None:
        """Run `count` times, with the inputs in turn."""
        interpreter, source, target = self._interpreter, self._input["index"], self._output["index"]
        for number in range(times):
            interpreter.set_tensor(source, inputs[number % len(inputs)])
            interpreter.invoke()
            interpreter.get_tensor(target)


def main() -> None:
    bare = Bare(Path(sys.argv[1]))
    bare.run([bare.silence], 1)
    print(time.time(), flush=True)
    for line in sys.stdin:
        bare.run([bare.silence], int(line))
        print(time.time(), flush=True)


if __name__ == "__main__":
    main()
