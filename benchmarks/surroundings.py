"""The machine, its versions, and its other work during a measure."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("ai-edge-litert", "numpy", "msgspec", "paho-mqtt", "pyserial")

MOST_OTHERS = 0.1
"""Share of all cores that other processes, or the other guests of a virtual machine's host, may take."""


def describe() -> dict[str, Any]:
    """Return machine, kernel, load and versions."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{_processor()}, {_cores()} cores, {platform.machine()}",
        "kernel": f"{platform.system()} {platform.release()}",
        "governor": _governor(),
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "mosquitto": _mosquitto(),
    }


def warning_before() -> str:
    """Return a warning if the load is above half the cores before the first measure, else ""."""
    load = os.getloadavg()[0]
    return f"the load was {load:.1f} on {_cores()} cores before the first measure" if load > _cores() / 2 else ""


class OtherWork(NamedTuple):
    """Work of the machine during a measure: load before and after, shares of all cores that others took."""

    seconds: float
    load_before: float
    load_after: float
    others: float
    stolen: float

    @property
    def warning(self) -> str:
        """A warning if the figures are not to be trusted, else ""."""
        shares = {"other processes": self.others, "other guests of the host": self.stolen}
        taken = [f"{who} took {share:.0%} of the cores" for who, share in shares.items() if share > MOST_OTHERS]
        return " and ".join(taken)


class Watch:
    """Watches the machine from the construction to `stop`. Children of this process count once they have ended."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._began = time.monotonic()
        self._busy, self._stolen = _machine_seconds()
        self._own = _own_seconds()

    def stop(self) -> OtherWork:
        """Return the other work since the construction."""
        seconds = time.monotonic() - self._began
        busy, stolen = _machine_seconds()
        others = busy - self._busy - (_own_seconds() - self._own)
        whole = seconds * _cores()
        return OtherWork(
            seconds, self._load, os.getloadavg()[0], min(1.0, max(0.0, others / whole)), (stolen - self._stolen) / whole
        )


def _machine_seconds() -> tuple[float, float]:
    """Return the seconds of all processes, and the seconds that the host gave to other guests; see proc_stat(5)."""
    _, *counts = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, *_, stolen, _, _ = (int(count) / os.sysconf("SC_CLK_TCK") for count in counts)
    return user + nice + system, stolen


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _cores() -> int:
    return os.cpu_count() or 1


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "none"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _mosquitto() -> str:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        return "not installed"
    return subprocess.run([found, "-h"], capture_output=True, text=True).stdout.partition("\n")[0]
