"""`omnikit data sample`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from omnikit.cli.options import JsonOption
from omnikit.cli.watching import counted

data = typer.Typer(help="Make data to train on, and look at it.", no_args_is_help=True)


@data.command()
def sample(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where to put it; made if it is not there.", show_default=False)
    ],
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed gives other data.")] = 0,
    size: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many training pictures; all else scales with it.")
    ] = 3000,
    as_json: JsonOption = False,
) -> None:
    """Make sample data: pictures, clips and speech.

    PNG, FLAC and MP4 files of coloured shapes, motion and spoken words, with JSONL beside them.
    Training and held-out data differ in voices, wording and combinations of attributes. Needs the extra
    omnikit[speech], which is espeak-ng (GPL-3.0-or-later). A folder that already holds this data is left alone.
    """
    from omnikit.sampledata import make_sample_data

    with counted() as progress:
        counts = make_sample_data(folder, seed=seed, size=size, progress=progress)
    if as_json:
        print(json.dumps({"folder": str(folder), "records": counts}, indent=1))
        return
    for name, number in counts.items():
        print(f"{folder / name}: {number} records")
