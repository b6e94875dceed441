"""`omnikit data preview`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from omnikit.cli.options import JsonOption, RecipeArgument, SetOption, load
from omnikit.cli.training import missing
from omnikit.cli.watching import Bars, Lines


def preview(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Option(metavar="NAME", help="The stage whose packs are shown.", show_default=False)],
    packs: Annotated[int, typer.Option("-n", metavar="N", help="How many packs.")] = 8,
    step: Annotated[int, typer.Option(metavar="K", help="The step from which on they are taken.")] = 1,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("preview.html"),
    sets: SetOption = [],  # noqa: B006  (typer wants the literal)
    as_json: JsonOption = False,
) -> None:
    """Show what the model gets, as one HTML page.

    Real packs of a stage: their samples and padding, every token coloured by what is learned, and pictures, frames
    and sounds as the encoders get them. Builds no model and needs no weights but the tokenizer. The page holds all
    that it shows and loads nothing.
    """
    resolved = load(recipe, sets)
    _writable(out)
    used = resolved.stages[stage].data if stage in resolved.stages else {}
    data = {name: source for name, source in resolved.data.items() if name in used}
    if gone := list(missing(resolved.model_copy(update={"data": data, "heldout": {}}))):
        raise ValueError("\n".join(gone))

    from omnikit.checkpoint import write_atomically
    from omnikit.preview import page_of, summary
    from omnikit.preview import preview as gather

    kind = Bars if sys.stderr.isatty() else Lines
    with kind([stage], 1) as display:
        shown = gather(resolved, stage, packs, step, display.indexing)
    name = (recipe.resolve() if recipe.is_dir() else recipe).stem
    write_atomically(out, page_of(name, shown))
    numbers = summary(shown)
    if as_json:
        print(json.dumps({"page": str(out), "recipe": name, **numbers}, indent=1))
        return
    told = [f"{out}: {_number(len(shown.rows), 'pack', 'packs')}", _number(numbers["samples"], "sample", "samples")]
    told.append(f"{numbers['padding']:.1%} padding")
    if numbers["bad"]:
        told.append(f"{_number(len(numbers['bad']), 'sample', 'samples')} cannot be used")
    if numbers["unread"]:
        told.append(f"{_number(len(numbers['unread']), 'medium', 'media')} cannot be read")
    print(", ".join(told))


def _number(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _writable(out: Path) -> None:
    """Refuse a place where no page can be written, before anything is read."""
    if out.is_dir():
        raise ValueError(f"--out {out}: is a folder; name a file in it, such as {out / 'preview.html'}")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it, or name another place")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out {out}: {out.parent} cannot be written to; name another place")
