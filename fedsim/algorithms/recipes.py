"""Named settings of the one engine. A recipe is data; ``fedsim recipes`` prints this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

QUANTIZED = {"compressor": "quantize"}
PLAIN = {"compressor": "identity"}
MEMORY = {"memory": True}
STEP_FEEDBACK = {"feedback": "step"}
TOP = {"compressor": "top-k", "fraction": 0.05}
TERNARY = {"compressor": "stc", "fraction": 0.05}
SIGNS = {"compressor": "sign"}
FULL_FEEDBACK = {"feedback": 1.0}
REGISTERED = {"normalise": "registered"}
MODEL_MEMORY = {"memory": "model"}
MODELS_MEAN = {"step": 1.0, "normalise": "present"}
LOCAL_AVERAGING = {
    "local": {"steps": 10, "send": "difference", "step": 0.1},
    "server": MODELS_MEAN,
}
RESHUFFLED_EPOCH = {"epochs": 1, "batch": 8, "order": "reshuffle", "step": "1/(4L)"}
SALR = {"rule": "salr"}
WHITENED = {"mode": "shared", "damping": 0.1}
WHITENED_STEP = {"step": 0.5}
"""Whitened features make L at most 2 (least squares), 1/2 (softmax) or 1/4 (logistic), so that one number suits all."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """settings: what the recipe presets in an experiment, table by table. source: paper; papers: in papers.bib."""

    summary: str
    source: str
    papers: tuple[str, ...]
    settings: dict[str, dict[str, Any]]


RECIPES: dict[str, Recipe] = {
    "sgd": Recipe(
        "no compression",
        "",
        (),
        {"uplink": PLAIN, "downlink": PLAIN},
    ),
    "sgd-mem": Recipe(
        "no compression, memories (variance reduction on who takes part)",
        "Philippenko & Dieuleveut 2020, arXiv 2006.14591",
        ("artemis",),
        {"uplink": PLAIN | MEMORY | {"rate_levels": 1}, "downlink": PLAIN},
    ),
    "qsgd": Recipe(
        "quantized uplink",
        "Alistarh et al., NeurIPS 2017",
        ("qsgd",),
        {"uplink": QUANTIZED, "downlink": PLAIN},
    ),
    "diana": Recipe(
        "quantized uplink, memories",
        "Mishchenko et al. 2019, arXiv 1901.09269",
        ("diana",),
        {"uplink": QUANTIZED | MEMORY, "downlink": PLAIN},
    ),
    "bi-qsgd": Recipe(
        "quantized both ways",
        "Philippenko & Dieuleveut 2020, arXiv 2006.14591",
        ("artemis",),
        {"uplink": QUANTIZED, "downlink": QUANTIZED},
    ),
    "artemis": Recipe(
        "quantized both ways, memories",
        "Philippenko & Dieuleveut 2020, arXiv 2006.14591",
        ("artemis",),
        {"uplink": QUANTIZED | MEMORY, "downlink": QUANTIZED},
    ),
    "mcm": Recipe(
        "artemis whose server keeps its own model: what comes down is the quantized difference of models",
        "Philippenko & Dieuleveut, NeurIPS 2021, arXiv 2102.12528",
        ("mcm",),
        {"uplink": QUANTIZED | MEMORY, "downlink": QUANTIZED | MODEL_MEMORY},
    ),
    "rand-mcm": Recipe(
        "mcm with a message and a memory of its own for every client",
        "Philippenko & Dieuleveut, NeurIPS 2021, arXiv 2102.12528",
        ("mcm",),
        {"uplink": QUANTIZED | MEMORY, "downlink": QUANTIZED | MODEL_MEMORY | {"each": True}},
    ),
    "ef21": Recipe(
        "top-k changes of what each client sent so far",
        "Richtárik, Sokolov & Fatkhullin, NeurIPS 2021, arXiv 2106.05203",
        ("ef21",),
        {"uplink": TOP | MEMORY, "downlink": PLAIN, "server": REGISTERED},
    ),
    "ef21-bc": Recipe(
        "ef21 both ways: what comes down is the top-k change of the estimate",
        "Fatkhullin et al. 2021, arXiv 2110.03294, Algorithm 5",
        ("ef21-bc",),
        {"uplink": TOP | MEMORY, "downlink": TOP | {"memory": "update"}, "server": REGISTERED},
    ),
    "ef21-p-diana": Recipe(
        "diana whose server keeps its own model: what comes down is its top-k difference to the clients' model",
        "Gruntkowska, Tyurin & Richtárik, ICML 2023, arXiv 2209.15218",
        ("ef21-p", "diana"),
        {"uplink": QUANTIZED | MEMORY, "downlink": TOP | MODEL_MEMORY},
    ),
    "stc": Recipe(
        "sparse ternary messages both ways, with error feedback both ways",
        "Sattler, Wiedemann, Müller & Samek, TNNLS 2020, arXiv 1903.02891",
        ("stc",),
        {"uplink": TERNARY | FULL_FEEDBACK, "downlink": TERNARY | FULL_FEEDBACK},
    ),
    "dist-ef-sgd": Recipe(
        "scaled signs both ways, with error feedback both ways",
        "Zheng, Huang & Kwok, NeurIPS 2019, arXiv 1905.10936",
        ("dist-ef-sgd",),
        {"uplink": SIGNS | FULL_FEEDBACK, "downlink": SIGNS | FULL_FEEDBACK},
    ),
    "dasha": Recipe(
        "quantized changes of the gradient, never in full but in the first round",
        "Tyurin & Richtárik, ICLR 2023, arXiv 2202.01268",
        ("dasha",),
        {
            "uplink": QUANTIZED | MEMORY | {"correction": "auto"},
            "downlink": PLAIN,
            "server": REGISTERED,
        },
    ),
    "marina": Recipe(
        "quantized changes of the gradient, now and then all clients in full",
        "Gorbunov et al., ICML 2021, arXiv 2102.07845",
        ("marina",),
        {
            "uplink": QUANTIZED | MEMORY | {"correction": 0.0, "synchronise": "auto"},
            "downlink": PLAIN,
            "server": REGISTERED,
        },
    ),
    "dore": Recipe(
        "artemis with error feedback on the downlink (the form of the Artemis comparison)",
        "Liu et al. 2019, arXiv 1910.07561",
        ("dore", "artemis"),
        {"uplink": QUANTIZED | MEMORY, "downlink": QUANTIZED | STEP_FEEDBACK},
    ),
    "double-squeeze": Recipe(
        "quantized both ways with error feedback both ways (the form of the Artemis comparison)",
        "Tang et al. 2019, arXiv 1905.05957",
        ("double-squeeze", "artemis"),
        {"uplink": QUANTIZED | STEP_FEEDBACK, "downlink": QUANTIZED | STEP_FEEDBACK},
    ),
    "fedsgd": Recipe(
        "one full local gradient, no compression",
        "McMahan et al., AISTATS 2017",
        ("fedavg",),
        {"uplink": PLAIN, "downlink": PLAIN, "local": {"steps": 1, "batch": 0}, "server": {"normalise": "present"}},
    ),
    "fedavg": Recipe(
        "ten local steps, model differences, no compression",
        "McMahan et al., AISTATS 2017",
        ("fedavg",),
        {"uplink": PLAIN, "downlink": PLAIN, **LOCAL_AVERAGING},
    ),
    "fedpaq": Recipe(
        "ten local steps, quantized model differences",
        "Reisizadeh et al., AISTATS 2020",
        ("fedpaq",),
        {"uplink": QUANTIZED, "downlink": PLAIN, **LOCAL_AVERAGING},
    ),
    "fed-rr": Recipe(
        "an epoch of random reshuffling, mean of the models, no compression",
        "Mishchenko, Khaled & Richtárik, ICML 2022, arXiv 2102.06704, Algorithm 3",
        ("fed-rr",),
        {
            "uplink": PLAIN,
            "downlink": PLAIN,
            "local": RESHUFFLED_EPOCH | {"send": "difference"},
            "server": MODELS_MEAN,
        },
    ),
    "q-nastya": Recipe(
        "an epoch of random reshuffling, quantized mean direction",
        "Sadiev et al., NeurIPS 2024, arXiv 2206.07021, Algorithm 3",
        ("nastya",),
        {"uplink": QUANTIZED, "downlink": PLAIN, "local": RESHUFFLED_EPOCH},
    ),
    "diana-nastya": Recipe(
        "q-nastya with memories",
        "Sadiev et al., NeurIPS 2024, arXiv 2206.07021, Algorithm 4",
        ("nastya",),
        {"uplink": QUANTIZED | MEMORY, "downlink": PLAIN, "local": RESHUFFLED_EPOCH},
    ),
    "artemis-rr": Recipe(
        "artemis with an epoch of random reshuffling: diana-nastya with a quantized downlink",
        "Artemis and DIANA-NASTYA; the step rule is derived (`fedsim theory`)",
        ("artemis", "nastya"),
        {"uplink": QUANTIZED | MEMORY, "downlink": QUANTIZED, "local": RESHUFFLED_EPOCH},
    ),
    "artemis-salr": Recipe(
        "artemis with local steps whose length follows the sharpness that each client meets",
        "Yue, Nouiehed & Al Kontar (SALR), Algorithm 2, in Artemis",
        ("artemis", "salr"),
        {
            "uplink": QUANTIZED | MEMORY,
            "downlink": QUANTIZED,
            "local": RESHUFFLED_EPOCH | {"order": "with-replacement"},
            "rate": SALR,
        },
    ),
    "artemis-whitened": Recipe(
        "artemis in the coordinates in which the pooled features are white",
        "Markovich-Golan, Battash & Bleiweiss, arXiv 2010.01546, in Artemis",
        ("artemis", "whitening"),
        {
            "uplink": QUANTIZED | MEMORY,
            "downlink": QUANTIZED,
            "whitening": WHITENED,
            "server": WHITENED_STEP,
        },
    ),
    "artemis-rr-salr-whitened": Recipe(
        "all three local solvers together in artemis",
        "artemis-rr, artemis-salr and artemis-whitened",
        ("artemis", "nastya", "salr", "whitening"),
        {
            "uplink": QUANTIZED | MEMORY,
            "downlink": QUANTIZED,
            "local": RESHUFFLED_EPOCH | {"step": 0.1},
            "rate": SALR,
            "whitening": WHITENED,
            "server": WHITENED_STEP,
        },
    ),
}
