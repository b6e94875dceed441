"""The report: what the JSON holds, which samples are shown, and that the page is whole, harmless and complete."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from omnikit.checkpoint import RunFolder
from omnikit.component import Medium, Sample, SourceConfig, Turn
from omnikit.heldout import Table, table
from omnikit.recipe_schema import Held, Recipe, Stage
from omnikit.report import report, results
from omnikit.report.cards import LARGEST, Card
from omnikit.report.charts import chart, curves, in_order, smooth
from omnikit.report.page import page_of
from omnikit.report.results import chosen, summary

HOSTILE = "</q></p><script>alert('1')</script>\"&amp;<img src=x onerror=1>"
VOID = {"meta", "img", "br", "wbr", "line"}


class Listed(SourceConfig):
    """Samples given in the test."""

    type: ClassVar[str] = "listed"
    samples: tuple[Any, ...] = ()

    def open(self) -> Sequence[Sample]:
        return self.samples


class Tags(HTMLParser):
    """Reads a page: refuses tags that do not close, and collects tags, attributes and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def sources(self, kind: str) -> list[str]:
        return [value for name, value in self.attributes if name == "src" and value.startswith(f"data:{kind}")]


def asking(name: str, content: list[tuple[str, Any]], answer: str = "red", kind: str = "colour") -> Sample:
    return Sample(name, (Turn("user", tuple(content)), Turn("assistant", (("text", answer),))), kind)


def stage(steps: int, train: dict[str, Any]) -> Stage:
    return Stage.model_validate(
        {"steps": steps, "batch": {"length": 8, "packs": 1}, "data": {"text": 1}, "train": train}
    )


def recorded(name: str, losses: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [
        {"stage": name, "step": i, "loss": sum(one.values()) / len(one), "losses": one, "tokens": 10}
        | {"seconds": 0.375, "wait": 0.125}
        for i, one in enumerate(losses, 1)
    ]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder of media, most of them only by name."""
    folder = tmp_path / "media"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    for name in ("b.mp4", "c.flac", "d.npy", "x\">'<script>.webp"):
        (folder / name).write_bytes(name.encode())
    (folder / "large.jpg").write_bytes(bytes(LARGEST + 1))
    return folder


@pytest.fixture
def samples(media: Path) -> list[Sample]:
    """A sample of each form."""

    def at(name: str) -> Medium:
        return Medium(str(media / name))

    return [
        asking("picture", [("image", at("a.png")), ("text", "which colour is it")]),
        asking("clip", [("video", Medium(str(media / "b.mp4"), 0.5, 2)), ("text", "what moves")]),
        asking("dictation", [("audio", at("c.flac")), ("text", "what do you hear")]),
        asking("spoken", [("image", at("a.png")), ("audio", at("c.flac"))]),
        asking("other", [("touch", at("d.npy")), ("touch", Medium(b"12345")), ("text", "how does it feel")]),
        asking("large", [("image", at("large.jpg")), ("text", "too large")]),
        asking("gone", [("image", at("gone.png")), ("text", "not there")]),
        asking(HOSTILE, [("image", at("x\">'<script>.webp")), ("text", HOSTILE)], HOSTILE, HOSTILE),
        asking("text", [("text", "no media at all")]),
    ]


def shown(samples: Sequence[Sample], given: str = "red", metric: str = "exact", **more: Any) -> tuple[str, Tags]:
    """The page of one set in which every sample is shown, and what is in it."""
    one = table(samples, [given] * len(samples), [HOSTILE] * len(samples), metric, None)
    cards = [Card("mixed", sample, answer) for sample, answer in zip(samples, one["answers"], strict=True)]
    recipe = Recipe.model_construct(stages={"only": stage(2, {"rest": 1e-3})})
    records = recorded("only", [{"text": 2.0, HOSTILE: 3.0}, {HOSTILE: 1.0}])
    result = summary(HOSTILE, recipe, records, {"mixed": one | more})
    text = page_of(result, {"only": curves(records)}, cards)
    return text, Tags(text)


def words(tags: Tags) -> str:
    return re.sub(r"\s+", " ", " ".join(tags.texts))


# The page


def test_every_medium_is_on_its_card_or_named(samples: list[Sample]) -> None:
    _, tags = shown(samples)
    assert tags.tags["article"] == len(samples) + 1
    assert (tags.tags["img"], tags.tags["video"], tags.tags["audio"]) == (3, 1, 2)
    assert len(tags.sources("image/png;base64,")) == 2 and len(tags.sources("image/webp;base64,")) == 1
    assert tags.sources("video/mp4") == ["data:video/mp4;base64,Yi5tcDQ="]
    assert tags.sources("audio/flac") == ["data:audio/flac;base64,Yy5mbGFj"] * 2
    for name in ("touch: d.npy", "touch: <5 bytes>", "image: large.jpg", "image: gone.png", "seconds 0.5 to 2"):
        assert name in tags.texts, name


def test_a_question_is_marked_as_spoken_only_where_nothing_is_written(samples: list[Sample]) -> None:
    by_name = {sample.id: sample for sample in samples}
    assert "spoken question" not in words(shown([by_name["dictation"]])[1])
    spoken = shown([by_name["spoken"]])[1].texts
    assert "spoken question" in spoken and "c.flac" in spoken


def test_speakers_are_named_only_in_a_conversation(samples: list[Sample]) -> None:
    [asked, answered] = samples[0].turns
    talk = Sample("talk", (Turn("system", (("text", "be brief"),)), asked, answered, asked, answered), "colour")
    roles = [text for text in shown([talk])[1].texts if text in ("system", "user", "assistant")]
    assert roles == ["system", "user", "assistant", "user"]
    assert "user" not in shown(samples[:1])[1].texts


def test_what_a_model_or_a_data_set_says_stays_text(samples: list[Sample]) -> None:
    text, tags = shown(samples, given=HOSTILE)
    assert tags.tags["script"] == 0 and "onerror" not in dict(tags.attributes)
    assert "<script" not in text.lower()
    # Each card's given and blind answer (where it has media), the last sample's own words, the kind's row, the run's
    # name twice, and the group's name in the legend, in the curve's title and below it.
    assert sum(HOSTILE in piece for piece in tags.texts) >= 2 * len(samples) - 1 + 3 + 1 + 2 + 3


def test_the_page_needs_nothing_from_elsewhere(samples: list[Sample]) -> None:
    text, tags = shown(samples)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]*", "", text))
    assert tags.tags["link"] == tags.tags["script"] == tags.tags["iframe"] == 0
    assert all(value.startswith("data:") for name, value in tags.attributes if name in ("src", "href", "poster"))
    assert ("http-equiv", "Content-Security-Policy") in tags.attributes


def test_right_and_wrong_are_words_and_not_colours_alone(samples: list[Sample]) -> None:
    # The blind answer on the card is wrong.
    right, wrong = (words(shown(samples[:1], given)[1]) for given in ("red", "blue"))
    assert (right.count("✓ right"), right.count("✗ wrong")) == (1, 1)
    assert (wrong.count("✓ right"), wrong.count("✗ wrong")) == (0, 2)
    assert "nothing" in shown(samples[:1], given=" ")[1].texts


@pytest.mark.parametrize(
    ("metric", "given", "target", "expected"),
    [
        ("exact", "red", 0.9, "≥ 90.0% ✓ met"),
        ("exact", "blue", 0.9, "≥ 90.0% ✗ missed"),
        ("wer", "red", 0.2, "≤ 20.0% ✓ met"),
        ("wer", "blue", 0.2, "≤ 20.0% ✗ missed"),
    ],
)
def test_a_target_is_said_to_be_met_or_missed(
    samples: list[Sample], metric: str, given: str, target: float, expected: str
) -> None:
    one = table(samples[:1], [given], [given], metric, target)
    text = words(shown(samples[:1], given, metric, target=target, met=one["met"])[1])
    assert expected in text and ("lower is better" in text) == (metric == "wer")
    assert f"{int(one['met'])} of 1 target met." in text


def test_the_best_kind_is_the_one_with_fewest_wrong_words() -> None:
    rows = [asking("a", [("text", "x")], "one two", "good"), asking("b", [("text", "x")], "up left", "bad")]
    for metric in ("exact", "wer"):
        assert "2 kinds: best good" in words(shown(rows, "one two", metric)[1])


def test_a_set_without_media_has_no_blind_control(samples: list[Sample]) -> None:
    with_media, without = shown(samples[:1])[1], shown(samples[-1:])[1]
    assert ("class", "blind") in with_media.attributes and "Blind" in with_media.texts[-20:]
    assert sum(pair == ("class", "blind") for pair in without.attributes) == 1  # the legend's
    assert "\N{EN DASH}" in without.texts


# Samples shown


def fake(name: str, right: Sequence[bool], kinds: str) -> dict[str, Table]:
    return {name: {"answers": [{"kind": kind, "right": good} for kind, good in zip(kinds, right, strict=True)]}}


def test_the_samples_shown_spread_over_sets_and_kinds_with_a_third_wrong() -> None:
    tables = fake("a", [True] * 30, "x" * 20 + "y" * 10) | fake("b", [True, False] * 15, "xyz" * 10)
    picked = chosen(tables)
    assert len(picked) == len(set(picked)) == 12 and picked == sorted(picked) == chosen(tables)
    rows = [(name, tables[name]["answers"][index]) for name, index in picked]
    assert Counter(name for name, _ in rows) == {"a": 6, "b": 6}
    assert sum(not row["right"] for _, row in rows) == 4
    assert {(name, row["kind"]) for name, row in rows} == {("a", "x"), ("a", "y"), *(("b", kind) for kind in "xyz")}


@pytest.mark.parametrize(("right", "wrong"), [(30, 1), (1, 30), (0, 30), (30, 0), (2, 3)])
def test_as_many_samples_are_shown_as_there_are(right: int, wrong: int) -> None:
    tables = fake("a", [True] * right + [False] * wrong, "x" * (right + wrong))
    picked = chosen(tables)
    assert len(picked) == min(12, right + wrong)
    assert sum(index >= right for _, index in picked) == min(wrong, max(4, 12 - right))


# Curves


def test_smoothing_keeps_the_first_value_and_ends_in_the_mean_of_the_last_twentieth() -> None:
    assert smooth([5.0, 3.0, 1.0]) == [5.0, 3.0, 1.0]
    values = [float(i % 7) for i in range(60)]
    smoothed = smooth(values)
    assert smoothed[0] == values[0] and smoothed[-1] == pytest.approx(sum(values[-4:]) / 4)
    assert smoothed[30] == pytest.approx(sum(values[27:34]) / 7)
    assert smooth([2.0] * 100) == [2.0] * 100


def test_each_group_has_a_line_over_the_steps_that_had_it() -> None:
    records = recorded("s", [{"text": 4.0}, {"audio+image": 2.0, "text": 3.0}, {"image": 1.0}, {"text": 1.0}])
    found = curves(records)
    assert list(found) == ["text", "image", "audio+image"] == in_order(found)
    assert found["text"] == ([1, 2, 4], [4.0, 3.0, 1.0]) and found["image"] == ([3], [1.0])
    drawn = chart(found, ["audio", *found], 4)
    assert drawn.count("<polyline") == 1 and drawn.count("<circle") == 2
    # From step 1 and loss 4 at the top to step 4 at the right border.
    assert 'class="c1" points="100.0,10.0 170.0,45.5 310.0,116.5"' in drawn
    assert [int(tick) for tick in re.findall(r'class="(?:end|middle)"[^>]*>(\d+)<', drawn)] == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize("steps", [1, 3, 7, 40, 999, 123_456])
@pytest.mark.parametrize("loss", [1e-6, 0.3, 5.8, 1e4])
def test_axes_begin_at_zero_and_hold_every_value(steps: int, loss: float) -> None:
    drawn = chart({"text": ([1, steps], [loss, loss / 2])}, ["text"], steps)
    assert Tags(drawn).tags["text"] <= 16
    numbers = [float(y) for y in re.findall(r",([\d.]+)", re.search(r'points="([^"]*)"', drawn)[1])]
    assert all(10 <= y <= 152 for y in numbers)


def test_a_stage_that_has_not_begun_has_an_empty_chart() -> None:
    recipe = Recipe.model_construct(stages={"one": stage(4, {"rest": 1e-3}), "two": stage(6, {"rest": "frozen"})})
    records = recorded("one", [{"text": 1.0}] * 3)
    result = summary("half", recipe, records, {})
    assert result["stages"]["two"]["loss"] is None and result["stages"]["two"]["steps"] == 0
    text = words(Tags(page_of(result, {"one": curves(records), "two": {}}, [])))
    assert "2 stages, 3 of 10 steps" in text and "3 of 4 steps" in text and "no step yet" in text


# The whole


class Trained:
    """Stands for a trained run: says "red" to everything."""

    def __init__(self, heldout: dict[str, Held]) -> None:
        stages = {
            "first": stage(3, {"backbone": {"lr": 2e-3, "weight_decay": 0.1}, "rest": "frozen"}),
            "second": stage(2, {"modalities.image.projector": 1e-3, "rest": "frozen"}),
        }
        self.recipe = Recipe.model_construct(stages=stages, heldout=heldout)

    def load(self, folder: Path, registry: object) -> "Trained":
        return self

    def answer(self, samples: Sequence[Sample], blind: bool = False) -> list[str]:
        return ["blue" if blind else "red"] * len(samples)


def written(folder: Path, run: Trained, patch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[str]]:
    folder.mkdir()
    for record in recorded("first", [{"text": 4.0}, {"text": 3.0}, {"text": 2.0}]) + recorded(
        "second", [{"image": 2.0}, {"image": 1.0, "text": 3.0}]
    ):
        RunFolder(folder).log(record)
    patch.setattr(results, "Run", run)
    notes: list[str] = []
    return report(folder, notes.append), notes


def test_a_report_holds_what_was_trained_and_measured(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout = {
        "image": Held(data=Listed(samples=tuple(samples)), metric="exact", target=0.5),
        "speech": Held(data=Listed(samples=(samples[2],)), metric="wer", target=0.1),
    }
    result, notes = written(tmp_path / "run", Trained(heldout), monkeypatch)
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == result
    assert notes == ["held-out image: 9 samples", "held-out speech: 1 samples"]
    assert (result["recipe"], result["minutes"]) == ("run", round(2.5 / 60, 3))
    assert result["stages"]["first"] == {
        **{"steps": 3, "planned": 3, "seconds": 1.5, "tokens": 30, "loss": 2.0, "losses": {"text": 2.0}},
        "train": {"backbone": {"lr": 2e-3, "weight_decay": 0.1}, "rest": "frozen"},
    }
    assert result["stages"]["second"]["losses"] == {"text": 3.0, "image": 1.0}
    image, speech = result["heldout"]["image"], result["heldout"]["speech"]
    assert (image["score"], image["met"], image["blind"], len(image["answers"])) == (8 / 9, True, 0.0, 9)
    assert (speech["score"], speech["met"], speech["better"]) == (0.0, True, "lower")
    assert {"omnikit", "torch"} <= set(result["versions"]) and "python" in result["machine"]
    text = (tmp_path / "run" / "report.html").read_text()
    tags = Tags(text)
    assert tags.tags["article"] == 2 + 10 and "2 of 2 targets met." in words(tags)
    assert list((tmp_path / "run").glob("*.tmp")) == []


def test_equal_runs_have_equal_reports(tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    heldout = {"image": Held(data=Listed(samples=tuple(samples)), metric="exact")}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "run", Trained(heldout), monkeypatch)
    for file in ("report.json", "report.html"):
        one, two = ((tmp_path / name / "run" / file).read_bytes() for name in ("one", "two"))
        assert one == two


def test_a_run_without_heldout_has_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, notes = written(tmp_path / "run", Trained({}), monkeypatch)
    assert (result["heldout"], notes) == ({}, [])
    tags = Tags((tmp_path / "run" / "report.html").read_text())
    assert tags.tags["svg"] == 2 and tags.tags["table"] == 0
    assert [value for name, value in tags.attributes if name == "id"] == ["training"]
