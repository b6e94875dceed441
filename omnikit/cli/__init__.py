"""The command line. Commands import late: help and whatever needs no torch answers at once."""

import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from io import TextIOWrapper

import typer
from typer.exceptions import TyperException

from omnikit.cli.chatting import SETTINGS, chat
from omnikit.cli.evaluating import evaluate
from omnikit.cli.exporting import export
from omnikit.cli.linting import lint
from omnikit.cli.plugins import plugins
from omnikit.cli.preview import preview
from omnikit.cli.recipes import check, show
from omnikit.cli.sampledata import data
from omnikit.cli.surroundings import env
from omnikit.cli.training import train
from omnikit.cli.verifying import verify

app = typer.Typer(
    help="Train omni-modal language models (image, video, audio and text in, text out) from one YAML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (train, check, show, verify, export, env):
    app.command()(command)
app.command(context_settings=SETTINGS)(chat)
app.command("eval")(evaluate)
data.command()(preview)
app.add_typer(plugins, name="plugins")
data.command()(lint)
app.add_typer(data, name="data")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line (`args` instead of sys.argv) and leave with its exit code.

    0: done. 1: a run stopped itself. 2: something a person can mend, one line on stderr for each fault, never a
    traceback. 75: a run was asked to stop, and has saved. 130: interrupted.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot write a character ends no answer, no table
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        try:
            code = app(args, prog_name="omnikit", standalone_mode=False)
        except TyperException as error:
            _tell(_usage(error))
            code = 2
        except (ValueError, OSError, ExceptionGroup) as error:
            _tell(_lines(error))
            code = 2
    if code and any(int(os.environ.get(name, "1")) > 1 for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")):
        # To leave in good order would wait for the other processes, which may wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _usage(error: TyperException) -> Iterator[str]:
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "omnikit"
    message = error.format_message()
    if message == (context.get_help() if context else ""):  # `omnikit` alone: the help is the answer
        yield message
    else:
        yield f"{where}: {' '.join(message.split()).rstrip('.')}; see {where} --help"


def _lines(error: BaseException) -> Iterator[str]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _lines(inner)
    elif isinstance(error, OSError) and error.filename is not None:
        yield f"{error.filename}: {error.strerror}"
    else:
        yield from str(error).splitlines() or [type(error).__name__]


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    _tell([f"warning: {' '.join(str(message).split())}"])


def _tell(lines: Iterable[str]) -> None:
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    if rank:
        time.sleep(1)  # the first one says the same, and ends the others: only what it does not say is heard
    for line in lines:
        print(f"rank {rank}: {line}" if rank else line, file=sys.stderr)
