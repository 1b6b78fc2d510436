"""Three clients' own data, a part of scikit-learn's digits each: a CSV, a LibSVM file and a folder of images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES = [40, 50, 30]
OWN: dict[str, Any] = {
    "seed": 1,
    "rounds": 6,
    "data": {"source": "own", "shape": [1, 8, 8], "classes": 10, "samples": SIZES, "scale": [0.2]},
    "server": {"step": 0.02},
    "run": {"executor": "sequential", "evaluate_every": 2},
}


def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Grey levels 0 .. 240 as bytes, uint8[1797, 64], and classes."""
    from sklearn.datasets import load_digits

    features, targets = load_digits(return_X_y=True)
    return (features * 15).astype(np.uint8), targets


def write_csv(path: Path, pixels: NDArray[np.uint8], targets: NDArray[np.int64]) -> Path:
    """With a header; in [0, 1] as images are."""
    lines = [",".join([*(f"p{j}" for j in range(pixels.shape[1])), "digit"])]
    lines += [",".join([*(repr(float(v) / 255) for v in row), str(t)]) for row, t in zip(pixels, targets, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_svm(path: Path, pixels: NDArray[np.uint8], targets: NDArray[np.int64]) -> Path:
    """Without zeros."""
    lines = [
        " ".join([str(t), *(f"{j + 1}:{float(v) / 255!r}" for j, v in enumerate(row) if v)])
        for row, t in zip(pixels, targets, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_images(path: Path, pixels: NDArray[np.uint8], targets: NDArray[np.int64]) -> Path:
    """PNG, 8 x 8, grey."""
    from PIL import Image

    for number, (row, target) in enumerate(zip(pixels, targets, strict=True)):
        (path / str(target)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(row.reshape(8, 8)).save(path / str(target) / f"{number:04}.png")
    return path


def write_three(folder: Path) -> list[str]:
    """``SIZES`` samples in a.csv, b.svm and images; their paths."""
    pixels, targets = digits()
    ends = np.cumsum([0, *SIZES])
    parts = [(pixels[a:b], targets[a:b]) for a, b in pairwise(ends)]
    made = (
        write_csv(folder / "a.csv", *parts[0]),
        write_svm(folder / "b.svm", *parts[1]),
        write_images(folder / "images", *parts[2]),
    )
    return [str(path) for path in made]
