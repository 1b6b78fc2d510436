import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from fedsim.data.idx import MAX_BYTES, read_idx
from fedsim.errors import DataError

NUMBERS = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def packed(numbers, kind=8):
    return bytes([0, 0, kind, numbers.ndim]) + struct.pack(f">{numbers.ndim}I", *numbers.shape) + numbers.tobytes()


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "numbers"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_numbers_come_back(write, wrap):
    read = read_idx(write(wrap(packed(NUMBERS))), rank=3)
    assert read.dtype == np.uint8
    assert np.array_equal(read, NUMBERS)


BROKEN = {
    "empty": (b"", "starts with bytes ''", "expected '00000803'"),
    "half a magic": (b"\0\0", "starts with bytes '0000'", "expected '00000803'"),
    "another format": (b"P5 28 28", "starts with bytes '50352032'", "expected '00000803'"),
    "floats": (packed(NUMBERS, kind=0x0D), "starts with bytes '00000d03'", "expected '00000803'"),
    "another rank": (packed(NUMBERS[0]), "starts with bytes '00000802'", "expected '00000803'", "rank 3"),
    "half a header": (packed(NUMBERS)[:11], "ends inside its idx header of 16 bytes", "fetch it again"),
    "too short": (packed(NUMBERS)[:-1], "holds only 23 bytes of the 24", "fetch it again"),
    "too long": (packed(NUMBERS) + b"x", "holds more bytes of the 24", "fetch it again"),
    "no numbers": (packed(NUMBERS[:0]), "announces 0 bytes", "expected 1 to"),
    "huge": (bytes([0, 0, 8, 3]) + b"\xff" * 12, f"announces {(2**32 - 1) ** 3} bytes", f"expected 1 to {MAX_BYTES}"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_what_is_not_exactly_an_idx_file_is_named(write, refused, case, wrap):
    content, *parts = case
    path = write(wrap(content))
    with refused(DataError, f"{path}: ", *parts):
        read_idx(path, rank=3)


def test_a_gzip_bomb_is_read_to_one_byte_beyond_its_announcement(write, refused, monkeypatch):
    path, taken = write(gzip.compress(packed(NUMBERS) + bytes(50_000_000))), []

    class Counting(gzip.GzipFile):
        def read(self, size=-1):
            part = super().read(size)
            taken.append(len(part))
            return part

    monkeypatch.setattr(gzip, "GzipFile", Counting)
    with refused(DataError, f"{path}: holds more bytes of the 24"):
        read_idx(path, rank=3)
    assert sum(taken) == 16 + 24 + 1


def test_a_large_announcement_allocates_only_what_is_there(write, refused):
    path = write(bytes([0, 0, 8, 1]) + struct.pack(">I", MAX_BYTES) + bytes(1000))
    tracemalloc.start()
    try:
        with refused(DataError, f"{path}: holds only 1000 bytes of the {MAX_BYTES}"):
            read_idx(path, rank=1)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_damaged_gzip_is_named(write, refused):
    path = write(gzip.compress(packed(NUMBERS))[:-8])
    with refused(DataError, f"{path}: damaged gzip", "fetch it again"):
        read_idx(path, rank=3)
