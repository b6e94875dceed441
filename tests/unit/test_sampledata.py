"""The sample data set: what its records promise, and what training must not see of held-out."""

import json
import re
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from omnikit.sampledata import (
    ANSWERS,
    HELDOUT_PAIRS,
    NEW_VOICES,
    SPOKEN_WORDS,
    TRAIN_VOICES,
    WORDS,
    make,
    make_sample_data,
)
from omnikit.sampledata.plan import Half, Plan, plan
from omnikit.sampledata.render import render
from omnikit.sampledata.speech import PEAK, SAMPLE_RATE, Utterance
from omnikit.sampledata.texts import collapse, stretch
from omnikit.sampledata.words import (
    COLOURS,
    DESCRIBE_PICTURE,
    DESCRIBE_SHAPES,
    DICTATION,
    FILLER,
    HEIGHTS,
    MEDIA_KINDS,
    QUESTIONS,
    SHAPES,
    SIDES,
    SIZES,
)

TRAIN_FILES = (
    *("text", "image_figures", "image_captions", "image_questions", "video_captions", "video_questions"),
    *("speech", "image_speech", "video_speech"),
)
HELDOUT_FILES = ("text", "image", "video", "speech", "speech_new_voices", "image_speech", "video_speech")
ASKING_FILES = {
    "train": ("image_questions", "video_questions", "image_speech", "video_speech"),
    "heldout": ("image", "video", "image_speech", "video_speech"),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set on disk, not to be changed."""
    out = tmp_path_factory.mktemp("sample") / "data"
    make_sample_data(out, size=40)
    return out


@pytest.fixture(scope="session")
def planned() -> Plan:
    """A data set of the default size in records only."""
    return plan(0, 3000)


KIND_OF = {
    wording.format(it=noun): kind
    for kind, wordings in QUESTIONS.items()
    for wording in wordings.train + wordings.heldout
    for noun in COLOURS + SHAPES
}


def turns_of(record: dict[str, Any]) -> Iterator[tuple[list[dict[str, str]], str]]:
    """Yields (content of the user, answer) of every question of a record."""
    for user, assistant in zip(record["turns"][::2], record["turns"][1::2], strict=True):
        assert set(user) == set(assistant) == {"role", "content"}
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        (part,) = assistant["content"]
        assert set(part) == {"text"}
        yield user["content"], part["text"]


def rows(half: Half, files: tuple[str, ...] | None = None) -> Iterator[tuple[str, list[dict[str, str]], str]]:
    """Yields (kind, content of the user, answer) of every question; each of a conversation with its medium."""
    for file in files or tuple(half.records):
        for record in half.records[file]:
            media: list[dict[str, str]] = []
            for number, (content, answer) in enumerate(turns_of(record)):
                kind = KIND_OF[content[-1]["text"]] if number or record["kind"] == "conversation" else record["kind"]
                yield kind, media + content, answer
                media = media or [part for part in content if "text" not in part]


def question_text(content: list[dict[str, str]], half: Half) -> str:
    """Returns the words of a written or spoken question."""
    return content[-1]["text"] if "text" in content[-1] else half.media[content[-1]["audio"]].text


# Files and records


def test_every_record_has_the_promised_form_and_an_id_of_its_own(data: Path) -> None:
    counts = json.loads((data / "about.json").read_text())["counts"]
    expected = [f"train/{file}.jsonl" for file in TRAIN_FILES] + [f"heldout/{file}.jsonl" for file in HELDOUT_FILES]
    assert sorted(counts) == sorted(expected)
    ids = []
    for file, count in counts.items():
        records = [json.loads(line) for line in (data / file).read_text().splitlines()]
        assert len(records) == count > 0
        for record in records:
            assert set(record) == {"id", "kind", "turns"}
            ids.append(record["id"])
            parts = [part for content, answer in turns_of(record) for part in [*content, {"text": answer}]]
            for part in parts:
                ((key, value),) = part.items()
                assert key in ("text", "image", "video", "audio")
                if key == "text":
                    assert value.split(" ") == value.split() and set(value.split()) <= set(WORDS)
                else:
                    assert (data / file).parent.joinpath(value).is_file()
    assert len(set(ids)) == len(ids)


def test_every_medium_is_used_and_decodes_at_its_promised_size(data: Path) -> None:
    used = set()
    for file in data.glob("*/*.jsonl"):
        for line in file.read_text().splitlines():
            for content, _ in turns_of(json.loads(line)):
                used |= {file.parent / path for part in content for key, path in part.items() if key != "text"}
    assert used == {path for path in data.glob("*/media/**/*") if path.is_file()}
    for path in used:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert (image.size, image.mode, image.format) == ((64, 64), "RGB", "PNG")
        elif path.suffix == ".flac":
            samples, rate = soundfile.read(path)
            assert rate == SAMPLE_RATE and samples.ndim == 1 and 0.2 < len(samples) / rate < 5
            assert soundfile.info(path).format == "FLAC" and np.abs(samples).max() == pytest.approx(PEAK, abs=0.01)
        else:
            with av.open(str(path)) as clip:
                stream = clip.streams.video[0]
                assert (stream.codec_context.name, stream.average_rate) == ("h264", 8)
                assert [(frame.width, frame.height) for frame in clip.decode(stream)] == [(64, 64)] * 16


def test_records_use_every_word_of_the_lexicon_and_no_other(planned: Plan) -> None:
    used, echoed = set(), set()
    for half in planned:
        for kind, content, answer in rows(half):
            words = {*answer.split(), *(word for part in content for word in part.get("text", "").split())}
            # An echo may be of any words at all: it is no use of them.
            (echoed if kind == "echo" else used).update(words)
    assert echoed <= used == set(WORDS) and len(set(WORDS)) == len(WORDS) <= 150
    assert len(SPOKEN_WORDS) == 24 and set(SPOKEN_WORDS) <= set(WORDS)
    assert {"".join(filter(str.islower, word)) for word in WORDS} == set(WORDS)


def test_the_tiny_recipe_has_a_token_for_each_word() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "tiny_omni.yaml"
    assert yaml.safe_load(recipe.read_text(encoding="utf-8"))["backbone"]["words"] == list(WORDS)


def test_the_default_size_is_what_is_promised(planned: Plan) -> None:
    counts = {file: len(records) for file, records in planned.train.records.items()}
    assert counts.pop("speech") > 5000 + 300
    assert counts == {
        **{"image_figures": 3000, "image_captions": 3000, "image_questions": 3000, "image_speech": 3000},
        **{"video_captions": 2000, "video_questions": 2000, "video_speech": 2000, "text": 12000},
    }
    lengths = {
        (file, record["kind"] == "echo", len(record["turns"]) // 2)
        for file, records in planned.train.records.items()
        for record in records
    }
    assert {one for one in lengths if one[2] > 1} == {
        ("image_questions", False, 5),
        ("video_questions", False, 2),
        ("text", False, 5),
    }
    assert ("text", True, 1) in lengths and ("text", False, 1) not in lengths
    assert all(len(record["turns"]) == 2 for records in planned.heldout.records.values() for record in records)
    assert {100 <= len(records) <= 200 for records in planned.heldout.records.values()} == {True}
    texts = [record["turns"][0]["content"][0]["text"] for record in planned.train.records["text"]]
    assert len(set(texts)) > 0.9 * len(texts)


# Determinism


def test_equal_arguments_give_equal_files(data: Path, tmp_path: Path) -> None:
    make_sample_data(tmp_path / "again", size=40)
    first, again = (
        {path.relative_to(root): path.read_bytes() for path in root.glob("**/*") if path.is_file()}
        for root in (data, tmp_path / "again")
    )
    assert first == again
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_a_seed_means_the_same_in_every_process_and_release() -> None:
    """Whoever changes a record or medium on purpose raises make.GENERATOR and writes the new number here."""
    digest = zlib.crc32(repr([(half.records, half.media) for half in plan(0, 40)]).encode())
    assert (make.GENERATOR, digest) == (3, 739398350)


def test_another_seed_gives_other_records_and_media() -> None:
    one, other = plan(0, 40).train, plan(1, 40).train
    for file in TRAIN_FILES:
        assert one.records[file] != other.records[file]
    shared = one.media.keys() & other.media.keys()
    assert len(shared) > 50 and sum(one.media[path] == other.media[path] for path in shared) < len(shared) / 10


def test_two_processes_make_the_same_media_as_one(tmp_path: Path) -> None:
    half = plan(0, 3).train
    seen: list[tuple[str, int, int]] = []
    render(tmp_path / "one", half.media, processes=1)
    render(tmp_path / "two", half.media, lambda *told: seen.append(told), processes=2)
    for path in half.media:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    assert {label for label, done, total in seen if done == total} == {"pictures", "clips", "utterances"}


# What the answers say


def told_figures(caption: str) -> list[dict[str, str]]:
    """Returns the figures of a picture's caption, read without the generator's help."""
    words = {"height": HEIGHTS, "side": SIDES, "size": SIZES, "colour": COLOURS, "shape": SHAPES}
    figures = [figure.split() for figure in caption.split(" and ")]
    assert all(len(figure) == len(words) for figure in figures)
    return [{kind: next(word for word in figure if word in words[kind]) for kind in words} for figure in figures]


def true_of(kind: str, figures: list[dict[str, str]], asked: list[str]) -> str:
    """Returns the answer to a question of this kind in these words about a picture of these figures."""
    if kind == "count":
        return ("one", "two", "three", "four")[len(figures) - 1]
    key = "colour" if kind == "shape" else "shape"
    (found,) = [figure for figure in figures if figure[key] in asked]
    return found[kind]


def test_answers_about_pictures_follow_from_their_captions(planned: Plan) -> None:
    captions = {content[0]["image"]: answer for _, content, answer in rows(planned.train, ("image_captions",))}
    for kind, content, answer in rows(planned.train, ("image_questions", "image_speech")):
        words = question_text(content, planned.train).split()
        assert answer == true_of(kind, told_figures(captions[content[0]["image"]]), words)


def test_half_of_the_captions_tell_shapes_first_and_in_any_order(planned: Plan) -> None:
    told = {content[0]["image"]: answer for _, content, answer in rows(planned.train, ("image_captions",))}
    by_shape = [told_figures(answer) for answer in told.values() if answer.split()[0] in SHAPES]
    by_place = [told_figures(answer) for answer in told.values() if answer.split()[0] not in SHAPES]
    assert len(by_shape) == len(by_place)
    places = [[(figure["height"] == "bottom", figure["side"] == "right") for figure in one] for one in by_shape]
    several = [one for one in places if len(one) > 1]
    # Of two figures half are in reading order, of three a sixth, of four one in 24.
    assert 0.15 < sum(one == sorted(one) for one in several) / len(several) < 0.3
    asked = {question_text(content, planned.train) for _, content, _ in rows(planned.train, ("image_captions",))}
    assert asked == {*DESCRIBE_PICTURE, *DESCRIBE_SHAPES} and not {*DESCRIBE_PICTURE} & {*DESCRIBE_SHAPES}


def test_answers_about_clips_follow_from_their_captions(planned: Plan) -> None:
    captions = {content[0]["video"]: answer for _, content, answer in rows(planned.train, ("video_captions",))}
    for kind, content, answer in rows(planned.train, ("video_questions", "video_speech")):
        caption = captions[content[0]["video"]].split()
        asked = question_text(content, planned.train).split()
        colours = [word for word in caption if word in COLOURS]
        shapes = [word for word in caption if word in SHAPES]
        if kind in ("colour", "shape"):
            (which,) = [index for index, pair in enumerate(zip(colours, shapes, strict=True)) if {*pair} & {*asked}]
            assert answer == {"colour": colours, "shape": shapes}[kind][which]
        elif kind == "motion":
            assert caption[-2] == "moves" and answer == caption[-1]
        else:
            assert len(shapes) == 2 and (caption[0], caption[3]) == ("first", "then")
            assert answer == {"first_shape": shapes[0], "last_shape": shapes[1], "first_colour": colours[0]}[kind]


def test_answers_about_described_pictures_follow_from_the_description(planned: Plan) -> None:
    figure = (
        rf"({'|'.join(HEIGHTS)}) ({'|'.join(SIDES)}) ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
    )
    kinds = Counter()
    for half in planned:
        for record in half.records["text"]:
            if not record["kind"].startswith("picture_"):
                continue
            described, *questions = turns_of(record)
            told = re.match(f"{figure}( and {figure})*", described[0][0]["text"])[0]
            asked = collapse(described[0][0]["text"].removeprefix(told))
            for text, answer in [
                (asked, described[1]),
                *((content[0]["text"], answer) for content, answer in questions),
            ]:
                kind = KIND_OF[text]
                kinds[kind] += 1
                assert answer == true_of(kind, told_figures(told), text.split())
    assert set(kinds) == set(MEDIA_KINDS["picture"])


def test_a_picture_of_one_figure_is_told_in_five_words(planned: Plan) -> None:
    for _, content, answer in rows(planned.train, ("image_figures",)):
        (placed,) = planned.train.media[content[0]["image"]].scene.placed
        assert answer.split() == [placed.height, placed.side, placed.size, *placed.figure]


def test_a_stretched_text_collapses_to_itself(planned: Plan) -> None:
    for half in planned:
        plain = total = 0
        for kind, content, answer in rows(half, ("text",)):
            if kind == "echo":
                prompts = [prompt for prompt in DICTATION.read(half.heldout) if content[0]["text"].endswith(prompt)]
                heard = content[0]["text"].removesuffix(max(prompts, key=len))
                assert collapse(heard) == answer
                assert FILLER not in answer
                plain, total = plain + (heard.strip() == answer), total + 1
        # Of the stretched ones a single word in ten stays as it is.
        assert plain == 0 if half.heldout else 0.28 < plain / total < 0.36
    for wordings in QUESTIONS.values():
        for wording in wordings.train + wordings.heldout:
            assert collapse(stretch(wording, Random(0))) == wording


def test_transcripts_and_utterances_agree_and_every_spoken_question_is_transcribed(planned: Plan) -> None:
    for half in planned:
        for file in ("speech", "speech_new_voices"):
            for _, content, answer in rows(half, (file,) if file in half.records else ("speech",)):
                assert half.media[content[0]["audio"]].text == answer
    heard = {content[0]["audio"] for _, content, _ in rows(planned.train, ("speech",))}
    asked = {content[1]["audio"] for _, content, _ in rows(planned.train, ("image_speech", "video_speech"))}
    assert len(asked) > 300 and asked <= heard


def test_dictation_starts_with_single_words_and_never_repeats_at_once(planned: Plan) -> None:
    orders = [answer.split() for kind, _, answer in rows(planned.train, ("speech",)) if kind == "dictation"]
    lengths = Counter(map(len, orders))
    assert set(lengths) == set(range(1, 7))
    assert 0.3 < lengths[1] / len(orders) < 0.4 and 0.2 < lengths[2] / len(orders) < 0.3
    assert {word for order in orders for word in order} == set(SPOKEN_WORDS)
    for order in orders:
        assert all(one != other for one, other in pairwise(order))


# Held out


def test_heldout_pairs_are_absent_from_training_and_in_every_heldout_scene(planned: Plan) -> None:
    assert sorted(shape for _, shape in HELDOUT_PAIRS) == sorted(SHAPES)
    told = [answer for _, _, answer in rows(planned.train, ("image_figures", "image_captions", "video_captions"))]
    pairs = {pair for text in told for pair in pairwise(text.split())}
    assert not pairs & set(HELDOUT_PAIRS)
    assert {(colour, shape) for colour in COLOURS for shape in SHAPES} - pairs == set(HELDOUT_PAIRS)
    drawn = [medium.scene for medium in planned.heldout.media.values() if not isinstance(medium, Utterance)]
    assert all(any(figure in HELDOUT_PAIRS for figure in scene.figures) for scene in drawn)
    for file in ("image", "video"):
        asked = [
            (kind, question_text(content, planned.heldout).split(), answer)
            for kind, content, answer in rows(planned.heldout, (file,))
            if kind in ("colour", "shape")
        ]
        new = sum(any({*pair} <= {*words, answer} for pair in HELDOUT_PAIRS) for _, words, answer in asked)
        assert 0.25 < new / len(asked) < 0.5


def test_heldout_wordings_are_new_but_made_of_known_words(planned: Plan) -> None:
    read = {
        name: {
            question_text(content, half) for _, content, _ in rows(half, ASKING_FILES[name]) if "text" in content[-1]
        }
        for name, half in (("train", planned.train), ("heldout", planned.heldout))
    }
    assert not read["train"] & read["heldout"]
    unread = tuple(
        wording.format(it=noun)
        for asked in QUESTIONS.values()
        for wording in asked.heldout
        for noun in COLOURS + SHAPES
    )
    assert not any(content[-1]["text"].endswith(unread) for _, content, _ in rows(planned.train, ("text",)))
    for kind, wordings in QUESTIONS.items():
        assert len(wordings.train) >= 4 and len(wordings.heldout) >= 2 and 2 <= len(wordings.spoken) <= 4, kind
        assert not set(wordings.train) & set(wordings.heldout)
        assert set(wordings.spoken) | set(wordings.spoken_heldout) <= set(wordings.train)
    known = {word for text in read["train"] for word in text.split()}
    assert {word for text in read["heldout"] for word in text.split()} <= known
    heard = {question_text(content, planned.train) for _, content, _ in rows(planned.train, ASKING_FILES["train"][2:])}
    new = {
        question_text(content, planned.heldout) for _, content, _ in rows(planned.heldout, ASKING_FILES["heldout"][2:])
    }
    assert {text.split()[0] for text in new - heard} == {"is"}


def test_heldout_orders_of_words_are_new(planned: Plan) -> None:
    known = {answer for file in ("speech", "text") for _, _, answer in rows(planned.train, (file,))}
    new = {answer for file in ("speech", "speech_new_voices") for _, _, answer in rows(planned.heldout, (file,))}
    new |= {answer for kind, _, answer in rows(planned.heldout, ("text",)) if kind == "echo"}
    assert len(new) > 150 and not known & new
    assert {len(order.split()) for order in new} == {2, 3, 4, 5, 6}


def test_new_voices_speak_only_in_their_file(planned: Plan) -> None:
    voices = defaultdict(set)
    for name, half in zip(("train", "heldout"), planned, strict=True):
        for file in half.records:
            for _, content, _ in rows(half, (file,)):
                voices[f"{name}/{file}"] |= {half.media[part["audio"]].voice for part in content if "audio" in part}
    assert voices.pop("heldout/speech_new_voices") == set(NEW_VOICES)
    assert set().union(*voices.values()) == set(TRAIN_VOICES) == voices["heldout/speech"]
    assert not set(NEW_VOICES) & set(TRAIN_VOICES)
    assert (len(TRAIN_VOICES), len(NEW_VOICES)) == (6, 2)


# Nothing can be guessed


@pytest.mark.parametrize("file", ASKING_FILES["train"])
def test_the_wording_does_not_tell_the_answer(planned: Plan, file: str) -> None:
    answers = defaultdict(Counter)
    totals = Counter()
    for kind, content, answer in rows(planned.train, (file,)):
        text = question_text(content, planned.train)
        masked = " ".join("it" if word in COLOURS + SHAPES else word for word in text.split())
        answers[kind, masked][answer] += 1
        totals[kind] += 1
    for kind, total in totals.items():
        best = sum(max(counts.values()) for (asked, _), counts in answers.items() if asked == kind) / total
        # The best of n answers exceeds 1/n by luck alone, up to 0.09 where 120 records share five wordings.
        assert best < 1 / len(ANSWERS[kind]) + 0.12, kind


@pytest.mark.parametrize("file", ASKING_FILES["heldout"])
def test_heldout_files_are_balanced_over_kinds_and_answers(planned: Plan, file: str) -> None:
    answers = defaultdict(Counter)
    for kind, _, answer in rows(planned.heldout, (file,)):
        answers[kind][answer] += 1
    totals = [counts.total() for counts in answers.values()]
    assert len(totals) == 6 and max(totals) - min(totals) <= 1
    for kind, counts in answers.items():
        assert set(counts) == set(ANSWERS[kind])
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("file", ASKING_FILES["heldout"])
def test_what_was_learned_blind_in_training_is_no_help_on_heldout(planned: Plan, file: str) -> None:
    source = dict(zip(ASKING_FILES["heldout"], ASKING_FILES["train"], strict=True))[file]

    def blind(content: list[dict[str, str]], half: Half) -> str:
        return " ".join(word for word in question_text(content, half).split() if word in COLOURS + SHAPES)

    answers = defaultdict(Counter)
    for kind, content, answer in rows(planned.train, (source,)):
        answers[kind, blind(content, planned.train)][answer] += 1
    right, chance, total = 0, 0.0, 0
    for kind, content, answer in rows(planned.heldout, (file,)):
        right += answers[kind, blind(content, planned.heldout)].most_common(1)[0][0] == answer
        chance += 1 / len(ANSWERS[kind])
        total += 1
    assert right / total < chance / total + 0.1


# The folder


def test_a_finished_folder_is_left_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "plan", lambda *_: pytest.fail("planned again"))
    before = {path: path.stat().st_mtime_ns for path in data.glob("**/*")}
    assert make_sample_data(data, size=40) == json.loads((data / "about.json").read_text())["counts"]
    assert before == {path: path.stat().st_mtime_ns for path in data.glob("**/*")}


@pytest.mark.parametrize("other", [{"seed": 1}, {"size": 41}])
def test_a_folder_of_other_arguments_is_refused(data: Path, other: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=r"holds sample data of generator \d+, seed 0, size 40, not of .*; remove it or"
    ):
        make_sample_data(data, **{"size": 40, **other})


def test_a_folder_of_another_generator_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make.GENERATOR
    monkeypatch.setattr(make, "GENERATOR", own + 1)
    with pytest.raises(ValueError, match=f"generator {own}, seed 0, size 40, not of generator {own + 1}"):
        make_sample_data(data, size=40)


def test_a_strange_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no finished sample data set; remove it or name another folder"):
        make_sample_data(tmp_path, size=40)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, *_: object) -> None:
        assert (folder / "train" / "text.jsonl").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "render", fail)
    with pytest.raises(KeyboardInterrupt):
        make_sample_data(tmp_path / "data", size=1)
    assert list(tmp_path.iterdir()) == []


def test_without_espeak_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ValueError, match=r"espeak-ng is not installed; pip install 'omnikit\[speech\]'") as caught:
        make_sample_data(tmp_path / "data", size=40)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_size_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: 0 pictures make no data set; give 1 or more"):
        make_sample_data(tmp_path / "data", size=0)


def test_the_smallest_size_works(tmp_path: Path) -> None:
    counts = make_sample_data(tmp_path / "data", size=1)
    assert counts["train/image_captions.jsonl"] == 1
