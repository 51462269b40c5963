"""The package's udev rules permit the devices of all known delegates, and no others."""

from pathlib import Path

from edged.backends.delegates import KNOWN, Usb

FILE = Path(__file__).parents[2] / "packaging" / "debian" / "udev.rules"
OF_UDEV_ITSELF = {"dev/dri/renderD*"}


def test_the_rules_are_those_of_the_table():
    rules = [rule for known in KNOWN.values() for rule in known.rules]
    table = {
        line
        for rule in rules
        if isinstance(rule, Usb) or rule.pattern not in OF_UDEV_ITSELF
        for line in rule.rule(Path("" if isinstance(rule, Usb) else rule.pattern)).splitlines()
    }
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(set(lines))
    assert set(lines) == table
