"""``fedsim worker``: the long-lived process that computes for the clients of a node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def worker(
    socket: Annotated[Path, typer.Option("--socket", metavar="PATH", help="Where to listen: a Unix socket.")],
    folder: Annotated[
        Path, typer.Option("--folder", metavar="ROOT", help="Where clients keep what they must still know.")
    ],
    device: Annotated[
        str,
        typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...; default: what the experiment says."),
    ] = "",
    allow_code: Annotated[
        bool,
        typer.Option("--allow-code", help="Call the Python functions that an experiment of the server names."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="Read data below this folder only, whatever an experiment of the server names.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compute for the clients of a Flower node, round after round, until SIGTERM; start it again where it was."""
    import os

    from fedsim.checkpoint import alone
    from fedsim.ends.host import Host
    from fedsim.ends.store import Store
    from fedsim.ends.trust import Trust
    from fedsim.errors import WorkerError
    from fedsim.simulation.setup import device_of
    from fedsim.worker import server

    trust = Trust(allow_code, data)
    os.umask(0o077)  # what clients remember is their owner's alone
    if device:
        device_of(device, "--device")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkerError(f"--folder {folder}: {error.strerror or error}; give a folder that can be written") from None

    def ready() -> None:
        print(f"fedsim worker: process {os.getpid()}, at unix:{socket}, clients in {folder}", flush=True)

    with alone(folder, f"--folder {folder}: another worker keeps its clients there; stop it, or give another folder"):
        server.run(Host(lambda run, client: Store(folder, run, client), device, trust), socket, ready)
