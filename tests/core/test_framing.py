import binascii
import struct
import warnings

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.core.errors import ConfigError
from edged.core.framing import (
    ANY_LINES,
    MAX_LINE,
    Checksum,
    Continuity,
    Decoder,
    Lines,
    Signal,
    Stretch,
    binary_decoder,
    crc8,
    crc16_ccitt,
    crc16_modbus,
    csv_decoder,
    json_decoder,
    unstuffed,
)
from edged.core.types import Obstacle

XY = Signal(channels=("x", "y"))
COUNTED = Signal(channels=("x", "y"), sequence="n")


def plain(segments: list[Stretch]) -> list[tuple[list[list[float]], int]]:
    return [(segment.samples.tolist(), segment.lost) for segment in segments]


def lines(signal: Signal = XY, columns: tuple[str, ...] = (), separator: str = ",", ours: Lines = ANY_LINES) -> Decoder:
    """Return a decoder that has seen the end of the first, incomplete line."""
    decoder = csv_decoder(signal, columns, separator=separator, lines=ours)
    assert decoder.decode(b"5,6\n") == []
    return decoder


def stuffed(frame: bytes) -> bytes:
    """Return the COBS form of a frame, as in a sensor's firmware."""
    out = bytearray()
    blocks = frame.split(b"\0")
    for block in blocks:
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out.append(len(block) + 1)
        out += block
    return bytes(out)


class TestText:
    def test_lines_become_one_segment(self) -> None:
        assert plain(lines().decode(b"1,2\n3.5,-4e1\r\n")) == [([[1.0, 2.0], [3.5, -40.0]], 0)]

    def test_samples_are_float32(self) -> None:
        (segment,) = lines().decode(b"1,2\n")
        assert segment.samples.dtype == np.float32

    def test_a_line_cut_between_blocks_is_one_line(self) -> None:
        decoder = lines()
        assert decoder.decode(b"1,") == []
        assert plain(decoder.decode(b"2\n3,")) == [([[1.0, 2.0]], 0)]

    def test_the_tail_of_the_line_joined_midway_is_not_believed(self) -> None:
        decoder = csv_decoder(XY)
        assert plain(decoder.decode(b"3,4\n5,6\n")) == [([[5.0, 6.0]], 0)]
        assert decoder.faults == {}

    def test_columns_pick_and_order_the_channels(self) -> None:
        decoder = lines(columns=("time", "y", "label", "x"))
        assert plain(decoder.decode(b"99,2,walking,1\n")) == [([[1.0, 2.0]], 0)]

    def test_a_space_separates_by_any_run_of_blanks(self) -> None:
        assert plain(lines(separator=" ").decode(b"  1 \t 2\n")) == [([[1.0, 2.0]], 0)]

    def test_scale_and_offset_give_real_units(self) -> None:
        decoder = lines(Signal(channels=("x", "y"), scale=(0.5, 2.0), offset=1.0))
        assert plain(decoder.decode(b"4,4\n")) == [([[3.0, 9.0]], 0)]

    def test_json_objects_and_arrays(self) -> None:
        decoder = json_decoder(XY)
        decoder.decode(b"\n")
        wire = b'{"y": 2, "x": 1, "name": "x", "at": {"x": 9, "\\u0078": 9}}\n[3, 4.5]\n'
        assert plain(decoder.decode(wire)) == [([[1.0, 2.0], [3.0, 4.5]], 0)]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"1", "wrong number of columns"),
            (b"1,2,3", "wrong number of columns"),
            (b"1,two", "not a number"),
            (b"\xff\xfe,2", "not a number"),
            (b"1,nan", "not a finite number"),
            (b"-inf,2", "not a finite number"),
            (b"1,1e39", "not a finite number"),
            (b"1_0,2", "not a number"),  # 10.0 in Python
            (b"0x10,2", "not a number"),
            ("١,2".encode(), "not a number"),
            ("２,2".encode(), "not a number"),
            (b"# \xff\x00", "wrong number of columns"),
            (b"y,x", "not a number"),
            (b"1," + b"2" * MAX_LINE, "too long"),
        ],
    )
    def test_a_bad_line_tears_the_stream_and_is_counted(self, line: bytes, reason: str) -> None:
        decoder = lines()
        assert plain(decoder.decode(b"1,2\n" + line + b"\n3,4\n")) == [([[1.0, 2.0]], 0), ([[3.0, 4.0]], 1)]
        assert decoder.faults == {reason: 1}

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"hello", "not JSON"),
            (b"[1, NaN]", "not JSON"),
            (b"[" * 10_000, "wrong JSON keys or types"),
            (b'{"q":' + b"[" * 10_000, "not JSON"),
            (b'{"x": 1}', "wrong JSON keys or types"),
            (b'{"x": 1, "y": true}', "wrong JSON keys or types"),
            (b"[1, 2, 3]", "wrong number of columns"),
            (b"[1, 1e300]", "not a finite number"),
            (b"[1, Infinity]", "not JSON"),
            (b'{"x": 1, "y": 2, "x": 3}', "a JSON key twice"),
            (b'{"x": 1, "y": 2, "\\u0078": 3}', "a JSON key twice"),
            (b'{"x": 1, "y": 2, "q": "x", "r": "x", "s": %b}' % (b"9" * 9000), "a JSON key twice"),
            (b'{"x": 1, "y": "2"}', "wrong JSON keys or types"),
            (b'{"x": 1, "y": 0x10}', "not JSON"),
            (b'{"x": 1, "y": 1_0}', "not JSON"),
        ],
    )
    def test_bad_json_is_counted(self, line: bytes, reason: str) -> None:
        decoder = json_decoder(XY)
        assert plain(decoder.decode(b"\n" + line + b"\n[3, 4]\n")) == [([[3.0, 4.0]], 1)]
        assert decoder.faults == {reason: 1}

    def test_a_tear_at_the_end_of_a_block_shows_in_the_next(self) -> None:
        decoder = lines()
        assert plain(decoder.decode(b"1,2\noops\n")) == [([[1.0, 2.0]], 0)]
        assert plain(decoder.decode(b"3,4\n")) == [([[3.0, 4.0]], 1)]

    def test_ten_megabytes_without_a_newline_are_one_fault_and_keep_nothing(self) -> None:
        decoder = lines()
        for _ in range(160):
            assert decoder.decode(b"1" * 65_536) == []
        assert plain(decoder.decode(b"1\n3,4\n")) == [([[3.0, 4.0]], 1)]
        assert decoder.faults == {"too long": 1}

    @pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n", b"\n\r"])
    def test_lines_end_in_cr_lf_or_both(self, end: bytes) -> None:
        assert plain(csv_decoder(XY).decode(end.join([b"9,9", b"1,2", b"3,4", b""]))) == [([[1.0, 2.0], [3.0, 4.0]], 0)]

    @pytest.mark.parametrize("end", [b"\0", b";\r\n", b"\r"])
    def test_lines_end_as_they_are_said_to(self, end: bytes) -> None:
        decoder = csv_decoder(XY, lines=Lines(end=end))
        wire = end.join([b"9,9", b"1,2", b"x" * 20_000, b"3,4", b""])
        got = [each for byte in wire for each in plain(decoder.decode(bytes([byte])))]
        assert got == [([[1.0, 2.0]], 0), ([[3.0, 4.0]], 1)]

    @pytest.mark.parametrize(
        ("ours", "other"),
        [
            (Lines(), b"# x and y follow"),
            (Lines(), b"x,y"),
            (Lines(), b' "x" , y\t'),
            (Lines(comment=("//", "T")), b"  T=21.5,0"),
            (Lines(prefix=("acc:",)), b"gyr:7,7"),
            (Lines(prefix=("acc:",)), "température 7,7".encode()),
            (Lines(prefix=("acc:",)), b"\x1b[0;32mI (1234) wifi:\tconnected\x1b[0m"),
            (Lines(select={"kind": "acc"}), b"7,7,gyr"),
            (Lines(select={"kind": "acc"}), b"7,7,gyr,7"),
        ],
    )
    def test_a_line_that_is_not_ours_tears_nothing(self, ours: Lines, other: bytes) -> None:
        columns = ("x", "y", "kind") if ours.select else ("x", "y")
        mark = b"acc:" if ours.prefix else b""
        kind = b",acc" if ours.select else b""
        decoder = lines(columns=columns, ours=ours) if not mark and not kind else csv_decoder(XY, columns, lines=ours)
        sample = b"%b1,2%b\n" % (mark, kind)
        assert plain(decoder.decode(b"\n" + sample + other + b"\n" + sample)) == [([[1.0, 2.0], [1.0, 2.0]], 0)]
        assert decoder.faults == {}

    @pytest.mark.parametrize("ours", [Lines(prefix=("acc:",)), Lines(select={"y": "2"}), Lines(comment=("1",))])
    def test_a_damaged_line_is_never_passed_over(self, ours: Lines) -> None:
        decoder = csv_decoder(XY, lines=ours)
        assert decoder.decode(b"\n1\xfe,3\n") == []
        assert sum(decoder.faults.values()) == 1
        assert decoder.faults.last == "1\\xfe,3"

    def test_json_of_another_kind_is_passed_over(self) -> None:
        decoder = json_decoder(XY, lines=Lines(select={"type": "imu", "id": "3"}))
        wire = b'\n{"type":"imu","id":3,"x":1,"y":2}\n{"type":"gps","id":3}\n{"type":"imu","id":4,"x":9,"y":9}\n'
        assert plain(decoder.decode(wire + b'{"y":2,"x":1,"type":"imu","id":3}\n')) == [([[1.0, 2.0], [1.0, 2.0]], 0)]
        assert decoder.faults == {}

    def test_an_nmea_checksum_is_held(self) -> None:
        decoder = csv_decoder(XY, ("talker", "x", "y"), lines=Lines(nmea=True, select={"talker": "$AB"}))
        wire = b"\n$AB,1,2*00\r\n$AC,1,2*01\r\n$AB,1,2*00\r\n$AB,3,2*00\r\n$AB,1,2\r\n$AB,1,2*00\r\n"
        assert plain(decoder.decode(wire)) == [([[1.0, 2.0], [1.0, 2.0]], 0), ([[1.0, 2.0]], 1)]
        assert decoder.faults == {"bad NMEA checksum": 1, "no NMEA checksum": 1}

    def test_the_last_line_that_was_refused_is_shown_in_printable_characters(self) -> None:
        decoder = lines()
        decoder.decode(b"oops\n1,\x1b[2J\xff'" + b"z" * 100 + b"\n")
        assert decoder.faults.last == "1,\\x1b[2J\\xff'" + "z" * 100
        decoder.decode(b"1," + b"z" * 300 + b"\n")
        assert decoder.faults.last == "1," + "z" * 198 + "... (302 bytes)"
        decoder.decode(b"1,nan\n")
        assert decoder.faults.last == "1 nan"

    def test_a_line_of_another_width_is_shown_with_both_widths(self) -> None:
        decoder = lines()
        decoder.decode(b"oops\n1,2,3\n")
        assert decoder.faults.last == "3 columns instead of 2: 1,2,3"
        decoder.decode(b"1\n")
        assert decoder.faults.last == "1 column instead of 2: 1"

    def test_bytes_without_an_end_of_line_are_counted_and_named(self) -> None:
        decoder = csv_decoder(XY)
        assert decoder.obstacle is None
        assert decoder.decode(b"1.25,2.5;" * 40) == []
        assert decoder.decode(b"1.25,2.5;" * 5) == []
        assert decoder.obstacle == Obstacle(
            "405 bytes arrived without an end of a line", "set end to the line end in hexadecimal, and check baud"
        )
        decoder.decode(b"\n1,2\n3,")
        assert decoder.obstacle is None
        decoder.decode(b"x" * 100_000)
        assert decoder.obstacle
        assert decoder.obstacle.reason == "100002 bytes arrived without an end of a line"

    def test_lines_that_are_all_passed_over_are_counted_and_named(self) -> None:
        decoder = lines(ours=Lines(comment=("1",)))
        decoder.decode(b"1,2\n1,3\n")
        assert decoder.obstacle == Obstacle("2 lines arrived, and all were ignored", "check comment, prefix and select")
        decoder.decode(b"2,2\n")
        assert decoder.obstacle is None

    @given(st.lists(st.sampled_from([b"1,2", b"x,y", b"# c", b"", b"oops"]), max_size=20), st.data())
    def test_lines_end_where_they_end_however_blocks_are_cut(self, parts: list[bytes], data: st.DataObject) -> None:
        decoder = lines()
        wire = b"".join(part + data.draw(st.sampled_from([b"\r", b"\n", b"\r\n"])) for part in parts)
        count = 0
        while wire:
            cut = data.draw(st.integers(1, len(wire)))
            count += sum(len(segment.samples) for segment in decoder.decode(wire[:cut]))
            wire = wire[cut:]
        assert count == parts.count(b"1,2")
        assert sum(decoder.faults.values()) == parts.count(b"oops")

    @given(st.lists(st.tuples(st.integers(-999, 999), st.integers(-999, 999)), max_size=30), st.data())
    def test_where_blocks_are_cut_makes_no_difference(self, rows: list[tuple[int, int]], data: st.DataObject) -> None:
        decoder = lines()
        wire = b"".join(b"%d,%d\n" % row for row in rows)
        got: list[list[float]] = []
        while wire:
            cut = data.draw(st.integers(1, len(wire)))
            for segment in decoder.decode(wire[:cut]):
                got += segment.samples.tolist()
            wire = wire[cut:]
        assert got == [list(row) for row in rows]


class TestSequence:
    def test_numbers_that_follow_are_one_segment(self) -> None:
        assert plain(lines(COUNTED).decode(b"7,1,1\n8,2,2\n")) == [([[1.0, 1.0], [2.0, 2.0]], 0)]

    def test_a_gap_parts_the_samples_and_counts_the_missing(self) -> None:
        decoder = lines(COUNTED)
        assert plain(decoder.decode(b"7,1,1\n11,2,2\n")) == [([[1.0, 1.0]], 0), ([[2.0, 2.0]], 3)]

    def test_a_gap_between_blocks_counts_too(self) -> None:
        decoder = lines(COUNTED)
        decoder.decode(b"7,1,1\n")
        assert plain(decoder.decode(b"9,2,2\n")) == [([[2.0, 2.0]], 1)]

    def test_the_number_alone_says_what_was_lost(self) -> None:
        decoder = lines(COUNTED)
        assert plain(decoder.decode(b"7,1,1\nwarming up\n8,2,2\n")) == [([[1.0, 1.0]], 0), ([[2.0, 2.0]], 0)]

    @pytest.mark.parametrize(
        ("modulus", "numbers", "lost"),
        [
            (0, [5, 6, 9], [0, 0, 2]),
            (256, [254, 255, 0, 2], [0, 0, 0, 1]),
            (256, [10, 10], [0, 1]),  # a counter without progress
            (256, [200, 0], [0, 55]),
            (256, [10, 5], [0, 1]),  # the sensor has restarted
            (0, [10, 0], [0, 1]),
            (0, [10, 5_000_000], [0, 1]),  # no gap, but another count
            (1 << 16, [65_535, 0], [0, 0]),
        ],
    )
    def test_what_numbers_say_is_lost(self, modulus: int, numbers: list[int], lost: list[int]) -> None:
        continuity = Continuity(modulus)
        assert [continuity.lost_before(number) for number in numbers] == lost

    @pytest.mark.parametrize("number", [b"7_1", b"0x7", b"7.0", "٧".encode(), b"9" * 5000])
    def test_a_number_that_is_whole_to_python_alone_is_refused(self, number: bytes) -> None:
        decoder = lines(COUNTED)
        assert decoder.decode(number + b",1,1\n") == []
        assert decoder.faults == {"not a number": 1}

    def test_json_gives_a_whole_number_in_an_array_too(self) -> None:
        decoder = json_decoder(COUNTED)
        assert plain(decoder.decode(b"\n[7,1,1]\n[8.5,2,2]\n[9,3,3]\n")) == [([[1.0, 1.0]], 0), ([[3.0, 3.0]], 1)]
        assert decoder.faults == {"wrong JSON keys or types": 1}

    def test_json_carries_it_by_key(self) -> None:
        decoder = json_decoder(COUNTED)
        assert plain(decoder.decode(b'\n{"n":1,"x":1,"y":1}\n{"n":3,"x":2,"y":2}\n')) == [
            ([[1.0, 1.0]], 0),
            ([[2.0, 2.0]], 1),
        ]

    def test_a_binary_counter_wraps_at_its_own_width(self) -> None:
        decoder = binary_decoder(COUNTED, "<Bhh", ("n", "x", "y"), sync=b"\xaa", check=Checksum(crc="crc8"))
        wire = b"".join(framed(struct.pack("<Bhh", n, n, 0)) for n in (254, 255, 0, 3))
        assert plain(decoder.decode(wire)) == [([[254.0, 0.0], [255.0, 0.0], [0.0, 0.0]], 0), ([[3.0, 0.0]], 2)]


def framed(body: bytes) -> bytes:
    return b"\xaa" + body + bytes([crc8(body)])


class TestBinary:
    def test_frames_with_sync_bytes(self) -> None:
        decoder = binary_decoder(XY, "<hh", ("x", "y"), sync=b"\xaa\x55")
        wire = b"".join(b"\xaa\x55" + struct.pack("<hh", x, -x) for x in (1, 2, 3))
        assert plain(decoder.decode(wire)) == [([[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]], 0)]
        assert decoder.faults == {}

    def test_a_big_endian_struct_with_padding_and_items_nobody_wants(self) -> None:
        decoder = binary_decoder(XY, ">Bxfh", ("status", "y", "x"), sync=b"\xaa\x55", check=Checksum(crc="crc32"))
        body = struct.pack(">Bxfh", 9, 0.5, 300)
        assert plain(decoder.decode(b"\xaa\x55" + body + struct.pack(">I", binascii.crc32(body)))) == [
            ([[300.0, 0.5]], 0)
        ]

    def test_joining_midway_is_no_fault(self) -> None:
        decoder = binary_decoder(XY, "<hh", ("x", "y"), sync=b"\xaa", check=Checksum(crc="crc8"))
        frame = framed(struct.pack("<hh", 1, 2))
        (segment,) = decoder.decode(frame[3:] + frame)
        assert segment.samples.tolist() == [[1.0, 2.0]]
        assert decoder.faults == {}

    def test_without_a_crc_the_first_frame_needs_a_second(self) -> None:
        decoder = binary_decoder(XY, "<bb", ("x", "y"), sync=b"\xaa\x55")
        chance = b"\x01\xaa\x55\x07"  # looks like a beginning
        assert decoder.decode(chance + b"\xaa\x55\x01\x02") == []
        assert plain(decoder.decode(b"\xaa\x55\x03\x04")) == [([[1.0, 2.0], [3.0, 4.0]], 1)]

    def test_a_wrong_crc_costs_its_frame(self) -> None:
        decoder = binary_decoder(XY, "<bb", ("x", "y"), sync=b"\xaa", check=Checksum(crc="crc8"))
        good = [framed(bytes([n, n])) for n in (1, 2, 3)]
        wire = good[0] + good[1][:-1] + b"\x99" + good[2]
        assert plain(decoder.decode(wire)) == [([[1.0, 1.0]], 0), ([[3.0, 3.0]], 1)]
        assert decoder.faults == {"bad CRC": 1}

    def test_a_missing_byte_is_found_and_counted(self) -> None:
        decoder = binary_decoder(XY, "<hh", ("x", "y"), sync=b"\xaa\x55", check=Checksum(crc="crc16-modbus"))
        frames = []
        for n in range(4):
            body = struct.pack("<hh", n, n)
            frames.append(b"\xaa\x55" + body + crc16_modbus(body).to_bytes(2, "little"))
        wire = frames[0] + frames[1][:3] + frames[1][4:] + frames[2] + frames[3]
        assert plain(decoder.decode(wire)) == [([[0.0, 0.0]], 0), ([[2.0, 2.0], [3.0, 3.0]], 1)]
        assert sum(decoder.faults.values()) == 1

    def test_cobs(self) -> None:
        decoder = binary_decoder(COUNTED, "<Hhh", ("n", "x", "y"), sync=b"", check=Checksum(crc="crc16-ccitt"))
        wire = b"\0"
        for n in (0, 1, 2):
            body = struct.pack("<Hhh", n, 256, -1)
            wire += stuffed(body + crc16_ccitt(body).to_bytes(2, "little")) + b"\0"
        assert plain(decoder.decode(wire)) == [([[256.0, -1.0]] * 3, 0)]

    @pytest.mark.parametrize(
        ("piece", "reason"),
        [
            (stuffed(b"\1"), "wrong length"),
            (b"\x09\1\2", "bad COBS"),
            (stuffed(b"\1\2\3"), "too long"),
            (b"\1" * 9, "too long"),
        ],
    )
    def test_bad_cobs_is_counted(self, piece: bytes, reason: str) -> None:
        decoder = binary_decoder(XY, "<bb", ("x", "y"), sync=b"")
        assert plain(decoder.decode(b"\0" + piece + b"\0" + stuffed(b"\1\0") + b"\0")) == [([[1.0, 0.0]], 1)]
        assert decoder.faults == {reason: 1}

    @given(st.binary(max_size=600))
    def test_cobs_round_trip(self, frame: bytes) -> None:
        assert 0 not in stuffed(frame)
        assert unstuffed(stuffed(frame)) == frame

    @pytest.mark.parametrize(
        ("sync", "layout", "check", "frame", "value"),
        [
            # From the data sheets: CO2 of an MH-Z19, fine dust of an SDS011, distance of a TFmini.
            (b"\xff\x86", ">H4B", Checksum(crc="sum8-negated", range=(1, 8)), "ff86 0260 47000000 d1", 608.0),
            (b"\xaa\xc0", "<HHBB", Checksum(crc="sum8", end=b"\xab"), "aac0 d404 3a0a a160 1d ab", 1236.0),
            (b"\x59\x59", "<HHBB", Checksum(crc="sum8", range=(0, 8)), "5959 9600 3412 0000 8e", 150.0),
            (b"\x02", ">H4x", Checksum(crc="xor8", range=(0, 7), end=b"\x03"), "02 0102 04080000 0d 03", 258.0),
            (b"\x42\x4d", ">HH", Checksum(crc="sum16", range=(0, 6)), "424d 000a 0102 009c", 10.0),
        ],
    )
    def test_checksums_of_sensors(self, sync: bytes, layout: str, check: Checksum, frame: str, value: float) -> None:
        fields = tuple("xabcd"[: len(struct.unpack(layout, bytes(struct.calcsize(layout))))])
        wire = bytes.fromhex(frame)
        decoder = binary_decoder(Signal(channels=("x",)), layout, fields, sync=sync, check=check)
        assert plain(decoder.decode(wire + wire)) == [([[value], [value]], 0)]
        for bit in range(8 * len(wire)):
            flipped = bytearray(wire)
            flipped[bit // 8] ^= 1 << bit % 8
            decoder = binary_decoder(Signal(channels=("x",)), layout, fields, sync=sync, check=check)
            got = plain(decoder.decode(wire + flipped + wire))
            assert got == [([[value]], 0), ([[value]], 1)], f"bit {bit}"
            assert decoder.faults

    def test_the_constant_end_of_a_frame_is_held(self) -> None:
        decoder = binary_decoder(XY, "<bb", ("x", "y"), sync=b"\xaa", check=Checksum(end=b"\x55"))
        assert plain(decoder.decode(b"\xaa\1\2\x55\xaa\3\4\x54\xaa\5\6\x55\xaa\7\x08\x55\xaa")) == [
            ([[1.0, 2.0]], 0),
            ([[5.0, 6.0], [7.0, 8.0]], 1),
        ]
        assert decoder.faults == {"bad end": 1}
        assert decoder.faults.last == "\\xaa\\x03\\x04T"

    def test_a_frame_of_cobs_may_have_a_sum(self) -> None:
        decoder = binary_decoder(XY, "<bb", ("x", "y"), sync=b"", check=Checksum(crc="sum8", range=(0, 1)))
        assert plain(decoder.decode(b"\0" + stuffed(b"\1\2\1") + b"\0" + stuffed(b"\3\2\1") + b"\0")) == [
            ([[1.0, 2.0]], 0)
        ]
        assert decoder.faults == {"bad CRC": 1}

    def test_frames_without_an_end_are_counted_and_named(self) -> None:
        decoder = binary_decoder(XY, "<bb", ("x", "y"), sync=b"")
        decoder.decode(b"\1" * 40)
        assert decoder.obstacle
        assert decoder.obstacle.reason == "40 bytes arrived without an end of a frame"

    def test_not_a_number_in_a_float_field(self) -> None:
        decoder = binary_decoder(XY, "<dd", ("x", "y"), sync=b"\xaa\x55")
        wire = b"".join(b"\xaa\x55" + struct.pack("<dd", 1, value) for value in (1.0, float("nan"), 1e300, 2.0))
        assert plain(decoder.decode(wire)) == [([[1.0, 1.0]], 0), ([[1.0, 2.0]], 1)]
        assert decoder.faults == {"not a finite number": 2}

    def test_no_warning_whatever_the_bits_of_a_float(self) -> None:
        decoder = binary_decoder(
            Signal(channels=("x", "y"), scale=1e30, offset=1.0), "<fd", ("x", "y"), sync=b"\xaa\x55"
        )
        signalling = bytes.fromhex("0100807f")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert decoder.decode((b"\xaa\x55" + signalling + struct.pack("<d", 1e300)) * 2) == []

    @pytest.mark.parametrize(("crc", "expected"), [(crc8, 0xF4), (crc16_ccitt, 0x29B1), (crc16_modbus, 0x4B37)])
    def test_checksums_give_their_catalogue_check_value(self, crc: object, expected: int) -> None:
        assert crc(b"123456789") == expected  # type: ignore[operator]


WIRES = {
    "csv": lambda: csv_decoder(COUNTED),
    "json": lambda: json_decoder(COUNTED),
    "sync": lambda: binary_decoder(COUNTED, "<Hff", ("n", "x", "y"), sync=b"\xaa"),
    "sync and CRC": lambda: binary_decoder(COUNTED, "<Hhd", ("n", "x", "y"), sync=b"\xaa", check=Checksum(crc="crc8")),
    "csv with rules": lambda: csv_decoder(
        COUNTED, ("n", "x", "y", "kind"), lines=Lines(prefix=("a", "b"), select={"kind": "imu"}, comment=("%",))
    ),
    "NMEA": lambda: csv_decoder(COUNTED, lines=Lines(nmea=True)),
    "json with rules": lambda: json_decoder(COUNTED, lines=Lines(prefix=("{", "["), select={"kind": "imu"})),
    "sync, sum and end": lambda: binary_decoder(
        COUNTED, "<Hff", ("n", "x", "y"), sync=b"\xaa", check=Checksum(crc="sum8", range=(0, 5), end=b"\x55")
    ),
    "COBS": lambda: binary_decoder(COUNTED, "<Hhe", ("n", "x", "y"), sync=b""),
}


def numbered(segments: list[Stretch]) -> list[tuple[bytes, int]]:
    """Return each sample, to the bit, with the number of samples lost before it."""
    return [
        (row.tobytes(), 0 if index else segment.lost)
        for segment in segments
        for index, row in enumerate(segment.samples)
    ]


NUMBERS = st.one_of(
    st.floats(width=32).map(str),
    st.floats().map(str),
    st.integers(-999, 999).map(str),
    st.sampled_from(
        ["-0.0", "1e-46", "1e38", "3.4028235e38", "3.4028236e38", "1_0", "0x1", "٣", "nan", "inf", "", " 7 "]
    ),
)
COUNTS = st.one_of(st.integers(0, 9).map(str), st.sampled_from(["7.0", "1_0", "70000", "-1", ""]))
CSV_LINES = st.one_of(
    st.builds(",".join, st.tuples(COUNTS, NUMBERS, NUMBERS)),
    st.sampled_from(["# c", "n,x,y", "", "1,2", "1,2,3,4", "oops", "1,2,3,imu", "a1,2,3,imu", "b1,2,3,gps"]),
).map(str.encode)
JSON_LINES = st.one_of(
    st.builds('{{"n":{},"x":{},"y":{}}}'.format, COUNTS, NUMBERS, NUMBERS),
    st.builds("[{},{},{}]".format, COUNTS, NUMBERS, NUMBERS),
    st.sampled_from(['{"n":1,"x":1,"y":1,"n":1}', '{"n":1,"x":1,"y":1,"kind":"imu"}', "{}", "hello", ""]),
).map(str.encode)
UNITS = Signal(channels=("x", "y"), scale=(0.3, 2.0**120), offset=(0.1, -7.0))
SIGNALS = st.sampled_from([XY, COUNTED, UNITS, msgspec.structs.replace(UNITS, sequence="n")])


@given(
    SIGNALS,
    st.sampled_from([Lines(), Lines(prefix=("a", "b"), select={"kind": "imu"})]),
    st.lists(CSV_LINES, max_size=8),
)
def test_a_line_at_a_time_is_decoded_as_many_at_once(signal: Signal, ours: Lines, texts: list[bytes]) -> None:
    columns = ("n", "x", "y", "kind") if ours.select else ("n", "x", "y")
    alike_in_blocks_of_one([csv_decoder(signal, columns, lines=ours) for _ in range(2)], texts)


@given(st.lists(JSON_LINES, max_size=8))
def test_an_object_at_a_time_is_decoded_as_many_at_once(texts: list[bytes]) -> None:
    alike_in_blocks_of_one([json_decoder(COUNTED, ("n", "x", "y")) for _ in range(2)], texts)


def alike_in_blocks_of_one(decoders: list[Decoder], texts: list[bytes]) -> None:
    one, many = decoders
    wire = [b"cut\n", *(line + b"\r\n" for line in [b"oops", *texts, b"oops"])]
    assert numbered([each for line in wire for each in one.decode(line)]) == numbered(many.decode(b"".join(wire)))
    assert one.faults == many.faults


LAYOUTS = {
    "<Hbb": st.integers(-128, 127),
    "<Hqq": st.integers(-(2**63), 2**63 - 1),
    ">HQQ": st.integers(0, 2**64 - 1),
    "<Hee": st.floats(width=16),
    ">Hxff": st.floats(width=32),
    "!Hxdd": st.floats(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@given(SIGNALS, st.sampled_from([b"\xaa", b""]), st.data())
def test_a_frame_at_a_time_is_decoded_as_many_at_once(
    layout: str, signal: Signal, sync: bytes, data: st.DataObject
) -> None:
    values = LAYOUTS[layout]
    rows = data.draw(st.lists(st.tuples(st.integers(0, 9), values, values), max_size=6))
    check = Checksum(crc="sum8", range=(0, 1), end=b"\x55")
    one, many = (binary_decoder(signal, layout, ("n", "x", "y"), sync=sync, check=check) for _ in range(2))
    frames = []
    for row in [(1, 0, 0), *rows]:
        body = sync + struct.pack(layout, *row)
        frame = body + body[:1] + b"\x55"
        frames.append(frame if sync else stuffed(frame) + b"\0")
    if not sync:
        frames.insert(0, b"\0")
    frames.insert(2, b"\7\7\7\0")  # damage, so that many frames are never one piece
    assert numbered([each for frame in frames for each in one.decode(frame)]) == numbered(many.decode(b"".join(frames)))
    assert one.faults == many.faults


@pytest.mark.parametrize("wire", WIRES)
def test_megabytes_of_random_bytes_are_counted_and_forgotten(wire: str) -> None:
    decoder = WIRES[wire]()
    random = np.random.default_rng(1)
    for _ in range(48):
        for segment in decoder.decode(random.bytes(65_536)):
            assert np.isfinite(segment.samples).all()
    assert sum(decoder.faults.values()) > 500
    assert len(decoder.faults) < 8
    assert held(decoder) <= MAX_LINE


def held(decoder: Decoder) -> int:
    """Return the bytes kept for later in all stages."""
    found, queue, seen = 0, [decoder], set()
    while queue:
        thing = queue.pop()
        if isinstance(thing, bytes):
            found += len(thing)
        elif hasattr(thing, "__dict__") and id(thing) not in seen:
            seen.add(id(thing))
            queue.extend(vars(thing).values())
    return found


@pytest.mark.parametrize("wire", WIRES)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b"1,2,3\n", b"[1,2,3]\n", b"\0", b"\xaa"])))
def test_no_bytes_are_too_strange(wire: str, blocks: list[bytes]) -> None:
    decoder = WIRES[wire]()
    for block in blocks:
        for segment in decoder.decode(block):
            assert segment.samples.shape == (len(segment.samples), 2)
            assert len(segment.samples) >= 1
            assert segment.lost >= 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layout": "hh"}, "byte order"),
        ({"layout": "<n"}, "is not a layout"),
        ({"layout": "<4s"}, "is not a layout"),
        ({"layout": "<hhh"}, "has 3 items, fields names 2"),
        ({"layout": "<٣h"}, "is not a layout"),
        ({"check": Checksum(range=(0, 2))}, "crc_range has no effect without crc"),
        ({"check": Checksum(crc="sum8", range=(0, 6))}, "crc_range is 0 to 6"),
        ({"check": Checksum(crc="sum8", range=(2, 2))}, "crc_range is 2 to 2"),
        ({"layout": "<9999d"}, "79992 bytes"),
        ({"fields": ("x", "x")}, "names 'x' 2 times"),
        ({"fields": ("x", "z")}, "'y' is not in fields"),
        ({"signal": Signal(channels=("x",), sequence="y"), "layout": "<hf"}, "a sample counter is an integer"),
        ({"signal": Signal(channels=("x", "y"), sequence="y")}, "also a channel"),
        ({"signal": Signal(channels=())}, "channels is empty"),
        ({"signal": Signal(channels=("x", "y"), scale=(1.0,))}, "1 numbers for 2 channels"),
        ({"signal": Signal(channels=("x", "y"), offset=float("nan"))}, "not finite"),
        ({"signal": Signal(channels=("x", "y"), modulus=1)}, "sequence_modulus is 1"),
    ],
)
def test_options_that_contradict_one_another(options: dict[str, object], says: str) -> None:
    given_options = {"signal": XY, "layout": "<hh", "fields": ("x", "y"), "sync": b"\xaa"} | options
    with pytest.raises(ConfigError, match="(?s)" + says) as error:
        binary_decoder(**given_options)  # type: ignore[arg-type]
    assert error.value.hint
