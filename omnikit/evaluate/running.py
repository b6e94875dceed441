"""A run put through a benchmark: questions, answers, grades, score.

Questions are answered in chunks of a fixed size; each chunk is on disk before the next begins. An evaluation that was
killed begins again with the chunk that it was in, so that the same questions share a batch and the files are the same
to the byte. A question that cannot be asked (its medium is missing or broken, its prompt too long) does not count: it
is listed, and the score says how many there are.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import omnikit
from omnikit.component import BenchmarkConfig, Sample
from omnikit.evaluate.benchmark import Grade, Metric, Question
from omnikit.evaluate.columns import LETTERS
from omnikit.evaluate.examples import Example, chosen
from omnikit.evaluate.judges import Judge, JudgeFailed, JudgeRefused
from omnikit.evaluate.results import Answer, Key, Store

__all__ = ["CHUNK", "Answers", "Asked", "Outcome", "evaluate"]

CHUNK = 128
"""Questions that are answered, and saved, at once. Prompts of like length share a batch within a chunk."""

LISTED = 20
"""Questions of a kind that a score names one by one; the others are in answers.jsonl."""


class Answers(Protocol):
    """The part of `omnikit.generate.Run` that is used."""

    def answer(self, samples: Sequence[Sample], *, max_tokens: int) -> list[str]:
        """What the run says in place of each sample's last turn."""
        ...

    def likelihoods(self, samples: Sequence[Sample], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-likelihood of each of a sample's choices in that place."""
        ...


class Outcome(NamedTuple):
    """What came of an evaluation."""

    score: dict[str, Any]
    """As it is stored in score.json."""
    folder: Path
    examples: list[Example]


class Asked(NamedTuple):
    """What is to be evaluated."""

    benchmark: BenchmarkConfig
    folder: Path | None
    """Where its data is; None means where the benchmark finds it."""
    limit: int | None = None
    """Only the first so many questions; of those that are scored together, groups."""


def evaluate(
    run: Answers,
    asked: Asked,
    run_hash: str,
    out: Path,
    judge: Judge | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """The score, where it is kept, and some answers to show. `run_hash` identifies the run's weights.

    A metric that needs a judge, where none is given, and questions none of which can be asked, are a ValueError.
    """
    benchmark = asked.benchmark
    metric = benchmark.metric
    if metric.judged and judge is None:
        raise ValueError(f"{benchmark.type}: its answers are graded by a judge; give --judge URL and --judge-model")
    questions = benchmark.questions(asked.folder)
    indices = _meant(questions, asked.limit)
    total = len(indices)
    key = Key(
        benchmark.type,
        run_hash,
        benchmark.definition(),
        benchmark.fingerprint(asked.folder),
        omnikit.__version__,
        asked.limit,
    )
    store = Store(out, key)
    with store.alone():
        answers = store.kept(total, CHUNK)
        progress(len(answers), total)
        for begin in range(len(answers), total, CHUNK):
            chunk = _answered(run, benchmark, metric, questions, indices[begin : begin + CHUNK])
            if begin == 0 and all(answer.bad for answer in chunk):
                raise ValueError(
                    f"{benchmark.type}: none of its first {len(chunk)} questions can be asked: {chunk[0].bad}"
                )
            store.append(chunk)
            answers += chunk
            progress(len(answers), total)
        graded, given, failed = _graded(metric, questions, zip(indices, answers, strict=True), judge)
        if not graded:
            raise ValueError(f"{benchmark.type}: no answer could be graded: {failed[0]['why']}")
        told = _told(benchmark, metric, key, graded, answers, failed, len(questions))
        if metric.judged and judge is not None:
            told["notes"].append(f"graded by {judge.model}")
        store.write((_as_line(question, grade) for question, grade in graded), told)
    shown = [
        Example(questions[index], answer, graded[number][1])
        for number in chosen(graded)
        for index, answer in [given[number]]
    ]
    return Outcome(told, store.folder, shown)


# --------------------------------------------------------------------------------------------------------------- asking


def _meant(questions: Sequence[Question], limit: int | None) -> Sequence[int]:
    """The questions of the first `limit` groups, whole ones: half of a group would be scored too well."""
    everything = range(len(questions))
    if limit is None:
        return everything
    groups = _groups(questions)
    if groups is None:
        return everything[:limit]
    first = set([*dict.fromkeys(groups)][:limit])
    return [index for index, group in zip(everything, groups, strict=True) if group in first]


def _groups(questions: Sequence[Question]) -> list[str] | None:
    """The group of each question, one that cannot be asked being its own; None where there are no groups."""
    found = []
    for index in range(len(questions)):
        try:
            question = questions[index]
        except ValueError:
            found.append(f"question {index + 1}")
            continue
        if not question.group:
            return None
        found.append(question.group)
    return found


def _answered(
    run: Answers, benchmark: BenchmarkConfig, metric: Metric, questions: Sequence[Question], indices: Sequence[int]
) -> list[Answer]:
    """The answers to these questions, in order."""
    found: dict[int, Answer] = {}
    able: list[tuple[int, Question]] = []
    for index in indices:
        try:
            able.append((index, questions[index]))
        except ValueError as error:
            found[index] = Answer(f"question {index + 1}", bad=str(error))
    _ask(run, benchmark, metric, able, found)
    return [found[index] for index in indices]


def _ask(
    run: Answers,
    benchmark: BenchmarkConfig,
    metric: Metric,
    able: Sequence[tuple[int, Question]],
    found: dict[int, Answer],
) -> None:
    """Puts the answers into `found`. Where one question spoils the batch, halves are tried, until it stands alone."""
    if not able:
        return
    try:
        answers = _said(run, benchmark, metric, [question for _, question in able])
    except ValueError as error:
        if len(able) == 1:
            index, question = able[0]
            found[index] = Answer(question.id, bad=str(error))
        else:
            middle = len(able) // 2
            for half in (able[:middle], able[middle:]):
                _ask(run, benchmark, metric, half, found)
        return
    found.update(zip((index for index, _ in able), answers, strict=True))


def _said(run: Answers, benchmark: BenchmarkConfig, metric: Metric, questions: list[Question]) -> list[Answer]:
    samples = [question.sample for question in questions]
    if metric.by == "text":
        texts = run.answer(samples, max_tokens=benchmark.max_tokens)
        return [Answer(question.id, text) for question, text in zip(questions, texts, strict=True)]
    if bare := next((question.id for question in questions if not question.choices), None):
        raise ValueError(f"{bare}: has no choices to weigh")
    letters = benchmark.weighs == "letter"
    choices = [tuple(LETTERS[: len(one.choices)]) if letters else one.choices for one in questions]
    weights = run.likelihoods(samples, choices)
    return [_heaviest(question, weighed) for question, weighed in zip(questions, weights, strict=True)]


def _heaviest(question: Question, weights: Sequence[float]) -> Answer:
    """The letter of the most likely choice, the first of several; none where the likelihoods are no numbers."""
    if not all(map(math.isfinite, weights)):
        return Answer(question.id)
    return Answer(question.id, LETTERS[weights.index(max(weights))], tuple(round(one, 6) for one in weights))


# -------------------------------------------------------------------------------------------------------------- grading


def _graded(
    metric: Metric, questions: Sequence[Question], answers: Iterable[tuple[int, Answer]], judge: Judge | None
) -> tuple[list[tuple[Question, Grade]], list[tuple[int, str]], list[dict[str, str]]]:
    """Graded questions, their indices and answers; then those that have no grade and why.

    Of a graded question its media are let go: those of a large benchmark are gigabytes.
    """
    graded, given, failed = [], [], []
    for index, answer in answers:
        if answer.bad:
            failed.append({"id": answer.id, "why": answer.bad, "kind": "not asked"})
            continue
        question = questions[index]
        try:
            grade = metric.grade(question, answer.answer, judge)
        except JudgeRefused:
            raise
        except (JudgeFailed, ValueError) as error:
            failed.append({"id": answer.id, "why": str(error), "kind": "not graded"})
        else:
            graded.append((question._replace(sample=Sample(question.sample.id, ())), grade))
            given.append((index, answer.answer))
    return graded, given, failed


def _as_line(question: Question, grade: Grade) -> dict[str, Any]:
    return {"id": question.id, "category": question.category, "reference": question.reference, **grade._asdict()}


def _told(
    benchmark: BenchmarkConfig,
    metric: Metric,
    key: Key,
    graded: Sequence[tuple[Question, Grade]],
    answers: Sequence[Answer],
    failed: Sequence[dict[str, str]],
    whole: int,
) -> dict[str, Any]:
    """What score.json holds."""
    score = metric.score(graded)
    notes = []
    if len(answers) < whole:
        notes.append(f"limited to {len(answers):,} of {whole:,} questions")
    for kind in ("not asked", "not graded"):
        if number := sum(one["kind"] == kind for one in failed):
            notes.append(f"{number:,} {kind}, which do not count")
    return {
        "title": benchmark.title,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "unit": metric.unit,
        "better": metric.better,
        "questions": score.questions,
        "of": whole,
        "parts": dict(score.parts),
        "notes": notes,
        "left_out": list(failed[:LISTED]),
        "key": key._asdict(),
    }
