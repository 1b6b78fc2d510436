"""Reading data files, plain or gzip, without trusting what they say about themselves."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fedsim.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
CHUNK = 1 << 20


def expanded(path: str) -> Path:
    """The path with ~ replaced. Raises DataError for the home of a user who does not exist, or where it is none."""
    if "\0" in path:
        raise DataError(f"{path!r} is not a path; give the path of an existing file")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: {str(error).rstrip('.').lower()}; give the whole path") from None


class Readable(Protocol):
    """What a file, a gzip file and the answer of a server have in common."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


def refuse_endless(path: Path) -> None:
    """Raise DataError for what may never end when it is read."""
    if path.is_fifo() or path.is_char_device() or path.is_block_device() or path.is_socket():
        raise DataError(f"{path}: a pipe or a device, which may never end; give the path of a file")


@contextmanager
def opened(path: Path) -> Iterator[Readable]:
    """The bytes of a file, decompressed when it starts like gzip (the name does not matter).

    Raises DataError when the file is missing, is a folder, may not be read, or is damaged gzip, also while reading.
    """
    try:
        refuse_endless(path)
        with path.open("rb") as raw:
            zipped = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if zipped:
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream
            else:
                yield raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of an existing file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a readable file") from None


def read_at_most(stream: Readable, count: int) -> bytes:
    """Up to ``count`` bytes. Memory follows what is really there, not ``count``."""
    parts: list[bytes] = []
    while count > 0 and (part := stream.read(min(count, CHUNK))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_file(path: Path, limit: int) -> bytes:
    """A whole file of at most ``limit`` bytes after decompression. Raises DataError as ``opened``, or when longer."""
    with opened(path) as stream:
        content = read_at_most(stream, limit + 1)
    if len(content) > limit:
        raise DataError(f"{path}: longer than {limit} bytes after decompression; give a smaller file")
    return content
