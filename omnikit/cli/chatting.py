"""`omnikit chat`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omnikit.cli.options import JsonOption

if TYPE_CHECKING:
    from omnikit.component import Medium

Content = list[tuple[str, "str | Medium"]]


def chat(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a trained run, such as runs/tiny_omni.", show_default=False),
    ],
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="The question; it follows the media.")
    ] = "",
    media: Annotated[
        list[str],
        typer.Option(
            "--medium",
            metavar="MODALITY=FILE",
            help="A medium of the question, e.g. --medium image=a.png --medium audio=b.flac. Repeatable, in order.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  (typer wants the literal)
    as_json: JsonOption = False,
) -> None:
    """Ask a trained run questions.

    One question is --message, --medium, or both. Without either it answers the lines of standard input one by one,
    each for itself, until an empty line or the end.
    """
    asked = _media(media)
    if message:
        asked.append(("text", message))

    from omnikit.component import Sample, Turn
    from omnikit.generate import Run
    from omnikit.registry import Registry, did_you_mean

    loaded = Run.load(run, Registry.load())
    for name, _ in asked:
        if name != "text" and name not in loaded.recipe.modalities:
            known = did_you_mean(name, loaded.recipe.modalities, "modalities")
            raise ValueError(f"--medium {name}=...: the run has no modality {name!r}{known}")
    for content in [asked] if asked else _lines():
        sample = Sample("the question", (Turn("user", tuple(content)), Turn("assistant", ())))
        answer = loaded.answer([sample])[0]
        print(json.dumps({"answer": answer}) if as_json else answer, flush=True)


def _media(entries: list[str]) -> Content:
    from omnikit.component import Medium

    found: Content = []
    for entry in entries:
        modality, _, file = entry.partition("=")
        if not modality or not file:
            raise ValueError(f"--medium {entry}: is not MODALITY=FILE; write, say, image=picture.png")
        if not Path(file).is_file():
            raise ValueError(f"--medium {entry}: there is no file {file}")
        found.append((modality, Medium(str(Path(file).absolute()))))
    return found


def _lines() -> Iterator[Content]:
    """The questions of standard input, until an empty one or its end. On a terminal they are asked for."""
    while True:
        try:
            question = input("you: " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not question:
            return
        yield [("text", question)]
