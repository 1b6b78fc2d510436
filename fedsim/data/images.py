"""A folder of images: a folder for each class, images of one size in it, as ``cat/1.png``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.data.files import refuse_endless
from fedsim.data.svmlight import MAX_DENSE
from fedsim.errors import ConfigError, DataError

FORMATS = ("PNG", "JPEG", "BMP", "PPM")
MODES = {1: "L", 3: "RGB"}
"""Channels -> Pillow's name."""
EIGHT_BITS = {"1", "L", "P", "RGB"}


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """pixels: float32[n, channels, height, width] in [0, 1]; labels: the folder of each; files: of each."""

    pixels: NDArray[np.float32]
    labels: Sequence[str]
    files: Sequence[Path]


def read_images(folder: Path, shape: tuple[int, ...]) -> Images:
    """The images of a folder in the order of their classes' and their own names. shape: channels, height, width.

    What Pillow decodes is made grey or coloured as ``shape`` says, and never resized. Hidden files are passed over.
    Raises ConfigError for a shape that no image has, DataError naming the file that is not an image of this size.
    """
    if len(shape) != 3 or shape[0] not in MODES:
        raise ConfigError(
            f"{folder} is a folder of images, but data.shape = {list(shape)}; expected channels (1 or 3), height, width"
        )
    files = [file for kind in _inside(folder) for file in _inside(kind)]
    if not files:
        raise DataError(f"{folder}: no images, expected a folder for each class with images in it; give another folder")
    if (size := len(files) * math.prod(shape) * 4) > MAX_DENSE:
        raise DataError(f"{folder}: {len(files)} images take {size / 1e9:.1f} GB in memory; use fewer, or smaller ones")
    pixels = np.empty((len(files), *shape), dtype=np.float32)
    for number, file in enumerate(files):
        pixels[number] = _decoded(file, shape)
    return Images(pixels / np.float32(255), [file.parent.name for file in files], files)


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder, expected a folder for each class with images in it; move it")
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); give a readable folder") from None


def _decoded(file: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """uint8[channels, height, width]."""
    try:
        from PIL import Image  # here, because only those who have images need it
    except ModuleNotFoundError:
        raise DataError(f"{file}: to read images takes Pillow; pip install 'fedsim[images]'") from None
    channels, height, width = shape
    refuse_endless(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if image.size != (width, height):
                    found = f"{image.size[1]} x {image.size[0]}"
                    raise DataError(f"{file}: {found} pixels, expected {height} x {width} (data.shape); resize it")
                if image.mode not in EIGHT_BITS:
                    raise DataError(f"{file}: mode {image.mode}, expected 8 bits, grey or RGB; convert it")
                pixels = np.asarray(image.convert(MODES[channels]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"{file}: no readable image ({said}); expected {', '.join(FORMATS)}") from None
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)
