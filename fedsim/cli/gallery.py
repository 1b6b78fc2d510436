"""``fedsim gallery``: the README's pictures, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def gallery(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the pictures and their runs.")],
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Of each run.")] = 400,
) -> None:
    """Play five methods on the same task, four seeds each, and draw the README's pictures; about a minute."""
    from fedsim.reporting.gallery import RUNS, gallery

    for path in gallery(folder, rounds):
        print(path)
    print(f"the runs are in {folder / RUNS}; `fedsim report {folder / RUNS}` shows them")
