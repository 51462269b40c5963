"""Health of a board, read from a tree like /sys."""

import pytest

from edged.system.board import EmmcWear, Throttling, temperature, throttling, wear


def write(root, name, text):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_a_board_that_says_nothing(tmp_path):
    assert (throttling(tmp_path), temperature(tmp_path), wear(tmp_path)) == (None, None, ())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("0\n", Throttling((), ())),
        ("5", Throttling(("the supply voltage is too low", "the processor is throttled"), ())),
        ("50000", Throttling((), ("the supply voltage is too low", "the processor is throttled"))),
        ("80008", Throttling(("the temperature limit is reached",), ("the temperature limit is reached",))),
        ("no number", None),
    ],
)
def test_what_slows_a_raspberry_pi_down(tmp_path, flags, expected):
    write(tmp_path, "devices/platform/soc/soc:firmware/get_throttled", flags)
    assert throttling(tmp_path) == expected


def test_the_hottest_zone_counts_and_a_broken_one_does_not(tmp_path):
    write(tmp_path, "class/thermal/thermal_zone0/temp", "48312\n")
    write(tmp_path, "class/thermal/thermal_zone1/temp", "61500\n")
    write(tmp_path, "class/thermal/thermal_zone2/temp", "")
    assert temperature(tmp_path) == 61.5


@pytest.mark.parametrize(
    ("life", "reserve", "expected"),
    [
        ("0x01 0x02\n", "0x01\n", (EmmcWear("mmcblk0", 2, worn=False),)),
        ("0x0a 0x01\n", "0x01\n", (EmmcWear("mmcblk0", 10, worn=True),)),
        ("0x03 0x03\n", "0x02\n", (EmmcWear("mmcblk0", 3, worn=True),)),
        ("0x0b 0x0b\n", "", (EmmcWear("mmcblk0", 11, worn=True),)),
        ("", "0x01", ()),
    ],
)
def test_the_wear_of_an_emmc(tmp_path, life, reserve, expected):
    write(tmp_path, "block/mmcblk0/device/life_time", life)
    write(tmp_path, "block/mmcblk0/device/pre_eol_info", reserve)
    assert wear(tmp_path) == expected
