"""Root file systems of ARM boards for qemu-user: unpacked Debian packages, and a processor's description."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.container import root_of
from tests.debian_package import field


class Processor(NamedTuple):
    """An emulator and its processor, Debian's name of the libraries, and Linux's description of the core.

    The runtime `tells` of fast kernels, if any exist for such models; otherwise results are right but slow.
    """

    emulator: str
    cpu: str
    machine: str
    triplet: str
    runtime: str
    tells: str
    core: str

    @property
    def files(self) -> dict[str, str]:
        """Return the files by which runtimes choose kernels, with their content; the host's would mislead them."""
        return {
            "/proc/cpuinfo": "".join(f"processor : {core}\n{self.core}\n" for core in range(CORES)),
            "/sys/devices/system/cpu/possible": f"0-{CORES - 1}\n",
            "/sys/devices/system/cpu/present": f"0-{CORES - 1}\n",
        }


CORES = 4

PROCESSORS = {
    "arm64": Processor(
        emulator="qemu-aarch64",
        cpu="cortex-a72",
        machine="aarch64",
        triplet="aarch64-linux-gnu",
        runtime="ai-edge-litert 2.3.0",
        tells="INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n",
        core="Features : fp asimd evtstrm crc32 cpuid\nCPU implementer : 0x41\nCPU architecture: 8\n"
        "CPU variant : 0x0\nCPU part : 0xd08\nCPU revision : 3\n",
    ),
    "armhf": Processor(
        emulator="qemu-arm",
        cpu="cortex-a7",
        machine="armv7l",
        triplet="arm-linux-gnueabihf",
        runtime="tflite-runtime 2.14.0",
        tells="",
        core="Features : half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32\n"
        "CPU implementer : 0x41\nCPU architecture: 7\nCPU variant : 0x0\nCPU part : 0xd03\nCPU revision : 4\n",
    ),
}
"""The cores of a Raspberry Pi 4, for 64-bit programs, and of a Raspberry Pi 3 under a 32-bit system."""

_WITHOUT_SECURITY = r"""--setup-hook=sed -i '/security/d' "$1/etc/apt/sources.list" """
"""Not every mirror has security updates for every architecture."""


def root_for(package: Path, suite: str) -> Path:
    """Return a root file system with the dependencies of a Debian package, unpacked. It must not be written to."""
    names = re.findall(r"(?:^|, )([^ ,]+)", field(package, "Depends"))
    needed = ("base-files", *dict.fromkeys(name for name in names if name != "systemd"))
    architecture = f"--architectures={field(package, 'Architecture')}"
    return root_of(suite, needed, "--variant=extract", architecture, _WITHOUT_SECURITY)
