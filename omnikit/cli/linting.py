"""`omnikit data lint`."""

import json
import sys
from collections import Counter
from typing import Annotated, Any

import typer

from omnikit.cli.options import JsonOption, RecipeArgument, SetOption, load
from omnikit.cli.watching import counted

SHOWN = 10
"""Findings of a kind that are printed."""
BLOCKS = "▁▂▃▄▅▆▇█"


def lint(
    recipe: RecipeArgument,
    sets: SetOption = [],  # noqa: B006  (typer wants the literal)
    sources: Annotated[
        list[str],
        typer.Option(
            "--source",
            metavar="NAME",
            help="Look at this source alone, e.g. --source speech, data.speech or heldout. Repeatable.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Look at N records of each source, evenly spaced.  [default: all]",
            show_default=False,
        ),
    ] = None,
    media: Annotated[
        bool, typer.Option("--media", help="Decode every medium as well, instead of reading its header.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a recipe's data: what is in it, and what is wrong.

    Of every source that a stage or a held-out table uses: records, turns, media, tokens; what does not parse, broken
    media, duplicates, held-out samples that are trained on, empty answers, roles out of order. Of every stage: how full
    its packs are, and its sources' shares. Exit code 2 when some records or media cannot be used.
    """
    resolved = load(recipe, sets)

    from omnikit.linting import lint as lint_recipe

    try:
        with counted() as progress:
            result = lint_recipe(resolved, sources, limit, media, progress)
    except KeyboardInterrupt:
        print("stopped; nothing is changed by looking", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print_report(str(recipe), result)
    if result["errors"]:
        raise typer.Exit(2)


def _print_report(name: str, result: dict[str, Any]) -> None:
    limit = "" if result["limit"] is None else f", at most {result['limit']:,} records of each, evenly spaced"
    how = "decoded" if result["media"] == "decoded" else "by their headers alone; --media decodes them"
    many = "source" if len(result["sources"]) == 1 else "sources"
    print(f"{name}: {len(result['sources'])} {many}{limit}; media {how}")
    for path, row in result["sources"].items():
        if row["described"]:
            print(f"  {path}: {row['described']}")
    _print_sources(result["sources"])
    if result["stages"]:
        print("What each stage sees in its first samples")
        _print_stages(result["stages"])
    for stage, reason in result["stages_left_out"].items():
        print(f"stage {stage}: not simulated: {reason}")
    _print_findings(result)


def _table(*columns: str, left: tuple[str, ...]) -> Any:  # noqa: ANN401
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def _print_table(table: Any) -> None:  # noqa: ANN401
    from rich.console import Console

    # Names and numbers are never cut: a narrow terminal wraps lines instead. And names are no markup.
    Console(width=160, soft_wrap=True, highlight=False, markup=False).print(table)


def _print_sources(sources: dict[str, Any]) -> None:
    table = _table(
        *(
            "source",
            "records",
            "usable",
            "turns",
            "media",
            "tokens: least",
            "median",
            "p95",
            "most",
            "spread",
            "too long",
        ),
        left=("source", "media", "spread"),
    )
    for path, row in sources.items():
        partly = "" if row["looked_at"] == row["records"] else f" of {row['records']:,}"
        media = ", ".join(f"{name} {_media(entry)}" for name, entry in row["media"].items())
        first = (f"{row['looked_at']:,}{partly}", f"{row['usable']:,}", f"{sum(row['turns'].values()):,}", media)
        for number, use in enumerate(row["tokens"]):
            renamed = ", ".join(f"{old} as {new}" for old, new in use["as"].items())
            label = f"{path}{f' ({renamed})' if renamed else ''}" if not number else f"  {renamed}"
            over = max((stage["over"] for stage in use["stages"].values()), default=0)
            tokens = (f"{use[key]:,}" for key in ("min", "median", "p95", "max"))
            spread = _bar(use["histogram"]["counts"])
            table.add_row(label, *(first if not number else ("",) * 4), *tokens, spread, f"{over:,}" if over else "")
    _print_table(table)


def _media(entry: dict[str, int]) -> str:
    return f"{entry['count']:,}" + (f" ({entry['broken']:,} broken)" if entry["broken"] else "")


def _bar(counts: list[int]) -> str:
    """A histogram in one line; what occurs at all is seen."""
    most = max(counts)
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * count / most)] if count else " " for count in counts)


def _print_stages(stages: dict[str, Any]) -> None:
    table = _table(
        *("stage", "samples", "length", "packed", "padded by 8"),
        *("source", "share", "of samples", "of tokens", "epochs"),
        left=("stage", "source"),
    )
    for stage_number, (name, stage) in enumerate(stages.items()):
        if stage_number:
            table.add_row()
        first = (
            name,
            f"{stage['samples']:,}",
            f"{stage['length']:,}",
            f"{stage['packed']:.1%}",
            f"{stage['padded']:.1%}",
        )
        for number, (source, row) in enumerate(stage["mixture"].items()):
            shares = (f"{row[key]:.1%}" for key in ("samples", "tokens"))
            target = f"{row['target']:.1%}" + (" of tokens" if stage["mix"] == "tokens" else "")
            table.add_row(*(first if not number else ("",) * 5), source, target, *shares, f"{row['epochs']:.2f}")
    _print_table(table)
    _print_idle(stages)


def _print_idle(stages: dict[str, Any]) -> None:
    known = {name: idle for name, stage in stages.items() if any((idle := stage["idle"]).values())}
    if not known:
        return
    print("How long ranks would wait for the slowest: in the plan's order, and with packs dealt by cost")
    numbers = list(next(iter(known.values())))
    table = _table("stage", *(f"{number} ranks" for number in numbers), left=("stage",))
    for name, idle in known.items():
        shares = (f"{found['plan']:.1%}, {found['dealt']:.1%}" if found else "" for found in idle.values())
        table.add_row(name, *shares)
    _print_table(table)


def _print_findings(result: dict[str, Any]) -> None:
    from omnikit.linting import KINDS

    numbers = Counter(finding["kind"] for finding in result["findings"])
    for kind, number in numbers.items():
        severity, title = KINDS[kind]
        print(f"{severity}: {title}: {number:,}")
        messages = [finding["message"] for finding in result["findings"] if finding["kind"] == kind]
        for message in messages[:SHOWN]:
            print(f"  {message}")
        if number > SHOWN:
            print(f"  and {number - SHOWN:,} more (--json lists all)")
    told = (f"{result[key]:,} {key if result[key] != 1 else key[:-1]}" for key in ("errors", "warnings"))
    print(", ".join(told) if numbers else "nothing is wrong")
