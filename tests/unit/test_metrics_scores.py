"""Intervals and sums; what holds for every metric."""

import subprocess
import sys
import time

import numpy as np
import pytest

from omnikit.component import Sample
from omnikit.evaluate.benchmark import Grade, Question
from omnikit.evaluate.metrics import METRICS, metric_of
from omnikit.evaluate.metrics.averages import by_group, mean_score, ratio_score
from omnikit.evaluate.metrics.intervals import resampled, spread, wilson
from omnikit.evaluate.metrics.yes_no import MME

NEEDED = {"wer": {"language": "en"}, "bleu": {"tokenize": "13a"}}
ALL = {name: METRICS[name](**NEEDED.get(name, {})) for name in METRICS}


def ask(name, reference="A", **rest):
    return Question(name, Sample(name, ()), reference, **rest)


# ------------------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize(
    ("mean", "number", "low", "high"),
    [
        (0.5, 10, 0.23659, 0.76341),
        (0, 10, 0, 0.27753),
        (1, 10, 0.72247, 1),
        (1, 1, 0.20655, 1),
        (0.75, 1000, 0.72224, 0.77585),
    ],
)
def test_wilson_by_hand(mean, number, low, high):
    assert wilson(mean, number) == pytest.approx((low, high), abs=1e-5)


def test_wilson_holds_the_truth_19_times_of_20():
    random = np.random.default_rng(1)
    for truth, number in ((0.5, 50), (0.9, 50), (0.97, 200)):
        held = [low <= truth <= high for low, high in (wilson(right / number, number)
                                                       for right in random.binomial(number, truth, 2000))]  # fmt: skip
        assert 0.93 < np.mean(held) < 0.98


def test_the_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(2).random(2000)
    low, high = spread(resampled(values[:, None])[:, 0] / len(values))
    half = 1.96 * values.std() / len(values) ** 0.5
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_the_bootstrap_is_the_same_on_any_day():
    counts = np.arange(12.0).reshape(6, 2)
    assert np.array_equal(resampled(counts), resampled(counts)) and resampled(counts).shape == (1000, 2)
    assert resampled(counts[:1]).tolist() == [[0, 1]] * 1000, "of one group there is but one draw"


def test_groups_are_drawn_whole():
    """Answers that stand and fall together say no more than one of them: the interval is wider for it."""

    def graded(grouped):  # fmt: skip
        return [
            (ask(str(n), group=str(n // 10) if grouped else ""), Grade("", 0, (float(n // 10 % 2), 1.0)))
            for n in range(2000)
        ]

    alone, together = (ratio_score(graded(grouped), "questions", 100) for grouped in (False, True))
    assert alone.value == together.value == 50
    assert together.high - together.low == pytest.approx(10**0.5 * (alone.high - alone.low), rel=0.15)


def test_a_question_without_a_group_is_its_own():
    graded = [
        (ask("a"), Grade("", 1, (1, 1))),
        (ask("b", group="a"), Grade("", 1, (1, 1))),
        (ask("c"), Grade("", 1, (1, 1))),
    ]
    assert [len(members) for members in by_group(graded)] == [1, 1, 1], "an id and a group of the same name are two"


def test_a_mean_over_categories():
    values = [("a", 1.0)] * 30 + [("a", 0.0)] * 10 + [("b", 0.5)] * 3
    score = mean_score(values, "categories", 100, 43)
    assert score.value == pytest.approx(62.5) and score.parts == {"a": 75, "b": 50}
    half = 1.96 * (0.75 * 0.25 / 40) ** 0.5 / 2 * 100
    assert (score.low, score.high) == pytest.approx((62.5 - half, 62.5 + half), abs=1)


# --------------------------------------------------------------------------------------------------------- every metric


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_says_what_it_is(name):
    metric = ALL[name]
    assert metric.better == ("lower" if name in ("wer", "cer") else "higher")
    assert metric.unit in ("%", "points", "BLEU", "WER %", "CER %") and metric.by in ("text", "likelihood")
    assert metric.judged == (name in ("air_bench", "mathvista", "mmvet", "yes_no_score"))
    assert hash(metric) == hash(metric_of(name, NEEDED.get(name)))


@pytest.mark.parametrize("name", METRICS)
def test_without_grades_there_is_no_score(name):
    with pytest.raises(ValueError, match="no question has a grade, so there is no score"):
        ALL[name].score([])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("accuracy", {}, "there is no metric 'accuracy'; there are: air_bench, anls, "),
        ("wer", {}, r"metric\.wer\.language: "),
        ("wer", {"language": "en", "lang": "en"}, r"metric\.wer\.lang: "),
        ("choice", {"by": "guessing"}, r"metric\.choice\.by: .*'likelihood' or 'text'"),
        ("choice", {"better": "lower"}, r"metric\.choice\.better: "),
        ("anls", {"threshold": 2}, r"metric\.anls\.threshold: "),
        ("mmvet", {"prompt": "grade this"}, r"metric\.mmvet\.prompt: the judge's prompt lacks \{answer\}"),
    ],
)
def test_a_wrong_name_or_option_is_one_line(name, options, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        metric_of(name, options)
    assert "\n" not in str(caught.value)


def graded_of(name, number):
    """Grades such as this metric gives, of `number` questions."""
    random = np.random.default_rng(3)
    tasks = [task for subtasks in MME.values() for task in subtasks]
    for index in range(number):
        right = float(random.integers(2))
        counts = {
            "wer": (float(random.integers(3)), 12.0),
            "cer": (float(random.integers(3)), 12.0),
            "bleu": (12.0, 12.0, 8.0, 5.0, 3.0, 1.0 + right, 12.0, 11.0, 10.0, 9.0),
            "yes_no_score": (right, 3.0),
            "air_bench": (5.0 + right, 8.0),
        }.get(name, (right, 1.0))
        extra = {"figure": index % 2, "question": index // 2 % 2}
        category = tasks[index % 14] if name == "mme" else f"kind {index % 7}"
        yield ask(str(index), category=category, group=str(index // 28), extra=extra), Grade("", right, counts)


@pytest.mark.parametrize("name", METRICS)
def test_15000_questions_take_seconds(name):
    graded = list(graded_of(name, 15_000))
    begun = time.process_time()
    score = ALL[name].score(graded)
    assert time.process_time() - begun < 10
    assert score.low < score.value < score.high or (name == "circular" and score.value == 0)
    assert all(np.isfinite([score.low, score.value, score.high, *score.parts.values()]))
    assert all(isinstance(part, float | int) and isinstance(key, str) for key, part in score.parts.items())


def test_the_metrics_import_no_torch():
    code = (
        "import sys, omnikit.evaluate.metrics, omnikit.evaluate.judges; print({'torch', 'whisper'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
