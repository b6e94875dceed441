"""`omnikit chat`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from omnikit.cli.options import JsonOption


def chat(
    run: Annotated[Path, typer.Argument(help="The folder of a trained run, such as runs/tiny_omni.", show_default=False)],
    message: Annotated[str, typer.Option("--message", "-m", help="The question in words; media come before it.")] = "",
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
    """Ask a trained run. Without a message or medium it asks for one line after another, until an empty one."""
    from omnikit.component import Medium, Sample, Turn
    from omnikit.generate import Run
    from omnikit.registry import Registry

    parts: list[tuple[str, str | Medium]] = []
    for entry in media:
        modality, equals, path = entry.partition("=")
        if not equals or not modality or not path:
            raise ValueError(f"--medium {entry}: is not MODALITY=FILE; write, say, image=picture.png")
        parts.append((modality, Medium(str(Path(path).absolute()))))
    loaded = Run.load(run, Registry.load())

    def ask(content: list[tuple[str, str | Medium]]) -> str:
        sample = Sample("question", (Turn("user", tuple(content)), Turn("assistant", ())))
        return loaded.answer([sample])[0]

    if message or parts:
        answer = ask([*parts, ("text", message)] if message else parts)
        print(json.dumps({"answer": answer}) if as_json else answer)
        return
    while question := typer.prompt("you", default="", show_default=False):
        answer = ask([("text", question)])
        print(json.dumps({"answer": answer}) if as_json else answer)
