import json

import pytest
from msgspec.structs import replace

from edged.core.errors import StoreError
from edged.core.proofs import MAX_PROOFS, MAX_RECORD_BYTES, SafeLoad, decode, encode


def load(number: int = 0) -> SafeLoad:
    return SafeLoad(
        file=f"{number:064x}",
        signature=None,
        shapes=((1, 4),),
        backend="mine:Backend",
        runtime="mine 2.3.0",
        processor="b" * 64,
    )


def test_a_record_reads_as_it_was_written():
    loads = (load(1), replace(load(2), signature="predict"))
    assert decode(encode(loads)) == loads


def test_only_the_newest_are_kept():
    loads = decode(encode(load(number) for number in range(MAX_PROOFS + 2)))
    assert (loads[0], loads[-1], len(loads)) == (load(2), load(MAX_PROOFS + 1), MAX_PROOFS)


LOADS = json.loads(encode([load()]))["loads"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        encode([load()])[:-20],
        json.dumps({"schema": "edged.proofs/2", "loads": LOADS}).encode(),
        json.dumps({"schema": "edged.proofs/1", "loads": LOADS, "all": True}).encode(),
        json.dumps({"schema": "edged.proofs/1", "loads": [{**LOADS[0], "file": "*"}]}).encode(),
        json.dumps({"schema": "edged.proofs/1", "loads": LOADS * (MAX_PROOFS + 1)}).encode(),
        b'{"loads":' + b"[" * 100_000,
        encode([load()]) + b" " * MAX_RECORD_BYTES,
    ],
)
def test_a_damaged_record_proves_nothing(data):
    with pytest.raises(StoreError, match="the record of proofs is"):
        decode(data)
