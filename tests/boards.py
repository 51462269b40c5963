"""Made-up boards: a folder with the parts of sysfs, /dev and the library folders that detection reads."""

from pathlib import Path


class FakeBoard:
    """A made-up board below `root`. `locked` are files in /dev without permission to open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.locked: set[Path] = set()

    def may_open(self, node: Path) -> bool:
        return node.exists() and node not in self.locked

    def library(self, path: str) -> str:
        return str(self._write(path, "not really one"))

    def usb(self, port: str, ids: str, number: int, bus: int = 1) -> Path:
        """Plug in a device with ids as "1a6e:089a"; the file in /dev."""
        vendor, _, product = ids.partition(":")
        numbers = {"busnum": bus, "devnum": number, "idVendor": vendor, "idProduct": product}
        for name, value in numbers.items():
            self._write(f"sys/bus/usb/devices/{port}/{name}", f"{value}\n")
        (self.root / f"sys/bus/usb/devices/{port}:1.0").mkdir()  # an interface, without these files
        return self.node(f"bus/usb/{bus:03}/{number:03}")

    def unplug_usb(self, port: str) -> None:
        for file in (self.root / f"sys/bus/usb/devices/{port}").iterdir():
            file.unlink()

    def pci(self, slot: str, ids: str) -> None:
        vendor, _, device = ids.partition(":")
        self._write(f"sys/bus/pci/devices/{slot}/vendor", f"0x{vendor}\n")
        self._write(f"sys/bus/pci/devices/{slot}/device", f"0x{device}\n")

    def node(self, path: str, *, driver: str = "", family: str = "") -> Path:
        """Make a file in /dev, and the driver."""
        node = self._write(f"dev/{path}", "")
        if driver:
            device = self.root / f"sys/class/{family}/{node.name}/device"
            device.mkdir(parents=True)
            (device / "driver").symlink_to(f"../../../bus/platform/drivers/{driver}")
        return node

    def _write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file
