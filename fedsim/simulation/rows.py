"""Rows of zeros for every registered client, of which only those that are written take memory.

The system hands out pages when they are first written. So a client costs nothing until it takes part, and a million of
them with a row each may have far more address space than there is memory. On disk the pages are those of a nameless
temporary file, which go when the process ends; between rounds none of them stays in memory.
"""

from __future__ import annotations

import mmap
import sys
import tempfile
from contextlib import suppress

import torch
from torch import Tensor

from fedsim.errors import ConfigError

HUGE = 2**21
"""Bytes of a huge page."""

SMALL = 2**28
"""Bytes of all rows up to which pages may hold rows that nobody has written yet."""

NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
"""Linux would else refuse at once what it will hardly ever have to give."""


class Rows:
    """float[n, d], zero at first. take and put copy whole rows; ``dense`` is a view of all of them."""

    def __init__(self, n: int, d: int, dtype: torch.dtype, device: torch.device, disk: bool) -> None:
        """disk: keep the rows of a CPU on disk. Raises ConfigError where there is no room for them."""
        self._map: mmap.mmap | None = None
        if device.type != "cpu" or not n:
            self.dense = torch.zeros((n, d), dtype=dtype, device=device)
            return
        size = n * d * dtype.itemsize
        try:
            if disk:
                with tempfile.TemporaryFile() as file:
                    file.truncate(size)
                    self._map = pages = mmap.mmap(file.fileno(), size)
            else:
                pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
                if hasattr(mmap, "MADV_HUGEPAGE") and (size <= SMALL or d * dtype.itemsize >= HUGE):
                    # The first write to a row of many pages costs several times what is then done with it.
                    with suppress(OSError):  # a kernel without them
                        pages.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"no room for {n} client rows of {d} coordinates ({size / 2**30:.3g} GiB: {error}); "
                "use run.rows = 'disk' with TMPDIR on a large disk, or fewer clients"
            ) from None
        self.dense = torch.frombuffer(pages, dtype=dtype).view(n, d)

    def take(self, clients: Tensor) -> Tensor:
        """The rows of some clients, float[m, d], a copy. clients: int64[m]."""
        return self.dense.index_select(0, clients.to(self.dense.device))

    def put(self, clients: Tensor, rows: Tensor) -> None:
        """Replace the rows of some clients."""
        if self.dense.device.type == "cpu":
            self.dense.numpy()[clients.cpu().numpy()] = rows.numpy()  # three times as fast as index_copy_
        else:
            self.dense.index_copy_(0, clients.to(self.dense.device), rows)
        self.written()

    def written(self) -> None:
        """To be called after writing into ``dense``: pages of a file leave the memory."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
