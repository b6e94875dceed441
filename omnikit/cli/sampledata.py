"""`omnikit data sample`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(help="Make data. (`sample`: a small world of pictures, clips and speech to learn from.)", no_args_is_help=True)


@data.callback()
def _group() -> None:
    pass


@data.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Where to put it; made if it is not there.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Another seed gives other data.")] = 0,
    size: Annotated[int, typer.Option(min=1, help="How many training pictures; everything else scales with it.")] = 3000,
) -> None:
    """Make sample data: PNG, FLAC and MP4 files of coloured shapes, motion and speech, with JSONL beside them.

    Training and held-out data differ in voices, wording and combinations of attributes. Needs the extra
    omnikit[speech], which is espeak-ng (GPL-3.0-or-later).
    """
    from omnikit.sampledata import make_sample_data

    def progress(what: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{what}: {done}/{total}\x1b[K", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total:
            print(f"{what}: {total}", file=sys.stderr)

    counts = make_sample_data(folder, seed=seed, size=size, progress=progress)
    for name, number in counts.items():
        print(f"{folder / name}: {number} records")
