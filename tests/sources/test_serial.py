import errno
import os
import select
import tty
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from edged.api import Chunk, ConfigError, DeviceError, Source
from edged.core.framing import Signal, csv_decoder
from edged.sources.serial import DRIVER_WAIT, SerialPort, SerialSource, refusal
from edged.testing.source_contract import SourceContract, chunks


class Wire:
    """The sensor's end of a pseudo-terminal; the other end is a serial port."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)

    def send(self, data: bytes) -> None:
        """Send all bytes, however slowly they are read."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._master, rest[:1024]) :]

    def unplug(self) -> None:
        for end in (self._master, self._slave):
            if end >= 0:
                os.close(end)
        self._master = self._slave = -1


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.unplug()


@pytest.fixture
def playing() -> Iterator[str]:
    """Yield a port with a healthy counting sensor."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    done = Event()

    def play() -> None:
        count = 0
        room = select.poll()
        room.register(master, select.POLLOUT)
        while not done.wait(0.001):
            if room.poll(10):
                os.write(master, b"%d,0.5,-%d\n" % (count, count))
                count += 1

    sensor = Thread(target=play)
    sensor.start()
    yield os.ttyname(slave)
    done.set()
    sensor.join()
    os.close(master)
    os.close(slave)


class TestContract(SourceContract):
    @pytest.fixture
    def config(self, playing: str) -> SerialSource:
        return SerialSource(port=playing, channels=("n", "x", "y"), units=("", "g", "g"), rate=1000.0)


def opened(wire: Wire, first: bytes = b"\n", **options: object) -> Source:
    """Return a source that has joined a stream."""
    source = SerialSource(port=wire.port, **({"channels": ("x", "y")} | options)).open()  # type: ignore[arg-type]
    wire.send(first)
    return source


def take(source: Source) -> Chunk:
    (chunk,) = chunks(source, samples=1)
    return chunk


def test_lines_that_came_together_are_one_chunk(wire: Wire) -> None:
    source = opened(wire)
    wire.send(b"1,2\n3,4\n")
    chunk = take(source)
    assert chunk.samples.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert chunk.lost == 0


def test_a_gap_parts_what_came_together(wire: Wire) -> None:
    source = opened(wire, sequence="n")
    wire.send(b"1,10,10\n2,20,20\n6,60,60\n")
    got = [(chunk.samples[:, 0].tolist(), chunk.lost) for chunk in chunks(source, samples=3)]
    assert got == [([10.0, 20.0], 0), ([60.0], 3)]
    assert source.read(0.0) is None


def test_binary_frames_from_options(wire: Wire) -> None:
    source = opened(
        wire,
        b"",
        format="binary",
        struct="<Hhh",
        fields=("n", "x", "y"),
        sequence="n",
        sync="AA55",
        crc="crc16-modbus",
        scale=0.5,
    )
    wire.send(bytes.fromhex("aa55 0000 0400 0600 028b"))
    assert take(source).samples.tolist() == [[2.0, 3.0]]


def test_a_flipped_bit_in_a_frame_of_a_pms5003_is_refused(wire: Wire) -> None:
    """The frame had been published as 2058 ug/m3 for 10."""
    source = opened(
        wire,
        b"",
        channels=("pm10",),
        format="binary",
        struct=">14H",
        fields=("length", "pm1", "pm25", "pm10", *(f"rest{n}" for n in range(10))),
        sync="424d",
        crc="sum16",
        crc_range=(0, 30),
    )
    frame = bytes.fromhex("424d 001c 0005 0008 000a 0005 0008 000a 03b4 0116 0030 0007 0003 0000 9700 0278")
    flipped = bytearray(frame)
    flipped[8] ^= 0x08
    wire.send(frame + flipped + frame)
    got = [(chunk.samples.tolist(), chunk.lost) for chunk in chunks(source, samples=2)]
    assert got == [([[10.0]], 0), ([[10.0]], 1)]
    assert source.faults == {"bad CRC": 1}


def test_sentences_of_a_talker_that_are_not_ours_are_passed_over(wire: Wire) -> None:
    source = opened(
        wire,
        channels=("latitude", "longitude", "altitude"),
        crc="nmea",
        prefix=["$GPGGA,", "$GNGGA,"],
        columns=(
            *("time", "latitude", "north", "longitude", "east", "fix", "satellites", "hdop", "altitude"),
            *("m", "geoid", "m2", "age", "station"),
        ),
    )
    ours = b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n"
    other = b"$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n"
    wire.send(ours + other + ours + ours.replace(b"545.4", b"145.4") + ours)
    got = [(chunk.samples[:, 2].tolist(), chunk.lost) for chunk in chunks(source, samples=3)]
    assert got == [(pytest.approx([545.4, 545.4]), 0), (pytest.approx([545.4]), 1)]
    assert source.faults == {"bad NMEA checksum": 1}
    assert source.refused.startswith("$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,145.4")


def test_lines_that_end_in_nul(wire: Wire) -> None:
    source = opened(wire, b"\0", end="00")
    wire.send(b"1,2\0" + b"3,4\0")
    assert [row for chunk in chunks(source, samples=2) for row in chunk.samples.tolist()] == [[1.0, 2.0], [3.0, 4.0]]


def test_silence_is_no_chunk(wire: Wire) -> None:
    assert opened(wire, b"").read(0.01) is None


def test_an_unplugged_sensor_is_an_error_with_a_remedy(wire: Wire) -> None:
    source = opened(wire)
    wire.unplug()
    with pytest.raises(DeviceError, match="is gone") as error:
        chunks(source, samples=1)
    assert error.value.hint
    source.close()


def test_a_port_without_input_is_silent_and_not_gone(wire: Wire) -> None:
    source = opened(wire)
    assert source.read(DRIVER_WAIT) is None  # the end of the first, incomplete line
    assert source.read(DRIVER_WAIT) is None
    wire.send(b"1,2\n")
    assert take(source).samples.tolist() == [[1.0, 2.0]]


def test_a_sensor_unplugged_during_a_read_ends_the_read(wire: Wire) -> None:
    source = opened(wire)
    unplugged = Thread(target=wire.unplug)
    unplugged.start()
    with pytest.raises(DeviceError, match="is gone"):
        [source.read(DRIVER_WAIT) for _ in range(100)]
    unplugged.join()


class PipePort:
    """Port with a pipe as descriptor: a read returns no bytes after the sensor's end is closed."""

    def __init__(self) -> None:
        self._fd, self.sensor = os.pipe()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def test_the_end_of_the_input_is_told_from_silence() -> None:
    port = PipePort()
    source = SerialPort("/dev/ttyUSB0", port, csv_decoder(Signal(channels=("x",))))  # type: ignore[arg-type]
    os.write(port.sensor, b"\n7\n")
    os.close(port.sensor)
    assert take(source).samples.tolist() == [[7.0]]
    with pytest.raises(DeviceError, match="/dev/ttyUSB0 is gone: the end of the input") as error:
        source.read(DRIVER_WAIT)
    assert error.value.retryable
    source.close()


def test_bytes_without_a_newline_for_long(wire: Wire) -> None:
    source = opened(wire)
    sender = Thread(target=lambda: wire.send(b"7" * 200_000 + b"\n1,2\n"), daemon=True)
    sender.start()
    chunk = take(source)
    sender.join()
    assert (chunk.samples.tolist(), chunk.lost) == ([[1.0, 2.0]], 1)
    assert source.faults == {"too long": 1}


def test_random_bytes_and_then_the_sensor_again(wire: Wire) -> None:
    source = opened(wire, format="json")
    noise = np.random.default_rng(1).bytes(1_000_000)
    sender = Thread(target=lambda: wire.send(noise + b'\n{"x":1,"y":2}\n'))
    sender.start()
    assert take(source).samples.tolist() == [[1.0, 2.0]]
    sender.join()
    assert source.faults["not JSON"] > 1000


def test_a_port_is_ours_alone(wire: Wire) -> None:
    config = SerialSource(port=wire.port, channels=("x",))
    first = config.open()
    with pytest.raises(DeviceError, match="in use by another program") as error:
        config.open()
    assert "fuser" in error.value.hint
    first.close()
    config.open().close()


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="is not there") as error:
        SerialSource(port=str(tmp_path / "ttyUSB0"), channels=("x",)).open()
    assert error.value.retryable


def test_a_file_is_no_port(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("1\n")
    with pytest.raises(DeviceError, match="cannot be opened as a serial port"):
        SerialSource(port=str(file), channels=("x",)).open()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root of a board whose kernel has two terminals, and whose /dev has none."""
    for name in ("sys/class/tty/tty", "sys/class/tty/ttyS0", "sys/class/tty/ttyACM0", "dev/tty"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_the_hint_names_the_ports_that_are_there(root: Path) -> None:
    (root / "dev/ttyS0").touch()
    assert "no USB serial port is available" in refusal("/dev/ttyACM0", OSError(errno.ENOENT, ""), root).hint
    by_id = root / "dev/serial/by-id"
    by_id.mkdir(parents=True)
    (by_id / "usb-Arduino_85430-if00").touch()
    missing = refusal("/dev/ttyACM0", OSError(errno.ENOENT, "No such file"), root)
    assert missing.hint == f"plug it in, or set port to an available port: {by_id}/usb-Arduino_85430-if00"


def test_in_a_sandbox_that_hides_all_devices_the_hint_says_how_to_let_them_in(root: Path) -> None:
    hidden = refusal("/dev/ttyACM0", OSError(errno.ENOENT, "No such file"), root)
    assert hidden.hint == (
        "the service's sandbox hides all devices: run sudo edgectl devices allow --restart; "
        "after that, plug the device in"
    )
    forbidden = refusal("/dev/ttyACM0", OSError(errno.EPERM, "Operation not permitted"), root)
    assert (forbidden.message, forbidden.hint) == (
        "the service's sandbox blocks /dev/ttyACM0",
        "run sudo edgectl devices allow --restart",
    )


def test_the_hint_for_a_port_that_is_not_ours_to_open() -> None:
    forbidden = refusal("/dev/ttyACM0", OSError(errno.EACCES, "Permission denied"))
    assert forbidden.message == "not allowed to open /dev/ttyACM0"
    assert "dialout" in forbidden.hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"units": ("g",)}, "units has 1 entries for 2 channels"),
        ({"columns": ("x",)}, "'y' is not in columns"),
        ({"crc": "crc8"}, 'crc = "crc8" is for format = "binary"'),
        ({"crc_range": (0, 3)}, 'crc_range means nothing for format = "csv"'),
        ({"format": "json", "crc": "nmea"}, 'crc means nothing for format = "json"'),
        ({"format": "binary", "sync": "aa", "crc": "nmea"}, 'crc = "nmea" is for format = "csv"'),
        ({"format": "binary", "sync": "aa", "prefix": "x"}, 'prefix means nothing for format = "binary"'),
        ({"select": {"kind": "imu"}}, "select names 'kind'"),
        ({"format": "json", "separator": ";"}, 'separator means nothing for format = "json"'),
        ({"format": "binary", "struct": "<hh", "fields": ("x", "y")}, "either sync or cobs"),
        (
            {"format": "binary", "struct": "<hh", "fields": ("x", "y"), "sync": "aa", "cobs": True},
            "either sync or cobs",
        ),
        ({"format": "binary", "sync": "aa"}, "is not a layout"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        SerialSource(port="/dev/null", channels=("x", "y"), **options).describe()  # type: ignore[arg-type]
    assert error.value.hint
