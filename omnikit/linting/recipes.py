"""What is to be known of a recipe's data: what each source holds, what is wrong with it, what the stages make of it.

Every finding is collected and none ends the lint. Of a sample some fifty bytes stay: two hashes, its index, its tokens
and what they cost.
"""

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from omnikit.component import Records, Sample
from omnikit.data import layouter_of
from omnikit.linting.records import Examiner, Facts, Fit, Remembering
from omnikit.linting.sources import KINDS, Tally, Use
from omnikit.linting.stages import Sizes, evenly, stage_table
from omnikit.recipe import Recipe, within
from omnikit.registry import did_you_mean
from omnikit.sample import Layouter

BINS = 12
CHUNK = 8
"""Samples that a thread is given at a time."""

Progress = Callable[[str, int, int], None]
"""Called with what is looked at (a source's path, "stages"), how much of it is done, and of how much."""


def lint(
    recipe: Recipe,
    only: Sequence[str] = (),
    limit: int | None = None,
    decode: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """What there is to say about the recipe's sources, those in `only` or all, `limit` records of each or all, as data:

    - `limit`: int or null; `media`: "headers" or "decoded"; `errors`, `warnings`: how many findings of each severity
    - `sources`: by path (`data.NAME`, `heldout.NAME`):
        - `records`, `looked_at` (evenly spaced under a limit), `usable` (can be laid out in every use)
        - `described`: the shape of its records in its own words, or null
        - `turns`: by role; `media`: by modality {`count`, `broken`}
        - `tokens`, media at their largest: a list, one entry for each way that stages rename its media: {`as`: {from:
          to}, `stages`: {stage: {`length` of a pack, `over`: how many samples are longer, and of these `shrunk`, `cut`,
          `dropped`}}, `samples`, `min`, `median`, `p95`, `max` (observed lengths), `total`, `histogram`: {`edges`: BINS
          + 1 numbers, `counts`: BINS}}; without a usable sample, all numbers are 0
        - `findings`: how many of each kind that occurs
    - `stages`: by name: `length` of a pack, `steps` (of a stage that is given in epochs, about), and of the first
      `samples` of its mixture: `packed` and `padded`, the shares of positions that hold a token in packs and in padded
      batches of 8; `idle`: by number of ranks ("2", "4", "8"), null where the packs of a step cannot be shared equally
      or there is no whole step, else the share of the ranks' time in which they wait for the slowest of a micro-batch:
      {`plan`: each takes the packs in the plan's order, `dealt`: as they are dealt by cost}; `mix`: "samples" or
      "tokens", what shares are of; `mixture`: by source name {`target`, its share in the recipe; `samples`, `tokens`,
      its shares as seen; `epochs`, how often the whole stage passes over it}
    - `stages_left_out`: {stage: reason}; a stage is told of when all its sources were looked at and have usable samples
    - `findings`: every one, a list of {`kind`, `severity`, `source`, `record`: index or null, `sample`: id or null,
      `message`}, in the order of KINDS

    Duplicates and contamination are told of records that were looked at: equal turns, and media of the same path or
    bytes; decoded media are compared by what they hold. A name in `only` that fits nothing is a ValueError.
    """
    chosen = _uses(recipe, only)
    layouter = layouter_of(recipe)
    branches = {
        name: branch._replace(reading=Remembering.of(branch.reading)) for name, branch in layouter.branches.items()
    }
    layouter = Layouter(layouter.chat, layouter.tokenizer, branches)
    encoders = {name: recipe.encoders[modality.encoder] for name, modality in recipe.modalities.items()}
    tallies = {}
    for path, use in chosen.items():
        examiner = Examiner(layouter, encoders, use.renames, use.fits, use.config.modalities, decode)
        tallies[path] = _tally(path, use, examiner, limit, max(1, recipe.run.workers), progress)
    for tally in tallies.values():
        tally.repeated()
        tally.unused()
        tally.too_long()
    for held in tallies.values():
        for trained in tallies.values():
            if trained.use.stages and not held.use.stages:
                held.contaminated(trained)
    stages, left_out = _stages(recipe, tallies, progress)
    findings = sorted(
        (found for tally in tallies.values() for found in tally.findings), key=lambda found: list(KINDS).index(found[0])
    )
    severities = Counter(KINDS[found.kind][0] for found in findings)
    return {
        "limit": limit,
        "media": "decoded" if decode else "headers",
        "errors": severities["error"],
        "warnings": severities["warning"],
        "sources": {path: _table(tally) for path, tally in tallies.items()},
        "stages": stages,
        "stages_left_out": left_out,
        "findings": [{"kind": found.kind, "severity": KINDS[found.kind][0], **found._asdict()} for found in findings],
    }


def _uses(recipe: Recipe, only: Sequence[str]) -> dict[str, Use]:
    """The sources that a stage or a held-out table uses, by path."""
    uses: dict[str, Use] = {}
    for name, config in recipe.data.items():
        used = {stage: entry for stage, entry in recipe.stages.items() if name in entry.data}
        passes = {stage: tuple(sorted(entry.data[name].as_.items())) for stage, entry in used.items()}
        renames = sorted(set(passes.values()))  # as they are comes first
        packed = {
            stage: Fit(renames.index(passes[stage]), entry.batch.length, entry.batch.cut)
            for stage, entry in used.items()
        }
        fits = list(dict.fromkeys(packed.values()))
        if used:
            stages = {stage: fits.index(fit) for stage, fit in packed.items()}
            uses[f"data.{name}"] = Use(config, renames, fits, stages)
    for name, entry in recipe.heldout.items():
        uses[f"heldout.{name}"] = Use(entry.data, [()], [], {})
    chosen = set[str]()
    for wanted in only:
        fitting = {path for path in uses if within(path, wanted) or path.partition(".")[2] == wanted}
        if not fitting:
            known = did_you_mean(wanted, [path.partition(".")[2] for path in uses], "sources")
            raise ValueError(f"--source {wanted}: no stage and no held-out table uses a source of this name{known}")
        chosen |= fitting
    return {path: use for path, use in uses.items() if path in chosen or not only}


# ------------------------------------------------------------------------------------------------------------ scanning


def _tally(path: str, use: Use, examiner: Examiner, limit: int | None, threads: int, progress: Progress) -> Tally:
    tally = Tally(path, use)
    missing = use.config.missing()
    if missing is not None:
        tally.find("no_usable_record", f"{missing} is not there; put it there, or name another with --set")
        return tally
    try:
        tally.source = use.config.open()
        tally.records = len(tally.source)
        with suppress(Exception):  # its records will say why
            tally.described = tally.source.described() if isinstance(tally.source, Records) else None
    except Exception as error:  # whatever a plugin's source raises
        tally.find("no_usable_record", f"cannot be opened ({' '.join(str(error).split())}); mend or replace the data")
        return tally
    indices = evenly(tally.records, limit)
    progress(path, 0, len(indices))
    for found in _examined(tally.source, indices, examiner, threads):
        if isinstance(found, Facts):
            tally.add(found)
        else:
            tally.add_unparsable(*found)
        if tally.looked % CHUNK == 0 or tally.looked == len(indices):
            progress(path, tally.looked, len(indices))
    if not tally.usable:
        tally.find("no_usable_record", f"none of {tally.looked} records can be used; mend or replace the data")
    return tally


def _examined(
    source: Sequence[Sample], indices: Iterable[int], examiner: Examiner, threads: int
) -> Iterator[Facts | tuple[int, Exception]]:
    """The facts of the samples in order, or why one does not parse. Records are read here, one after another, since a
    source need not be made for threads; what takes long, media and tokens, is done in threads, a few chunks ahead.
    """
    stopped = threading.Event()

    def examine(chunk: list[tuple[int, Sample | Exception]]) -> list[Facts | tuple[int, Exception]]:
        found: list[Facts | tuple[int, Exception]] = []
        for index, sample in chunk:
            if stopped.is_set():
                break
            found.append((index, sample) if isinstance(sample, Exception) else examiner(index, sample))
        return found

    def parsed() -> Iterator[tuple[int, Sample | Exception]]:
        for index in indices:
            try:
                yield index, source[index]
            except Exception as error:  # one bad record must not end the lint, whatever a plugin's source raises
                yield index, error

    stream = parsed()
    waiting: deque[Future[list[Facts | tuple[int, Exception]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="lint") as pool:
        try:
            while True:
                while len(waiting) < 2 * threads and (chunk := list(itertools.islice(stream, CHUNK))):
                    waiting.append(pool.submit(examine, chunk))
                if not waiting:
                    return
                yield from waiting.popleft().result()
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)


# -------------------------------------------------------------------------------------------------------------- tables


def _stages(recipe: Recipe, tallies: Mapping[str, Tally], progress: Progress) -> tuple[dict[str, Any], dict[str, str]]:
    """(the tables of the stages of which all is known, why there is none of the others)."""
    left_out, known = dict[str, str](), dict[str, dict[str, Sizes]]()
    for name, stage in recipe.stages.items():
        sources = {key: tallies[path] for key in stage.data if (path := f"data.{key}") in tallies}
        lacking = [f"data.{key}" for key in stage.data if key not in sources]
        found = {
            key: Sizes(tally.fitted[fit := tally.use.stages[name]], tally.costs[fit], tally.records)
            for key, tally in sources.items()
        }
        empty = [f"data.{key}" for key, sizes in found.items() if not sizes.samples]
        if lacking:
            left_out[name] = f"{', '.join(lacking)} not looked at"
        elif empty:
            left_out[name] = f"{', '.join(empty)} without a usable record"
        else:
            known[name] = found
    tables = {}
    for done, (name, sizes) in enumerate(known.items(), 1):
        tables[name] = stage_table(recipe, name, sizes)
        progress("stages", done, len(known))
    return tables, left_out


def _table(tally: Tally) -> dict[str, Any]:
    uses = []
    for number, renames in enumerate(tally.use.renames):
        lengths = np.array(tally.lengths[number], np.uint32)
        stages = {
            stage: {
                "length": (fit := tally.use.fits[which]).room,
                "over": int((lengths > fit.room).sum()),
                **tally.over(stage),
            }
            for stage, which in tally.use.stages.items()
            if tally.use.fits[which].renames == number
        }
        uses.append({"as": dict(renames), "stages": stages, **_spread(lengths[lengths > 0])})
    return {
        "records": tally.records,
        "looked_at": tally.looked,
        "usable": tally.usable,
        "described": tally.described,
        "turns": dict(tally.turns),
        "media": {name: {"count": count, "broken": tally.broken[name]} for name, count in sorted(tally.media.items())},
        "tokens": uses,
        "findings": dict(Counter(found.kind for found in tally.findings)),
    }


def _spread(lengths: np.ndarray) -> dict[str, Any]:
    if not len(lengths):
        nothing = {"edges": [0] * (BINS + 1), "counts": [0] * BINS}
        return {"samples": 0, "min": 0, "median": 0, "p95": 0, "max": 0, "total": 0, "histogram": nothing}
    least, median, p95, most = (int(found) for found in np.quantile(lengths, [0, 0.5, 0.95, 1], method="higher"))
    # Lengths are whole numbers: other widths would leave bins empty that no length can fall into.
    edges = least + np.arange(BINS + 1) * -(-(most + 1 - least) // BINS)
    counts, _ = np.histogram(lengths, edges)
    return {
        "samples": len(lengths),
        "min": least,
        "median": median,
        "p95": p95,
        "max": most,
        "total": int(lengths.sum()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }
