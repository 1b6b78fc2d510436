"""Named settings of the one engine. A recipe is data; ``fedsim recipes`` prints this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

QUANTIZED = {"compressor": "quantize"}
PLAIN = {"compressor": "identity"}
MEMORY = {"memory": True}
STEP_FEEDBACK = {"feedback": "step"}
LOCAL_AVERAGING = {
    "local": {"steps": 10, "send": "difference", "step": 0.1},
    "server": {"step": 1.0, "normalise": "present"},
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """settings: what the recipe presets in an experiment, table by table. source: paper."""

    summary: str
    source: str
    settings: dict[str, dict[str, Any]]


RECIPES: dict[str, Recipe] = {
    "sgd": Recipe(
        "no compression",
        "",
        {"uplink": PLAIN, "downlink": PLAIN},
    ),
    "sgd-mem": Recipe(
        "no compression, memories (variance reduction on who takes part)",
        "Philippenko & Dieuleveut 2020, arXiv 2006.14591",
        {"uplink": PLAIN | MEMORY | {"rate_levels": 1}, "downlink": PLAIN},
    ),
    "qsgd": Recipe(
        "quantized uplink",
        "Alistarh et al., NeurIPS 2017",
        {"uplink": QUANTIZED, "downlink": PLAIN},
    ),
    "diana": Recipe(
        "quantized uplink, memories",
        "Mishchenko et al. 2019, arXiv 1901.09269",
        {"uplink": QUANTIZED | MEMORY, "downlink": PLAIN},
    ),
    "bi-qsgd": Recipe(
        "quantized both ways",
        "Philippenko & Dieuleveut 2020, arXiv 2006.14591",
        {"uplink": QUANTIZED, "downlink": QUANTIZED},
    ),
    "artemis": Recipe(
        "quantized both ways, memories",
        "Philippenko & Dieuleveut 2020, arXiv 2006.14591",
        {"uplink": QUANTIZED | MEMORY, "downlink": QUANTIZED},
    ),
    "dore": Recipe(
        "artemis with error feedback on the downlink (the form of the Artemis comparison)",
        "Liu et al. 2019, arXiv 1910.07561",
        {"uplink": QUANTIZED | MEMORY, "downlink": QUANTIZED | STEP_FEEDBACK},
    ),
    "double-squeeze": Recipe(
        "quantized both ways with error feedback both ways (the form of the Artemis comparison)",
        "Tang et al. 2019, arXiv 1905.05957",
        {"uplink": QUANTIZED | STEP_FEEDBACK, "downlink": QUANTIZED | STEP_FEEDBACK},
    ),
    "fedsgd": Recipe(
        "one full local gradient, no compression",
        "McMahan et al., AISTATS 2017",
        {"uplink": PLAIN, "downlink": PLAIN, "local": {"steps": 1, "batch": 0}, "server": {"normalise": "present"}},
    ),
    "fedavg": Recipe(
        "ten local steps, model differences, no compression",
        "McMahan et al., AISTATS 2017",
        {"uplink": PLAIN, "downlink": PLAIN, **LOCAL_AVERAGING},
    ),
    "fedpaq": Recipe(
        "ten local steps, quantized model differences",
        "Reisizadeh et al., AISTATS 2020",
        {"uplink": QUANTIZED, "downlink": PLAIN, **LOCAL_AVERAGING},
    ),
}
