"""One engine for all tests of one session, as its images take minutes to build."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.docker.engine import Engine, engine, wheels
from tests.docker.federation import TAG


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has both images."""
    with engine(tmp_path_factory.mktemp("engine")) as here, wheels() as address:
        for part in ("server", "client"):
            if "FEDSIM_IMAGES" not in os.environ:
                print(f"{part}: built in {here.build(part, f'fedsim-{part}:{TAG}', address):.0f} s")
            size = int(here.docker("image", "inspect", "-f", "{{.Size}}", f"fedsim-{part}:{TAG}"))
            print(f"{part}: {size / 1e6:.0f} MB")
        yield here
