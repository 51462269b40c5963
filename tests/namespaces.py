"""Two network namespaces for a test, named board and internet, with a cable between them.

The board has the address 1.2.3.1, and the internet 1.2.3.4. Neither can reach, or be reached from, the machine that
runs the test.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

BOARD_ADDRESS = "1.2.3.1"
INTERNET_ADDRESS = "1.2.3.4"
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class Namespaces:
    """A pair of namespaces; the test is skipped without permission to make them."""

    def __init__(self) -> None:
        tag = f"{os.getpid()}{next(_numbers)}"
        self.board, self.internet = f"edged-b{tag}", f"edged-i{tag}"

    def __enter__(self) -> Namespaces:
        if subprocess.run(["ip", "netns", "add", self.board], capture_output=True).returncode:
            pytest.skip("may not make network namespaces here")
        self._ip(f"netns add {self.internet}")
        cable = f"-n {self.board} link add cable type veth peer name cable netns {self.internet}"
        if subprocess.run(["ip", *cable.split()], capture_output=True).returncode:
            self.__exit__()
            pytest.skip("may not make network interfaces here")
        for space, address in ((self.board, BOARD_ADDRESS), (self.internet, INTERNET_ADDRESS)):
            for there in (f"address add {address}/24 dev cable", "link set cable up", "link set lo up"):
                self._ip(f"-n {space} {there}")
        return self

    def __exit__(self, *_: object) -> None:
        for space in (self.board, self.internet):
            self._ip(f"netns delete {space}")

    def add_addresses(self, *addresses: str) -> None:
        """Give the internet's end of the cable further addresses, and the board a route to them."""
        for address in addresses:
            length = 128 if ":" in address else 32
            nodad = " nodad" if ":" in address else ""
            self._ip(f"-n {self.internet} address add {address}/{length} dev cable{nodad}")
            self._ip(f"-n {self.board} route add {address}/{length} dev cable")

    def run(self, space: str, what: Callable[[], T]) -> T:
        """Call a function on a thread in a namespace; sockets made by the function stay in the namespace."""

        def enter() -> T:
            with Path(f"/run/netns/{space}").open() as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "cannot enter the namespace")
            return what()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()

    def _ip(self, arguments: str) -> None:
        subprocess.run(["ip", *arguments.split()], check=True)
