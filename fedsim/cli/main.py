"""The command line. One file a command; torch is imported by the command that needs it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import click
import typer

from fedsim.cli import (
    certs,
    cite,
    compare,
    cost,
    data,
    doctor,
    gallery,
    keys,
    messages,
    recipes,
    report,
    resume,
    run,
    sweep,
    theory,
    time,
    watch,
    worker,
)
from fedsim.errors import FedsimError, StoppedError, one_line

app = typer.Typer(name="fedsim", add_completion=False, pretty_exceptions_enable=False)
for command in (
    run.run,
    resume.resume,
    sweep.sweep,
    cost.cost,
    compare.compare,
    report.report,
    watch.watch,
    gallery.gallery,
    recipes.recipes,
    keys.keys,
    cite.cite,
    data.data,
    messages.messages,
    theory.theory,
    time.time,
    doctor.doctor,
    worker.worker,
    certs.certs,
):
    app.command()(command)


@app.callback(invoke_without_command=True)
def fedsim(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Federated learning with bidirectional compression, where every byte is counted."""
    if version:
        from importlib.metadata import version as installed

        print(f"fedsim {installed('fedsim')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point: a mistake of the user is one line on standard error and exit status 2, never a traceback.

    130: stopped by Ctrl-C. 1: the reader of the output has gone, two runs that were compared differ, or a run of a
    sweep diverged or failed. Warnings of libraries are for developers (python -W).
    """
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            # typer makes an exit status of Ctrl-C, click an exception
            status = app(prog_name="fedsim", standalone_mode=False)
            if status == 130:
                raise KeyboardInterrupt
            sys.stdout.flush()
            if status:
                sys.exit(status)
        except StoppedError as error:
            _leave(130, f"stopped: {error}")
        except (KeyboardInterrupt, click.Abort):
            _leave(130, "stopped")
        except FedsimError as error:
            _leave(2, f"error: {error}")
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "fedsim"
            _leave(2, f"error: {error.format_message().rstrip('.')}; see `{command} --help`")
        except BrokenPipeError:
            _leave(1)
        except OSError as error:
            _leave(2, f"error: {error.filename or 'output'}: {error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            _leave(2, "error: not enough memory; lower run.chunk, partition.clients or the size of the model")


def _out_of_memory(error: Exception) -> bool:
    """torch raises a RuntimeError of its own for a GPU, a plain one for the CPU."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "alloc" in str(error)


def _leave(status: int, line: str = "") -> None:
    if line:
        print(one_line(line, longest=4000), file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


if __name__ == "__main__":
    main()
