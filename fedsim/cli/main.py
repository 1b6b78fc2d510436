"""The command line. One file a command; torch is imported by the command that needs it."""

from __future__ import annotations

import sys

import typer

from fedsim.cli import cost, data, doctor, recipes, resume, run
from fedsim.errors import FedsimError, StoppedError

app = typer.Typer(
    name="fedsim",
    help="Federated learning with bidirectional compression, where every byte is counted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (run.run, resume.resume, cost.cost, recipes.recipes, data.data, doctor.doctor):
    app.command()(command)


def main() -> None:
    """Entry point: a mistake of the user is one line on standard error and exit status 2, never a traceback."""
    try:
        app()
    except StoppedError as error:
        print(f"stopped: {error}", file=sys.stderr)
        sys.exit(130)
    except FedsimError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(0)
