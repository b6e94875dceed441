"""`omnikit export`."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from omnikit.cli.options import JsonOption


def export(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a trained run, such as runs/tiny_omni.", show_default=False),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model as this stage has left it so far.", show_default="the last, ended"
        ),
    ] = None,
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="What the weights are written as.")] = "fp32",
    as_json: JsonOption = False,
) -> None:
    """Write a run as a Hugging Face folder.

    transformers loads it where omnikit is not installed: all the code that the model needs is in it.
    """
    from omnikit.export.folder import export as write
    from omnikit.registry import Registry

    made = write(run, folder, Registry.load(), stage, dtype)
    if as_json:
        print(json.dumps(made))
        return
    for name in made["unreached"]:
        print(f"modalities.{name}: no stage has trained it; it is as it was begun with")
    size = sum(made["files"].values())
    print(f"{made['folder']}: {made['parameters']:,} parameters in {made['dtype']}, {size:,} bytes")
    print(
        f"as {made['stage']} left it at step {made['step']}; to load it: pip install {' '.join(made['requirements'])}"
    )
