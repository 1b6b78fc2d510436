"""``fedsim certs``: keys and certificates for Flower's TLS and node authentication, and the nodes' registration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def certs(
    folder: Annotated[Path, typer.Option("--folder", help="Where they are, or are to be.")] = Path("identity"),
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="A host name or address of the server; several times. Default: localhost."),
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=0, help="How many nodes to make keys for.")] = 1,
    register: Annotated[
        str,
        typer.Option(
            "--register",
            metavar="SUPERLINK",
            help="Make nothing: tell this SuperLink, by its name in Flower's config.toml, to admit the nodes.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Make a certificate authority, the server's certificate and the nodes' keys, or register the nodes."""
    from fedsim.cli.flower import Flower, check, environment

    check()
    from fedsim.cli import identity

    if register:
        flower = Flower(register, environment())
        for key in identity.public_keys(folder):
            new = flower.register(key, key.stem)
            print(f"{key.stem}: {'admitted' if new else 'known already'}")
        return
    for path in identity.make(folder, names or ["localhost", "127.0.0.1"], nodes):
        print(f"made {path}")
