"""A run measured on its recipe's held-out data, beside chance and beside its own blind guesses."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jiwer

from omnikit.component import Sample
from omnikit.generate import Run

Table = dict[str, Any]


def measure(run: Run, progress: Callable[[str, int], None] = lambda name, count: None) -> dict[str, Table]:
    """A table per entry of the recipe's `heldout`: score, chance, blind control, scores by kind, and every answer."""
    tables = {}
    for name, entry in run.recipe.heldout.items():
        source = entry.data.open()
        samples = [source[index] for index in range(len(source))]
        progress(name, len(samples))
        given, blind = run.answer(samples), run.answer(samples, blind=True)
        tables[name] = table(samples, given, blind, entry.metric, entry.target)
    return tables


def table(
    samples: Sequence[Sample], given: Sequence[str], blind: Sequence[str], metric: str, target: float | None
) -> Table:
    """The held-out table of one data set. Scores are shares: of right answers, or of wrong words."""
    score = METRICS[metric]
    expected = [expected_answer(sample) for sample in samples]
    kinds = [sample.kind or "all" for sample in samples]
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index, kind in enumerate(kinds):
        by_kind[kind].append(index)
    constant = _constant_answers(expected, kinds)

    def over(indices: Sequence[int], answers: Sequence[str]) -> float:
        return score([expected[i] for i in indices], [answers[i] for i in indices])

    everything = range(len(samples))
    return {
        "metric": metric,
        "better": "lower" if metric == "wer" else "higher",
        "samples": len(samples),
        "score": over(everything, given),
        "target": target,
        "chance": over(everything, constant),
        "blind": over(everything, blind),
        "kinds": {
            kind: {
                "samples": len(rows),
                "score": over(rows, given),
                "chance": over(rows, constant),
                "blind": over(rows, blind),
            }
            for kind, rows in sorted(by_kind.items())
        },
        "answers": [
            {"id": sample.id, "kind": sample.kind, "expected": e, "given": g, "blind": b}
            for sample, e, g, b in zip(samples, expected, given, blind, strict=True)
        ],
    }


def expected_answer(sample: Sample) -> str:
    """The text of the last assistant turn."""
    last = [turn for turn in sample.turns if turn.role == "assistant"][-1]
    return "".join(str(value) for name, value in last.content if name == "text")


def exact(expected: Sequence[str], given: Sequence[str]) -> float:
    """The share of answers that equal the expected text, letter case and outer white space aside."""
    return sum(e.strip().lower() == g.strip().lower() for e, g in zip(expected, given, strict=True)) / len(expected)


def word_error_rate(expected: Sequence[str], given: Sequence[str]) -> float:
    """Words substituted, left out or put in, over the words expected."""
    return float(jiwer.wer(list(expected), list(given)))


METRICS: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {"exact": exact, "wer": word_error_rate}


def _constant_answers(expected: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """The best that one can do without looking: for each kind of question, always its most frequent answer."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for answer, kind in zip(expected, kinds, strict=True):
        counts[kind][answer] += 1
    return [counts[kind].most_common(1)[0][0] for kind in kinds]
