"""A run measured on its recipe's held-out data, beside chance and beside its own blind guesses."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jiwer

from omnikit.component import Medium, Sample
from omnikit.generate import Run

Table = dict[str, Any]


def measure(run: Run, progress: Callable[[str, int], None] = lambda name, count: None) -> dict[str, Table]:
    """A table per entry of the recipe's `heldout`: score, chance, blind control, scores by kind, and every answer."""
    tables = {}
    for name, entry in run.recipe.heldout.items():
        source = entry.data.open()
        samples = [source[index] for index in range(len(source))]
        if not samples:
            raise ValueError(f"heldout.{name}.data: holds no sample; give data that does, or remove the entry")
        progress(name, len(samples))
        given = run.answer(samples)
        # Without media a blind question is the same question.
        blind = run.answer(samples, blind=True) if any(map(media_of, samples)) else given
        tables[name] = table(samples, given, blind, entry.metric, entry.target)
    return tables


def table(
    samples: Sequence[Sample], given: Sequence[str], blind: Sequence[str], metric: str, target: float | None
) -> Table:
    """The held-out table of one data set. Scores are shares: of right answers, or of wrong words.

    `chance` is the score of whoever knows the question's kind alone, `blind` that of the same model without its media;
    `references` has room for the scores of other systems.
    """
    score, lower = METRICS[metric], metric == "wer"
    expected = [expected_answer(sample) for sample in samples]
    kinds = [sample.kind or "all" for sample in samples]
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index, kind in enumerate(kinds):
        by_kind[kind].append(index)
    constant = [""] * len(samples)
    for rows in by_kind.values():
        answer = _constant_answer([expected[i] for i in rows], metric)
        for i in rows:
            constant[i] = answer

    def over(indices: Sequence[int], answers: Sequence[str]) -> float:
        return score([expected[i] for i in indices], [answers[i] for i in indices])

    everything = range(len(samples))
    total = over(everything, given)
    return {
        "metric": metric,
        "better": "lower" if lower else "higher",
        "samples": len(samples),
        "modalities": sorted({name for sample in samples for name, _ in media_of(sample)}),
        "score": total,
        "target": target,
        "met": None if target is None else total <= target if lower else total >= target,
        "chance": over(everything, constant),
        "blind": over(everything, blind),
        "references": {},
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
            {
                "id": sample.id,
                "kind": sample.kind,
                "expected": e,
                "given": g,
                "right": is_right(metric, e, g),
                "blind": b,
                "blind_right": is_right(metric, e, b),
            }
            for sample, e, g, b in zip(samples, expected, given, blind, strict=True)
        ],
    }


def expected_answer(sample: Sample) -> str:
    """The text of the last assistant turn."""
    content = sample.turns[last_answer(sample)].content
    return "".join(str(value) for name, value in content if name == "text")


def last_answer(sample: Sample) -> int:
    """The index of the last assistant turn: what comes before it is asked, what comes after it is not used."""
    return max(index for index, turn in enumerate(sample.turns) if turn.role == "assistant")


def media_of(sample: Sample) -> list[tuple[str, Medium]]:
    """The (modality, medium) pairs that are asked about, in order."""
    asked = sample.turns[: last_answer(sample)]
    return [(name, value) for turn in asked for name, value in turn.content if isinstance(value, Medium)]


def exact(expected: Sequence[str], given: Sequence[str]) -> float:
    """The share of answers that equal the expected text, letter case and outer white space aside."""
    return sum(e.strip().lower() == g.strip().lower() for e, g in zip(expected, given, strict=True)) / len(expected)


def word_error_rate(expected: Sequence[str], given: Sequence[str]) -> float:
    """Words substituted, left out or put in, over the words expected, letter case aside. It can exceed 1."""
    return float(jiwer.wer([e.lower() for e in expected], [g.lower() for g in given]))


METRICS: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {"exact": exact, "wer": word_error_rate}


def is_right(metric: str, expected: str, given: str) -> bool:
    """Whether the metric finds nothing wrong with an answer."""
    return METRICS[metric]([expected], [given]) == (0 if metric == "wer" else 1)


def _constant_answer(expected: Sequence[str], metric: str) -> str:
    """What to say every time when one may not look: the most frequent answer, or nothing where words are counted and
    that costs fewer."""
    frequent = Counter(answer.strip().lower() for answer in expected).most_common(1)[0][0]
    silence_is_better = metric == "wer" and word_error_rate(expected, [frequent] * len(expected)) > 1
    return "" if silence_is_better else frequent
