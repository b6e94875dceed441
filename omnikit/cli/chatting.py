"""`omnikit chat`."""

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote

import typer

from omnikit.cli.options import JsonOption

if TYPE_CHECKING:
    from omnikit.component import Medium
    from omnikit.conversation import Conversation

    Content = list[tuple[str, "str | Medium"]]

# What is not an option is `--MODALITY FILE`: which modalities there are, the run says.
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def chat(
    context: typer.Context,
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a trained run, such as runs/tiny_omni.", show_default=False),
    ],
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="One question; it follows the media.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of an answer, at most.")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T", help="Draw tokens at this temperature.  [default: the likeliest]", show_default=False
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(metavar="K", help="Draw from the K likeliest tokens; 0: from all.")] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Draw from the fewest tokens whose probabilities sum to P.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="What is drawn follows from it.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Talk with a trained run.

    One question: -m TEXT, and media before it as --image FILE, --video FILE, --audio FILE or whatever modalities the
    run has, in any number and order. Without any it is a conversation, line by line: /image FILE (or a file dropped
    into the terminal) goes with the next message, /reset forgets, /exit or Ctrl-D leaves, Ctrl-C ends an answer; while
    media are read it takes the message back.
    """
    media = _options(context.args)
    from omnikit.conversation import Conversation
    from omnikit.generate import Run
    from omnikit.sampling import Sampling

    if temperature is None and (top_k or top_p != 1.0):
        raise ValueError("--top-k and --top-p say what is drawn from; give --temperature too")
    sampling = None if temperature is None else Sampling(temperature, top_k, top_p, seed)
    loaded = Run.load(run)
    with_media = [_medium(f"--{name} {file}", name, file, loaded.recipe.modalities) for name, file in media]
    talk = Conversation(loaded, max_tokens, sampling)
    if with_media or message is not None:
        _say(talk, [*with_media, *([("text", message)] if message else [])], as_json)
    else:
        _converse(talk, loaded.recipe.modalities, as_json)


def _options(args: Sequence[str]) -> list[tuple[str, str]]:
    """`--image a.png` and `--image=a.png`, in order."""
    found, rest = [], list(args)
    while rest:
        option, is_whole, file = rest.pop(0).partition("=")
        if not option.startswith("--") or len(option) == 2:
            raise ValueError(f"{option}: is no option; write media as, say, --image picture.png")
        if not is_whole:
            if not rest:
                raise ValueError(f"{option}: is no option; of a modality, name a file after it: {option} FILE")
            file = rest.pop(0)
        found.append((option[2:], file))
    return found


def _medium(where: str, name: str, file: str, modalities: Collection[str]) -> "tuple[str, Medium]":
    from omnikit.component import Medium
    from omnikit.registry import did_you_mean

    if name not in modalities:
        raise ValueError(f"{where}: the run has no modality {name!r}{did_you_mean(name, modalities, 'modalities')}")
    path = _path(file)
    if not os.path.isfile(path):
        raise ValueError(f"{where}: there is no file {path}")
    return name, Medium(os.path.abspath(path))


def _path(file: str) -> str:
    """The path that a name of a file means, which may be a file:// URL or begin with ~."""
    if file.startswith("file://"):
        return "/" + unquote(file.removeprefix("file://").partition("/")[2])
    return os.path.expanduser(file)


def _say(talk: "Conversation", content: "Content", as_json: bool) -> None:
    """Say it, and print the answer as it is written."""
    with _interruptible(talk) as is_enough:
        pieces = []
        for piece in talk.say(content):
            pieces.append(piece)
            if not as_json:
                print(piece, end="", flush=True)
            if is_enough():
                break
    print(json.dumps({"answer": "".join(pieces)}) if as_json else "", flush=True)


@contextmanager
def _interruptible(talk: "Conversation") -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the answer after the token that is being written, so that what was said stays whole; before the first
    one, while media are read, it is a KeyboardInterrupt.
    """
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        if talk.is_reading:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def _converse(talk: "Conversation", modalities: Collection[str], as_json: bool) -> None:
    """Lines of standard input to the end. On a terminal they are asked for, and what is wrong with one is said."""
    is_terminal = sys.stdin.isatty()
    asking = "you: " if is_terminal else ""
    with suppress(ImportError):
        import readline  # noqa: F401  (a line can be edited, and be longer than 4,095 bytes)
    waiting: Content = []
    while True:
        try:
            if as_json:  # of which the prompt is no part
                print(asking, end="", file=sys.stderr, flush=True)
            line = input("" if as_json else asking).strip()
        except EOFError:
            return
        if line == "/exit":
            return
        try:
            if line == "/reset":
                talk.reset()
                waiting = []
            elif media := _dropped(line, modalities):
                waiting += media
            elif line.startswith("/"):
                waiting.append(_command(line, modalities))
            elif line:
                content, waiting = [*waiting, ("text", line)], []  # a file that is broken spoils one message
                _say(talk, content, as_json)
        except ValueError as error:
            if not is_terminal:
                raise
            print(error, file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\nthe message was broken off before its answer, and is as if unsaid", file=sys.stderr, flush=True)


def _command(line: str, modalities: Collection[str]) -> "tuple[str, Medium]":
    """`/image picture.png`."""
    name, _, rest = line[1:].partition(" ")
    if name not in modalities:
        known = ", ".join([*(f"/{modality} FILE" for modality in modalities), "/reset", "/exit"])
        raise ValueError(f"/{name[:60]}: is no command; there are {known}")
    several = [files for files in _files(rest.strip()) if len(files) == 1]
    [file] = next((files for files in several if os.path.isfile(_path(files[0]))), several[-1])
    return _medium(line[:200], name, file, modalities)


def _dropped(line: str, modalities: Collection[str]) -> "Content":
    """The media of a line that is nothing but paths of files, as terminals write those that are dropped on them."""
    from omnikit.media.kinds import kind_of

    for files in _files(line):
        paths = [_path(file) for file in files]
        kinds = [kind_of(path) for path in paths]
        if all(kind in modalities and os.path.isfile(path) for kind, path in zip(kinds, paths, strict=True)):
            return [_medium(file, str(kind), file, modalities) for kind, file in zip(kinds, files, strict=True)]
    return []


def _files(text: str) -> Iterator[list[str]]:
    """What a text may name: one file, as it stands, or those that a shell would read out of it."""
    yield [text]
    with suppress(ValueError):  # a quotation mark without its other one
        yield shlex.split(text)
