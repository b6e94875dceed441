"""Held-out scores: the metrics, chance and tables by hand, and what `measure` asks of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from omnikit.component import Medium, Sample, SourceConfig, Turn
from omnikit.generate import Run
from omnikit.heldout import exact, expected_answer, is_right, last_answer, measure, media_of, table, word_error_rate
from omnikit.model import OmniModel
from omnikit.recipe_schema import Held, Recipe
from omnikit.train import train


class Listed(SourceConfig):
    """Samples given in the test."""

    type: ClassVar[str] = "listed"
    samples: tuple[Any, ...] = ()

    def open(self) -> Sequence[Sample]:
        return self.samples


class Told:
    """A run that gives the answers it was told, and remembers what it was asked."""

    def __init__(self, heldout: dict[str, Held], given: list[str], blind: list[str]) -> None:
        self.recipe = Recipe.model_construct(heldout=heldout)
        self.texts = {False: given, True: blind}
        self.asked: list[bool] = []

    def answer(self, samples: Sequence[Sample], blind: bool = False) -> list[str]:
        self.asked.append(blind)
        return self.texts[blind][: len(samples)]


def sample(name: str, answer: str, kind: str = "", media: str = "image") -> Sample:
    asked = (("text", "what is it"),) if not media else ((media, Medium(f"{name}.png")), ("text", "what is it"))
    return Sample(name, (Turn("user", asked), Turn("assistant", (("text", answer),))), kind)


# Metrics


@pytest.mark.parametrize(
    ("expected", "given", "score"),
    [
        (["red"], ["red"], 1.0),
        (["red"], ["blue"], 0.0),
        (["red", "blue"], ["red", "red"], 0.5),
        (["Red "], ["\n red"], 1.0),
        (["up left"], ["up  left"], 0.0),
        (["red"], [""], 0.0),
        (["red"], ["red."], 0.0),
    ],
)
def test_exact_is_the_share_of_equal_answers(expected: list[str], given: list[str], score: float) -> None:
    assert exact(expected, given) == score


@pytest.mark.parametrize(
    ("expected", "given", "score"),
    [
        (["up left"], ["up left"], 0.0),
        (["up left"], ["Up LEFT"], 0.0),
        (["up left down top"], ["up right down top"], 1 / 4),
        (["up left"], [""], 1.0),
        (["up"], ["down left top"], 3.0),
        # Words count, not answers: 1 + 0 of 1 + 3 words.
        (["up", "left down top"], ["down", "left down top"], 1 / 4),
        # One left out and one put in.
        (["one two three"], ["one three four"], 2 / 3),
    ],
)
def test_word_error_rate_counts_words_of_all_answers_together(
    expected: list[str], given: list[str], score: float
) -> None:
    assert word_error_rate(expected, given) == pytest.approx(score)


def test_an_answer_is_right_when_its_metric_finds_nothing_wrong() -> None:
    assert is_right("exact", "red", "Red") and not is_right("exact", "red", "red one")
    assert is_right("wer", "up left", "up left") and not is_right("wer", "up left", "up")
    assert not is_right("wer", "up", "up up")


# Samples


def test_what_is_asked_ends_at_the_last_answer() -> None:
    turns = (
        Turn("system", (("text", "be brief"),)),
        Turn("user", (("image", Medium("a.png")), ("text", "what"))),
        Turn("assistant", (("text", "first"),)),
        Turn("user", (("audio", Medium("b.wav")), ("touch", Medium(b"\0\1")))),
        Turn("assistant", (("text", "the "), ("text", "last"))),
        Turn("user", (("video", Medium("c.mp4")),)),
    )
    one = Sample("a", turns)
    assert (last_answer(one), expected_answer(one)) == (4, "the last")
    assert [name for name, _ in media_of(one)] == ["image", "audio", "touch"]


# Tables


def test_a_table_by_hand() -> None:
    samples = [
        *(sample(f"c{i}", answer, "colour") for i, answer in enumerate(["red", "red", "Red", "blue"])),
        *(sample(f"n{i}", answer, "count") for i, answer in enumerate(["two", "one"])),
    ]
    given = ["red", "red", "blue", "blue", "two", "two"]
    blind = ["red", "green", "green", "green", "one", "one"]
    made = table(samples, given, blind, "exact", 0.6)
    assert {key: value for key, value in made.items() if key not in ("kinds", "answers")} == {
        **{"metric": "exact", "better": "higher", "samples": 6, "modalities": ["image"], "target": 0.6, "met": True},
        # Chance says "red" to each colour (3 of 4, letter case aside) and "two", the first met, to each count (1 of 2).
        **{"score": 4 / 6, "chance": 4 / 6, "blind": 2 / 6, "references": {}},
    }
    assert made["kinds"] == {
        "colour": {"samples": 4, "score": 3 / 4, "chance": 3 / 4, "blind": 1 / 4},
        "count": {"samples": 2, "score": 1 / 2, "chance": 1 / 2, "blind": 1 / 2},
    }
    assert made["answers"][2] == {
        **{"id": "c2", "kind": "colour", "expected": "Red"},
        **{"given": "blue", "right": False, "blind": "green", "blind_right": False},
    }
    assert [row["right"] for row in made["answers"]] == [True, True, False, True, True, False]


def test_chance_knows_the_kind_and_nothing_else() -> None:
    answers = ["red", "red", "blue", "two", "two", "one"]
    with_kinds = [sample(str(i), answer, "ab"[i // 3]) for i, answer in enumerate(answers)]
    without = [one._replace(kind="") for one in with_kinds]
    silent = [""] * 6
    assert table(with_kinds, silent, silent, "exact", None)["chance"] == 4 / 6
    one_kind = table(without, silent, silent, "exact", None)
    assert one_kind["chance"] == 2 / 6 and list(one_kind["kinds"]) == ["all"]


def test_chance_of_a_word_error_rate_is_silence_where_the_frequent_answer_costs_more() -> None:
    # "up left down" to each: 0 + 3 + 3 wrong words of 5; nothing: 5 of 5.
    long = [sample("a", "up left down"), sample("b", "top"), sample("c", "right")]
    assert table(long, [""] * 3, [""] * 3, "wer", None)["chance"] == 1.0
    # "up" to each: 0 + 0 + 2 wrong words of 4.
    short = [sample("a", "up"), sample("b", "up"), sample("c", "down left")]
    assert table(short, [""] * 3, [""] * 3, "wer", None)["chance"] == 0.5


@pytest.mark.parametrize(
    ("metric", "given", "target", "met"),
    [
        ("exact", "up left", 1.0, True),
        ("exact", "up", 1.0, False),
        ("wer", "up", 0.5, True),
        ("wer", "up", 0.4, False),
        ("wer", "up", None, None),
    ],
)
def test_a_target_is_met_in_the_direction_of_its_metric(
    metric: str, given: str, target: float | None, met: bool | None
) -> None:
    made = table([sample("a", "up left")], [given], [given], metric, target)
    assert made["met"] is met
    assert made["better"] == {"exact": "higher", "wer": "lower"}[metric]


# Measuring


def test_measure_asks_once_with_and_once_without_the_media() -> None:
    samples = (sample("a", "red"), sample("b", "blue"))
    entry = Held(data=Listed(samples=samples), metric="exact", target=0.5)
    run = Told({"image": entry}, ["red", "red"], ["blue", "red"])
    told = []
    made = measure(run, lambda *args: told.append(args))
    assert made == {"image": table(samples, ["red", "red"], ["blue", "red"], "exact", 0.5)}
    assert (run.asked, told) == ([False, True], [("image", 2)])


def test_measure_does_not_ask_again_where_nothing_can_be_hidden() -> None:
    run = Told({"text": Held(data=Listed(samples=(sample("a", "red", media=""),)), metric="exact")}, ["red"], ["?"])
    made = measure(run)["text"]
    assert (run.asked, made["blind"], made["modalities"]) == ([False], 1.0, [])


def test_measure_refuses_a_set_without_samples() -> None:
    with pytest.raises(ValueError, match=r"heldout\.empty\.data: holds no sample"):
        measure(Told({"empty": Held(data=Listed(), metric="exact")}, [], []))


def test_a_run_is_measured_on_the_device_that_it_would_be_trained_on(
    recipe_of: Any, parts: Any, registry: Any, tmp_path: Path, quiet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe_of({"language": parts.stage({"text": 1}, {"rest": 1e-3}, steps=1)}), tmp_path, quiet)
    moved: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(OmniModel, "to", lambda self, device: moved.append(torch.device(device).type))
    Run.load(tmp_path, registry)
    assert moved == ["cuda"]
