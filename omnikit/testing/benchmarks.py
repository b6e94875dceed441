"""Checks of benchmarks, on the rows that each brings."""

import json
import tempfile
from pathlib import Path

from omnikit.component import BenchmarkConfig, Medium
from omnikit.evaluate.benchmark import Question
from omnikit.evaluate.judges import JudgeFailed
from omnikit.testing.results import Fault

__all__ = ["BENCHMARK_CHECKS", "BenchmarkTrial"]

ANSWERS = ("", "A", "B", "yes", "No.", "17", "%$\n", "Ω" * 400)


class BenchmarkTrial:
    """A benchmark and the folder of its rows."""

    def __init__(self, config: BenchmarkConfig) -> None:
        self.config = config
        self.folder = config.specimen()

    def questions(self) -> list[Question]:
        """All of them, anew."""
        found = self.config.questions(self.folder)
        return [found[index] for index in range(len(found))]


class _Mute:
    """A judge who says nothing."""

    model = "mute"

    def ask(self, messages: object, temperature: float = 0.0) -> str:
        return ""


def asks_questions(trial: BenchmarkTrial) -> str:
    """Questions that end in an empty assistant turn and are the same each time; references are plain data."""
    questions = trial.questions()
    if not questions:
        raise Fault("asks nothing of the rows that it brings")
    for question in questions:
        if not question.id or question.sample.turns[-1:] != (question.sample.turns[-1]._replace(content=()),):
            raise Fault(f"question {question.id!r} does not end in an empty assistant turn; the answer goes there")
        if question.sample.turns[-1].role != "assistant":
            raise Fault(f"question {question.id!r} ends in a turn of the {question.sample.turns[-1].role}")
        for name, part in (pair for turn in question.sample.turns for pair in turn.content):
            if not isinstance(part, str if name == "text" else Medium):
                raise Fault(f"question {question.id!r} holds a {name} that is {type(part).__name__}")
        json.dumps([question.reference, dict(question.extra)])
    if trial.questions() != questions:
        raise Fault("asks other questions the second time; answers are kept by their place")
    return f"{len(questions)} questions"


def grades_whatever_is_answered(trial: BenchmarkTrial) -> str:
    """Every answer has a grade from 0 to 1 or, of a judge who says nothing, none; the score is within its interval."""
    metric, questions = trial.config.metric, trial.questions()
    graded = []
    for question in questions:
        for answer in ANSWERS:
            try:
                grade = metric.grade(question, answer, _Mute() if metric.judged else None)  # type: ignore[arg-type]
            except JudgeFailed:
                continue
            if not 0 <= grade.right <= 1:
                raise Fault(f"the answer {answer[:20]!r} to {question.id!r} is {grade.right} right; it is 0 to 1")
            graded.append((question, grade))
    if graded:
        score = metric.score(graded)
        if not score.low <= score.value <= score.high:
            raise Fault(f"the score {score.value} is not within its interval, {score.low} to {score.high}")
    return f"{len(graded)} grades"


def misses_what_is_not_there(trial: BenchmarkTrial) -> str:
    """`missing` is None of its own rows, and a line that says what to fetch of an empty folder."""
    said = trial.config.missing(trial.folder)
    if said is not None:
        raise Fault(f"says of its own rows: {said}")
    with tempfile.TemporaryDirectory() as empty:
        said = trial.config.missing(Path(empty))
    if not said or "\n" in said:
        raise Fault(f"says {said!r} of an empty folder; a line must say what to fetch")
    return ""


def is_known_by_its_hashes(trial: BenchmarkTrial) -> str:
    """`fingerprint` and `definition` are texts, the same for the same data and definition."""
    first, second = (
        (config.fingerprint(trial.folder), config.definition()) for config in (trial.config, type(trial.config)())
    )
    if not all(first) or first != second:
        raise Fault(f"fingerprint and definition are {first!r}, then {second!r}")
    return ""


BENCHMARK_CHECKS = (asks_questions, grades_whatever_is_answered, misses_what_is_not_there, is_known_by_its_hashes)
