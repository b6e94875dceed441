"""The command line. Commands import late: help and whatever needs no torch answers at once."""

import sys
from collections.abc import Iterator

import typer

from omnikit.cli.chatting import chat
from omnikit.cli.recipes import check, show
from omnikit.cli.sampledata import data
from omnikit.cli.surroundings import env, plugins
from omnikit.cli.training import train

app = typer.Typer(
    help="Train omni-modal language models (image, video, audio and text in, text out) from one YAML recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (train, check, show, chat, plugins, env):
    app.command()(command)
app.add_typer(data, name="data")


def main() -> None:
    """Run the command line. What a person can mend is one line for each fault and exit code 2, never a traceback."""
    try:
        app()
    except (ValueError, OSError, ExceptionGroup) as error:
        for line in _lines(error):
            print(line, file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        # A run that stopped itself, as a loss that is no number; any other RuntimeError is ours and shows its trace.
        if type(error).__name__ != "TrainingStopped":
            raise
        print(error, file=sys.stderr)
        sys.exit(1)


def _lines(error: BaseException) -> Iterator[str]:
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _lines(inner)
    elif isinstance(error, OSError) and error.filename is not None:
        yield f"{error.filename}: {error.strerror}"
    else:
        yield from str(error).splitlines()
