"""``fedsim resume``: continue a run that was stopped or killed."""

from __future__ import annotations

from fedsim.cli.options import RunFolderPath


def resume(folder: RunFolderPath) -> None:
    """Continue a run from its last checkpoint; the result is that of the uninterrupted run, bit for bit."""
    from fedsim.cli import engines, play
    from fedsim.simulation.folder import RunFolder

    if (given := engines.submission_of(folder)) is not None:
        engines.resume(folder, given)
    else:
        play.play(RunFolder(folder).experiment(), folder, fresh=False)
