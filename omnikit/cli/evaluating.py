"""`omnikit eval`."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omnikit.cli.options import JsonOption
from omnikit.cli.watching import counted

if TYPE_CHECKING:
    from omnikit.component import BenchmarkConfig
    from omnikit.evaluate.judges import Judge
    from omnikit.evaluate.running import Outcome
    from omnikit.registry import Registry

DEFINITIONS = (".yaml", ".yml")


def evaluate(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="RUN", help="The folder of a trained run, such as runs/tiny_omni.", show_default=False),
    ] = None,
    names: Annotated[
        list[str],
        typer.Option(
            "--bench",
            metavar="NAME",
            help="A benchmark of --list, or the .yaml file of a definition of yours. Repeatable.",
            show_default=False,
        ),
    ] = [],  # noqa: B006  (typer wants the literal)
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="NAME=FOLDER",
            help="Where a benchmark's data lies, as it was published.  [default: the Hugging Face hub]",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Ask only the first N questions of each.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where answers and scores are kept.  [default: RUN/eval]", show_default=False
        ),
    ] = None,
    judge: Annotated[
        str,
        typer.Option(metavar="URL", help="An OpenAI-compatible endpoint that grades open answers.", show_default=False),
    ] = "",
    judge_model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The judge's model. Without --judge, replies that were recorded are replayed.",
            show_default=False,
        ),
    ] = "",
    judge_key: Annotated[
        str, typer.Option(metavar="VARIABLE", help="The environment variable with the judge's key.")
    ] = "OPENAI_API_KEY",
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the scores beside the papers' tables: a page.html with answers, or a .md.",
            show_default=False,
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the benchmarks, and what to fetch for each.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Put a trained run through benchmarks.

    What has been answered is kept: the same command again goes on where it was cut off. Scores come with 95 % intervals
    and say what they leave out.
    """
    from omnikit.registry import Registry

    registry = Registry.load()
    if show:
        _list(registry, as_json)
        return
    if run is None:
        raise ValueError("omnikit eval: give the folder of a run, or --list; see omnikit eval --help")
    if not names:
        raise ValueError("omnikit eval: name a benchmark by --bench; omnikit eval --list has them all")
    if report is not None and report.suffix not in (".html", ".md"):
        raise ValueError(f"--report {report}: is neither a .html nor a .md; name one")
    chosen = _chosen(names, registry)
    folders = _folders(data, chosen)
    absent = [benchmark.missing(folders.get(name)) for name, benchmark in chosen.items()]
    if any(absent):
        raise ValueError("\n".join(reason for reason in absent if reason))
    judged = [name for name, benchmark in chosen.items() if benchmark.metric.judged]
    out = out or run / "eval"
    grader = _judge(judge, judge_model, judge_key, out) if judge or judge_model else None
    if judged and grader is None:
        raise ValueError(
            f"{', '.join(judged)}: answers are graded by a judge; give --judge URL and --judge-model MODEL"
        )

    try:
        evaluated = _evaluated(run, chosen, folders, limit, out, grader)
    except KeyboardInterrupt:
        print("stopped; answers are kept, and the same command again goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    if report is not None:
        _write(report, run, evaluated)
    scores = [{"benchmark": name, **outcome.score, "folder": str(outcome.folder)} for name, outcome in evaluated]
    if as_json:
        print(json.dumps({"run": str(run), "scores": scores}, indent=1, ensure_ascii=False))
    else:
        _print(scores)


def _evaluated(
    run: Path,
    chosen: "Mapping[str, BenchmarkConfig]",
    folders: Mapping[str, Path],
    limit: int | None,
    out: Path,
    grader: "Judge | None",
) -> "list[tuple[str, Outcome]]":
    """What each benchmark came to."""
    from omnikit.evaluate.running import Asked
    from omnikit.evaluate.running import evaluate as ask
    from omnikit.generate import Run

    with redirect_stdout(sys.stderr), counted() as progress:  # what components print is no part of the table
        loaded = Run.load(run)
        weights = _weights(run, loaded.checkpoints)
        evaluated = []
        for name, benchmark in chosen.items():

            def told(done: int, total: int, name: str = name) -> None:
                progress(name, done, total)

            asked = Asked(benchmark, folders.get(name), limit)
            evaluated.append((name, ask(loaded, asked, weights, out, grader, told)))
    return evaluated


def _write(path: Path, run: Path, evaluated: "Sequence[tuple[str, Outcome]]") -> None:
    """The report, whole or not at all."""
    from omnikit.checkpoint import write_atomically
    from omnikit.scores import Evaluated, markdown_of, page_of
    from omnikit.versions import versions

    entries = [Evaluated(name, outcome.score, outcome.examples) for name, outcome in evaluated]
    name = run.resolve().name
    if path.suffix == ".md":
        text = markdown_of(name, entries)
    else:
        text = page_of(name, entries, " · ".join(f"{key} {value}" for key, value in versions().items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode(errors="replace").decode())


def _chosen(names: Sequence[str], registry: "Registry") -> "dict[str, BenchmarkConfig]":
    """The benchmarks by name. Two of the same name would take each other's data and place in the report."""
    found: dict[str, BenchmarkConfig] = {}
    said: dict[str, str] = {}
    for name in dict.fromkeys(names):
        benchmark = _called(name, registry)
        if (other := said.setdefault(benchmark.type, name)) != name:
            told = f"is called {benchmark.type}, as --bench {other} is; give one of the files another name"
            raise ValueError(f"--bench {name}: {told}")
        found[benchmark.type] = benchmark
    return found


def _called(name: str, registry: "Registry") -> "BenchmarkConfig":
    """The benchmark of this name, or of this definition file."""
    from omnikit.component import BenchmarkConfig
    from omnikit.evaluate import defined
    from omnikit.registry import NAME, did_you_mean

    if name.endswith(DEFINITIONS):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"--bench {name}: there is no such file")
        if not NAME.fullmatch(path.stem):
            raise ValueError(f"--bench {name}: {path.stem!r} is no name; call the file a word of a-z, 0-9 and _")
        made = defined(path.absolute())()
        made.about  # noqa: B018  (whatever is not right in it is said now)
        return made
    if name not in registry.types("benchmark"):
        raise ValueError(f"--bench {name[:60]}: is no benchmark{did_you_mean(name, registry.types('benchmark'))}")
    found = registry.get("benchmark", name)()
    assert isinstance(found, BenchmarkConfig)
    return found


def _folders(entries: Sequence[str], chosen: "dict[str, BenchmarkConfig]") -> dict[str, Path]:
    from omnikit.registry import did_you_mean

    found = {}
    for entry in entries:
        name, equals, folder = entry.partition("=")
        if not equals or not folder:
            raise ValueError(f"--data {entry}: is not NAME=FOLDER; write, say, mmlu=data/mmlu")
        if name not in chosen:
            raise ValueError(f"--data {entry}: {name[:60]!r} is not asked for{did_you_mean(name, chosen, '--bench')}")
        found[name] = Path(folder)
    return found


def _judge(url: str, model: str, key: str, out: Path) -> "Judge":
    import os

    from omnikit.evaluate.judges import Judge

    if not model:
        raise ValueError("--judge: say by --judge-model which of its models grades")
    variable = key if key in os.environ else None
    return Judge(url or "http://localhost", model, variable, out / "judge.jsonl", replay=not url)


def _weights(folder: Path, checkpoints: Sequence[str]) -> str:
    """Identifies the run's weights: by the hashes of the checkpoints that were loaded, each of every file; of an
    exported folder by its own files'.
    """
    import hashlib

    from omnikit.cache import digest

    hashes = checkpoints or [digest(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _list(registry: "Registry", as_json: bool) -> None:
    from omnikit.evaluate import Defined

    found = []
    for name in registry.types("benchmark"):
        benchmark: Any = registry.get("benchmark", name)()
        about = benchmark.about if isinstance(benchmark, Defined) else None
        found.append(
            {
                "name": name,
                "title": benchmark.title,
                "modality": about.modality if about else "",
                "judged": benchmark.metric.judged,
                "fetch": about.fetch if about else "",
                "differs": about.differs if about else "",
                "unconfirmed": about.unconfirmed if about else "",
            }
        )
    if as_json:
        print(json.dumps({"benchmarks": found}, indent=1, ensure_ascii=False))
        return
    width = max(len(one["name"]) for one in found)
    for one in found:
        print(f"{one['name']:{width}}  {one['title']}{' [' + one['modality'] + ']' if one['modality'] else ''}")
        print(f"{'':{width}}  {one['fetch']}")


def _print(scores: Sequence[dict[str, Any]]) -> None:
    width = max(len(score["title"]) for score in scores)
    for score in scores:
        figure = f"{score['value']:.1f} {score['unit']}"
        interval = f"({score['low']:.1f} to {score['high']:.1f})"
        told = "".join(f"; {note}" for note in score["notes"])
        print(f"{score['title']:{width}}  {figure:>14}  {interval}  {score['questions']:,} questions{told}")
        for one in score["left_out"]:
            print(f"{'':{width}}  {one['kind']}: {one['id']}: {one['why']}", file=sys.stderr)
