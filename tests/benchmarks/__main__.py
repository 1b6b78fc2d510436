"""python -m tests.benchmarks local|artemis|profile [lr10 lr100 mlp10 mlp100 cnn10], or scale, or whitening, or modules,
or gpu, or messages [gaussian heavy a9a softmax mlp]"""

from __future__ import annotations

import sys

import torch

from tests.benchmarks import artemis, gpu, local, messages, modules, profile, scale, whitening

WORKLOADS = {"local": local.play, "artemis": artemis.play, "profile": profile.play}
TABLES = {"gpu": gpu.table, "modules": modules.table, "scale": scale.table, "whitening": whitening.table}

if __name__ == "__main__":
    torch.set_num_threads(1)
    part, cases = "".join(sys.argv[1:2]), sys.argv[2:]
    if part in TABLES and not cases:
        TABLES[part]()
    elif part == "messages" and set(cases) <= set(messages.ROWS):
        messages.table(cases or messages.ROWS)
    elif part in WORKLOADS and set(cases) <= set(local.CASES):
        for case in cases or local.CASES:
            WORKLOADS[part](case)
    else:
        sys.exit(f"{__doc__}; found {' '.join(sys.argv[1:]) or 'nothing'}")
