"""python -m tests.benchmarks local|artemis|scale [lr10 lr100 mlp10 mlp100 cnn10]"""

from __future__ import annotations

import sys

import torch

from tests.benchmarks import artemis, local, scale

PARTS = {"local": local.play, "artemis": artemis.play}

if __name__ == "__main__":
    torch.set_num_threads(1)
    part, cases = "".join(sys.argv[1:2]), sys.argv[2:]
    if part not in (*PARTS, "scale") or not set(cases) <= set(local.CASES):
        sys.exit(f"{__doc__}; found {' '.join(sys.argv[1:]) or 'nothing'}")
    if part == "scale":
        scale.table()
    else:
        for case in cases or local.CASES:
            PARTS[part](case)
