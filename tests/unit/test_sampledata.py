"""The sample data set: what its records promise, what its media show, and what training must not see of held-out."""

import json
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random

import av
import numpy as np
import pytest
import soundfile
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
from omnikit.sampledata.clips import draw_frames
from omnikit.sampledata.pictures import PAINT, draw_picture
from omnikit.sampledata.plan import Half, Plan, plan
from omnikit.sampledata.render import render
from omnikit.sampledata.scenes import Figure, Motion, Order, Picture, Placed
from omnikit.sampledata.speech import PEAK, SAMPLE_RATE, Utterance, synthesise, write_speech
from omnikit.sampledata.texts import collapse, stretch
from omnikit.sampledata.words import COLOURS, DICTATION, FILLER, QUESTIONS, SHAPES

TRAIN_FILES = (
    *("text", "image_captions", "image_questions", "video_captions", "video_questions"),
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


def rows(half: Half, files: tuple[str, ...] | None = None) -> Iterator[tuple[str, list[dict[str, str]], str]]:
    """Yields (kind, content of the user, answer) of every record."""
    for file in files or tuple(half.records):
        for record in half.records[file]:
            user, assistant = record["turns"]
            yield record["kind"], user["content"], assistant["content"][0]["text"]


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
            user, assistant = record["turns"]
            assert set(user) == set(assistant) == {"role", "content"}
            assert (user["role"], assistant["role"]) == ("user", "assistant")
            assert [set(part) for part in assistant["content"]] == [{"text"}]
            for part in user["content"] + assistant["content"]:
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
            for part in json.loads(line)["turns"][0]["content"]:
                used |= {file.parent / path for key, path in part.items() if key != "text"}
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
    used = set()
    for half in planned:
        for _, content, answer in rows(half):
            used.update(answer.split(), *(part["text"].split() for part in content if "text" in part))
    assert used == set(WORDS) and len(set(WORDS)) == len(WORDS) <= 150
    assert len(SPOKEN_WORDS) == 24 and set(SPOKEN_WORDS) <= set(WORDS)
    assert {"".join(filter(str.islower, word)) for word in WORDS} == set(WORDS)


def test_the_default_size_is_what_is_promised(planned: Plan) -> None:
    counts = {file: len(records) for file, records in planned.train.records.items()}
    assert counts.pop("speech") > 5000 + 300
    assert counts == {
        **{"image_captions": 3000, "image_questions": 9000, "image_speech": 3000},
        **{"video_captions": 900, "video_questions": 1800, "video_speech": 1200, "text": 12000},
    }
    assert {100 <= len(records) <= 200 for records in planned.heldout.records.values()} == {True}
    texts = [content[0]["text"] for _, content, _ in rows(planned.train, ("text",))]
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
    assert (make.GENERATOR, digest) == (1, 2236475101)


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


def test_speech_does_not_depend_on_what_was_said_before() -> None:
    for voice in TRAIN_VOICES + NEW_VOICES:
        wanted = Utterance("red circle left blue", voice, 160, 50)
        first, _ = synthesise(wanted)
        synthesise(Utterance("four", TRAIN_VOICES[0], 150, 60))
        assert np.array_equal(first, synthesise(wanted)[0]), voice


# What the media show


def nearest_paint(shade: np.ndarray) -> str:
    """Returns the name of the colour closest to these levels."""
    return min(PAINT, key=lambda name: float(np.abs(shade - PAINT[name]).sum()))


@pytest.mark.parametrize("look", ["0", "1", "2"])
def test_a_picture_shows_each_figure_in_its_quarter_colour_and_size(look: str) -> None:
    for colour in COLOURS:
        for shape in SHAPES:
            areas = {}
            for size in ("small", "large"):
                picture = Picture((Placed(Figure(colour, shape), size, "bottom", "left"),))
                pixels = np.asarray(draw_picture(picture, look), dtype=float)
                painted = np.abs(pixels - pixels[0, -1]).max(-1) > 40
                areas[size] = painted[32:, :32].sum()
                assert painted.sum() == areas[size] > 30
                shade = np.median(pixels[painted], 0)
                assert nearest_paint(shade) == colour
            assert areas["large"] > 2.5 * areas["small"]


def test_shapes_differ_beyond_their_shading() -> None:
    masks = []
    for shape in SHAPES:
        picture = Picture((Placed(Figure("black", shape), "small", "top", "left"),))
        masks.append(np.asarray(draw_picture(picture, "0").convert("L"))[:32, :32] < 128)
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert (mask != other).sum() > 12


@pytest.mark.parametrize(("way", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)])
@pytest.mark.parametrize("offset", [0, 2])
def test_four_evenly_spaced_frames_show_the_way(way: str, axis: int, sign: int, offset: int) -> None:
    frames = list(draw_frames(Motion(Figure("black", "star"), way), "0"))[offset::4]
    centres = [np.argwhere(np.asarray(frame.convert("L")) < 128).mean(0) for frame in frames]
    steps = sign * np.diff(centres, axis=0)[:, axis]
    assert (steps > 6).all() and steps.sum() > 25
    assert np.abs(np.diff(centres, axis=0)[:, 1 - axis]).max() < 1


def test_one_figure_replaces_the_other_at_half_time() -> None:
    frames = list(draw_frames(Order(Figure("red", "circle"), Figure("black", "cross")), "0"))
    red = [(np.asarray(frame)[..., 0].astype(int) - np.asarray(frame)[..., 1] > 120).sum() > 50 for frame in frames]
    assert red == [True] * 8 + [False] * 8


def test_more_words_take_longer_and_both_ends_are_quiet_for_50_ms(tmp_path: Path) -> None:
    lengths = []
    for number in range(1, 7):
        write_speech(Utterance(" ".join(SPOKEN_WORDS[:number]), TRAIN_VOICES[0], 160, 50), tmp_path / "a.flac")
        samples, _ = soundfile.read(tmp_path / "a.flac")
        loud = np.flatnonzero(np.abs(samples) > 0.02 * PEAK)
        assert loud[0] == pytest.approx(0.05 * SAMPLE_RATE, abs=160)
        assert len(samples) - loud[-1] == pytest.approx(0.05 * SAMPLE_RATE, abs=160)
        lengths.append(len(samples))
    assert lengths == sorted(lengths) and 1.7 < lengths[-1] / SAMPLE_RATE < 3.0


def test_voices_sound_different() -> None:
    spectra = []
    for voice in TRAIN_VOICES + NEW_VOICES:
        samples, _ = synthesise(Utterance("blue square four large", voice, 160, 50))
        frames = np.lib.stride_tricks.sliding_window_view(samples.astype(float), 1024)[::512]
        power = (np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2).mean(0)
        bands = np.log([band.sum() for band in np.split(power[4:404], 40)])
        spectra.append(bands - bands.mean())
    for index, one in enumerate(spectra):
        for other in spectra[:index]:
            assert np.sqrt(np.mean((one - other) ** 2)) > 0.4


# What the answers say


def told_figures(caption: str) -> list[dict[str, str]]:
    """Returns the figures of a picture's caption, read without the generator's help."""
    fields = ("a", "size", "colour", "shape", "at", "the", "height", "side")
    return [dict(zip(fields, figure.split(), strict=True)) for figure in caption.split(" and ")]


def test_answers_about_pictures_follow_from_their_captions(planned: Plan) -> None:
    captions = {content[0]["image"]: answer for _, content, answer in rows(planned.train, ("image_captions",))}
    for kind, content, answer in rows(planned.train, ("image_questions", "image_speech")):
        figures = told_figures(captions[content[0]["image"]])
        words = question_text(content, planned.train).split()
        if kind == "count":
            assert answer == ("one", "two", "three", "four")[len(figures) - 1]
            continue
        key = "colour" if kind == "shape" else "shape"
        (found,) = [figure for figure in figures if figure[key] in words]
        assert answer == found[kind]


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
            assert "moves" in caption and answer == caption[-1]
        else:
            assert len(shapes) == 2
            assert answer == {"first_shape": shapes[0], "last_shape": shapes[1], "first_colour": colours[0]}[kind]


def test_a_stretched_text_collapses_to_itself(planned: Plan) -> None:
    for half in planned:
        for kind, content, answer in rows(half, ("text",)):
            if kind == "echo":
                prompts = [prompt for prompt in DICTATION.read(half.heldout) if content[0]["text"].endswith(prompt)]
                assert collapse(content[0]["text"].removesuffix(max(prompts, key=len))) == answer
                assert FILLER not in answer
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
    told = [answer for _, _, answer in rows(planned.train, ("image_captions", "video_captions"))]
    told += [content[0]["text"] for kind, content, _ in rows(planned.train, ("text",)) if kind != "echo"]
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
    assert not any(content[0]["text"].endswith(unread) for _, content, _ in rows(planned.train, ("text",)))
    for kind, wordings in QUESTIONS.items():
        assert len(wordings.train) >= 4 and len(wordings.heldout) >= 2 and len(wordings.spoken) == 2, kind
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
    with pytest.raises(ValueError, match=r"holds sample data of generator 1, seed 0, size 40, not of .*; remove it or"):
        make_sample_data(data, **{"size": 40, **other})


def test_a_folder_of_another_generator_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "GENERATOR", 2)
    with pytest.raises(ValueError, match="generator 1, seed 0, size 40, not of generator 2"):
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
