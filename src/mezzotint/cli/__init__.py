"""The command line: arguments in, lines out, and nothing else.

Every failure that a user can cause is one line on stderr and an exit status: 2 for a wrong request, 130 for an
interruption, 1 for the rest; `--debug` adds the traceback. Torch is imported by the commands that compute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..errors import MezzotintError
from ..tasks import TASKS
from .attention import attention
from .bulk import generate
from .convert import convert
from .customise import customise
from .data import data
from .draw import command
from .evaluate import evaluate
from .film import film
from .info import info
from .interpolate import interpolate
from .replay import replay
from .runs import training
from .serve import keys, serve
from .verify import verify

INTERRUPTED = 130  # 128 + SIGINT, as shells count

app = typer.Typer(
    help="Draw pictures from words, train models that do, and look at how they do it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate())
for task in TASKS.values():
    if task.name not in ("text2img", "interpolate"):
        app.command(task.name)(command(task))
app.command("interpolate")(interpolate)
app.command()(replay)
app.command()(film)
app.command()(attention)
app.command()(info)
app.command()(convert)
app.command()(serve)
app.command()(verify)
app.add_typer(keys, name="keys")
app.add_typer(training, name="train")
app.command()(customise)
app.command()(evaluate)
app.add_typer(data, name="data")


def _version(asked: bool) -> None:
    if asked:
        print(f"mezzotint {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_version),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where a failure came from; may stand anywhere.")
    ] = False,
) -> None:
    """What every command has; `run` deals with `--debug`."""


def main() -> None:
    """The program `mezzotint`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit status."""
    ours, rest = _split(arguments)
    debug = "--debug" in ours
    try:
        words = [*(one for one in ours if one != "--debug"), *rest]
        status = int(app(words, standalone_mode=False) or 0)
        if status == INTERRUPTED:  # typer turns Ctrl-C into a status
            raise KeyboardInterrupt
        return status
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError):  # whoever read our lines has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        status, line = _told(error)
        print(f"mezzotint: {line}", file=sys.stderr)
        return status


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before `--`, and the rest: words that are no options."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    return list(arguments[:end]), list(arguments[end:])


def _told(error: BaseException) -> tuple[int, str]:
    """The exit status and the one line for what went wrong."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, "interrupted; nothing half-written was left"
    if isinstance(error, MezzotintError):
        return error.exit_status, str(error)
    if isinstance(error, typer.TyperException):
        return error.exit_code, " ".join(error.format_message().split())
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return 1, "there is not enough memory for this; ask for a smaller --size or draw fewer --together"
    name = type(error).__name__
    return (
        1,
        f"a mistake of ours: {name}: {' '.join(str(error).split())}; run again with --debug and report it",
    )
