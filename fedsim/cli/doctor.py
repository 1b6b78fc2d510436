"""``fedsim doctor``: is this machine ready, and what would a run use?"""

from __future__ import annotations

import sys


def doctor() -> None:
    """Check versions, cores, memory, GPUs, data sets and the random numbers; exit status 1 if something is wrong."""
    import os
    import platform
    import shutil
    from importlib.metadata import version

    import torch

    from fedsim.data import FashionMNIST
    from fedsim.randomness import Purpose, Stream

    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    golden = Stream(seed=1, purpose=Purpose.UPLINK, round=3).words(torch.tensor([7]), 1).item()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [
        ("python", platform.python_version(), sys.version_info >= (3, 11)),
        *(
            (name, version(name), True)
            for name in ("fedsim", "torch", "numpy", "scikit-learn", "msgspec", "safetensors")
        ),
        ("cores", str(os.cpu_count()), True),
        ("memory", f"{pages / 2**30:.1f} GiB", True),
        ("disk free here", f"{shutil.disk_usage('.').free / 2**30:.1f} GiB", shutil.disk_usage(".").free > 2**28),
        ("GPUs", ", ".join(gpus) or "none (runs use the CPU)", True),
        (
            "random numbers",
            "equal to the golden vector" if golden == GOLDEN else f"{golden} instead of {GOLDEN}",
            golden == GOLDEN,
        ),
        (
            "fashion-mnist",
            "found" if FashionMNIST().present() else "absent (only for data.source = 'fashion-mnist')",
            True,
        ),
    ]
    for name, found, good in lines:
        print(f"{'ok ' if good else 'BAD'}  {name:15} {found}")
    if not all(good for _, _, good in lines):
        sys.exit(1)


GOLDEN = 3051685574
