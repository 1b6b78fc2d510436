"""python -m tests.benchmarks local [lr10 lr100 mlp10 mlp100 cnn10]"""

from __future__ import annotations

import sys

import torch

from tests.benchmarks import local

if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] != ["local"] or not set(sys.argv[2:]) <= set(local.CASES):
        sys.exit(f"{__doc__}; found {' '.join(sys.argv[1:]) or 'nothing'}")
    for case in sys.argv[2:] or local.CASES:
        local.play(case, local.CASES[case])
