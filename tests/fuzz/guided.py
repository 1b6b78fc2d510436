"""python -m tests.fuzz.guided TARGET FOLDER SECONDS: one target under atheris, which keeps what reaches new lines.

The corpus is FOLDER; what came of it is FOLDER.json. Kernels run as Python here, so that their lines count too; seeds
are those of the target. A process of its own, because atheris ends it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

os.environ["NUMBA_DISABLE_JIT"] = "1"

import atheris
import numpy as np

with atheris.instrument_imports(include=["fedsim", "client"]):
    from tests.fuzz.drive import Tally, one
    from tests.fuzz.targets import TARGETS


def main(name: str, folder: Path, seconds: float) -> None:
    """Never returns."""
    logging.disable(logging.CRITICAL)
    np.seterr(over="ignore")  # whole numbers wrap around in kernels
    folder.mkdir(parents=True, exist_ok=True)
    case, tally, seen, begun = TARGETS[name].case, Tally(), set(), time.perf_counter()
    for i, data in enumerate(case.seeds):
        (folder / f"seed-{i}").write_bytes(data)
    last = begun

    def take(data: bytes) -> None:
        nonlocal last
        one(case, data, tally, seen)
        if (now := time.perf_counter()) - last > 1:
            last, tally.seconds = now, now - begun
            folder.with_suffix(".json").write_text(json.dumps(report(tally)))

    words = folder.with_suffix(".words")
    words.write_text("".join('"' + "".join(f"\\x{octet:02x}" for octet in word) + '"\n' for word in case.words))
    options = [f"-max_total_time={seconds:g}", f"-max_len={case.bound}", "-seed=1", "-verbosity=0"]
    options += [f"-dict={words}"] if case.words else []
    atheris.Setup([sys.argv[0], str(folder), *options], take)
    atheris.Fuzz()


def report(tally: Tally) -> dict[str, object]:
    """As ``python -m tests.fuzz`` reads it."""
    crashes = [[data.hex(), what] for data, what in tally.crashes.values()]
    slow = [[data.hex(), seconds] for data, seconds in tally.slow]
    numbers = {key: getattr(tally, key) for key in ("inputs", "accepted", "seconds", "slowest")}
    return {**numbers, "crashes": crashes, "slow": slow}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
