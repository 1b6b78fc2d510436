"""``fedsim watch``: the report's page while a run goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders with runs below them.")],
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="On 127.0.0.1; 0: a free one.", show_default=False)
    ] = 0,
) -> None:
    """Show runs while they go, in a page that only this machine can reach; ends when they have ended, or on Ctrl-C.

    The runs do not notice: their folders are only read.
    """
    import shlex
    import webbrowser

    from fedsim.reporting.live import Watched, serving, wait

    watched = Watched(runs, title=", ".join(path.resolve().name for path in runs))
    watched.report()
    try:
        with serving(watched, port) as address:
            print(f"{address}  (Ctrl-C ends the page, not the run)", flush=True)
            if open_page:
                webbrowser.open(address)
            wait(watched, linger=60.0)
        print(f"ended; `fedsim report {shlex.join(map(str, runs))}` writes a page to keep")
    except KeyboardInterrupt:
        print("no longer watched; the run goes on")
