"""The preview: that its page says of every position what the batch of training says, shows items and not files, and
stays one harmless file whatever a data set holds."""

import base64
import json
import re
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnikit.builtin.backbone_config import byte_level
from omnikit.cli import main
from omnikit.component import Input, Item, Medium, Mel, Pixels, ReaderConfig
from omnikit.data import Position, StageData, layouter_of
from omnikit.packing import positions_of
from omnikit.preview import page_of, preview, summary
from omnikit.preview.media import LARGEST, Room, SoundAlone, figure, names_of
from omnikit.preview.page import SINGLE
from omnikit.preview.tokens import pieces, specials, visible
from omnikit.recipe import dump_recipe
from omnikit.sample import Branch

HOSTILE = "</i></p><script>alert('1')</script>\"&amp;<img src=x onerror=1> \u202eevil\u202c \x00\x07\x1b אבג"
VOID = {"meta", "img", "br"}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


class Page(HTMLParser):
    """A page as it reads: its tokens, chips and blocks by position. Refuses tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.stack: list[tuple[str, dict[str, str]]] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.packs: list[dict[str, list[Any]]] = []
        self.feed(text)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.attributes += found.items()
        if tag not in VOID:
            self.stack.append((tag, found))
        kinds = found.get("class", "").split()
        if "pack" in kinds:
            self.packs.append({"tokens": [], "chips": [], "bar": []})
        elif "chip" in kinds:
            self.packs[-1]["chips"].append(found["title"])
        elif "style" in found:
            self.packs[-1]["bar"].append((kinds, found["title"], found["style"]))
        elif tag == "i" and "title" in found:
            self.packs[-1]["tokens"].append([found["title"], kinds, ""])

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        tag, found = self.stack[-1] if self.stack else ("", {})
        self.texts.append((found.get("class", ""), data))
        if tag == "i" and "title" in found and "style" not in found and self.packs:
            self.packs[-1]["tokens"][-1][2] += data

    def pictures(self) -> list[np.ndarray]:
        found = [base64.b64decode(value.split(",")[1]) for name, value in self.attributes if name == "src"]
        return [np.asarray(Image.open(BytesIO(one)).convert("RGB")) for one in found if one.startswith(b"\x89PNG")]

    def words(self) -> str:
        return re.sub(r"\s+", " ", " ".join(text for _, text in self.texts))


@pytest.fixture
def omnikit(capsys):
    """omnikit("show", path) -> (exit code, stdout, lines of stderr)."""

    def call(*args):
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, [line for line in err.splitlines() if not line.startswith("indexed ")]

    return call


@pytest.fixture
def shown(recipe_of, small_windows):
    """shown("omni", packs, step) -> (the preview, its page) of a stage of the tiny world."""

    def make(stage: str, packs: int = 4, step: int = 1, **more: Any):
        found = preview(recipe_of(**more), stage, packs, step)
        return found, Page(page_of("world", found))

    return make


@pytest.fixture
def written(tmp_path, recipe_of, parts, small_windows):
    """written(records) -> a recipe's file whose only stage has these records alone, media beside it."""

    def make(records, length=64, **tables):
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps(record) + "\n" for record in records))
        data = {"rows": {"type": "jsonl", "path": str(rows), "modalities": ["image", "audio"]}}
        batch = {"length": length, "packs": 2, "micro": 1}
        only = parts.stage({"rows": 1}, {"rest": 1e-3}, batch=batch)
        unused = {name: parts.modalities[name] for name in ("image", "audio")}
        recipe = recipe_of({"only": only}, data=data, modalities=unused, **tables)
        file = tmp_path / "recipe.yaml"
        file.write_text(dump_recipe(recipe))
        return file

    return make


def record(content, answer="red", name="one"):
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": name, "turns": turns}


# ------------------------------------------------------------------------------------- what the page says of positions


def span(title: str) -> tuple[int, int]:
    """`positions 12-15` or `position 12` as (12, 16)."""
    found = re.search(r"positions? (\d+)(?:\N{EN DASH}(\d+))?", title)
    return int(found[1]), int(found[2] or found[1]) + 1


def test_the_page_says_of_every_position_what_the_batch_of_training_says(shown, recipe_of) -> None:
    _, read = shown("omni", packs=6)
    recipe = recipe_of()
    data = StageData(recipe, "omni", layouter_of(recipe))
    batches = [batch for step in islice(data.steps(Position()), 3) for batch in step.batches]
    assert len(read.packs) == len(batches) == 6
    held = set()
    for pack, batch in zip(read.packs, batches, strict=True):
        ids, length = batch.ids[0].tolist(), batch.ids.shape[1]
        placed = {int(at) for media in batch.media.values() for at in media.places}
        text = {int(title.split()[0]): (int(title.split()[3]), kinds) for title, kinds, _ in pack["tokens"]}
        assert text.keys() == {at for at in range(length) if batch.segments[0, at]} - placed
        assert all(ids[at] == index for at, (index, _) in text.items())
        labels = {at + 1: label for at, label in zip(batch.label_at.tolist(), batch.labels.tolist(), strict=True)}
        assert {at: index for at, (index, kinds) in text.items() if "l" in kinds} == labels
        chips = sorted(at for chip in pack["chips"] for at in range(*span(chip)))
        assert chips == sorted(placed)
        for chip in pack["chips"]:
            held.add(chip.split(":")[0])
            assert set(range(*span(chip))) <= set(batch.media[chip.split(":")[0]].places.tolist())
    assert held == {"image", "video", "audio"}


def test_the_bar_lies_where_samples_media_labels_and_padding_are(shown) -> None:
    found, read = shown("omni", packs=3)
    kinds = Counter()
    for pack, row in zip(read.packs, found.rows, strict=True):
        length = row.length
        for classes, title, style in pack["bar"]:
            left, width = (float(part) / 100 * length for part in re.findall(r"([\d.]+)%", style))
            begin, end = span(title)
            assert (round(left), round(left + width)) == (begin, end), title
            kinds[classes[0]] += 1
            covered = set(range(begin, end))
            if classes[0] == "learned":
                assert covered <= row.learned
            if classes[0] == "padding":
                assert (begin, end) == (row.tokens, length)
        blocks = [span(title) for classes, title, _ in pack["bar"] if classes[0] == "block"]
        assert blocks == [(one.start, one.end) for one in row.segments]
        learned = [span(title) for classes, title, _ in pack["bar"] if classes[0] == "learned"]
        assert sum(end - begin for begin, end in learned) == len(row.learned)
    assert set(kinds) == {"block", "medium", "learned", "padding"}


def test_segments_are_where_positions_restart(shown, recipe_of) -> None:
    found, _ = shown("omni", packs=2)
    recipe = recipe_of()
    data = StageData(recipe, "omni", layouter_of(recipe))
    for row, batch in zip(found.rows, next(data.steps(Position())).batches, strict=True):
        positions = positions_of(batch.segments)[0].tolist()
        assert all(
            positions[one.start] == 0 and positions[one.end - 1] == one.end - one.start - 1 for one in row.segments
        )


def test_a_sample_is_told_with_its_source_its_modalities_and_its_text(written, omnikit, tmp_path, world) -> None:
    content = [{"image": str(world / "0.png")}, {"text": "which  colour?"}, {"audio": str(world / "0.wav")}]
    file = written([record(content, "red and green") | {"kind": "odd"}])
    assert omnikit("data", "preview", file, "--stage", "only", "-n", 1, "--out", tmp_path / "a.html")[0] == 0
    read = Page((tmp_path / "a.html").read_text())
    assert "rows, odd · image + audio" in read.words()
    said = [(text, *kinds) for _, kinds, text in read.packs[0]["tokens"] if "part" not in kinds]
    said = said[: next(i for i, one in enumerate(said) if one[0] == "<|end|>") + 1]
    assert "".join(text for text, *_ in said) == "<|user|>which  colour?<|assistant|>red and green<|end|>"
    assert said[0] == ("<|user|>", "s") and said[-1] == ("<|end|>", "s", "l")
    assert said[-2] == (" green", "l")
    assert "".join(text for text, *kinds in said if kinds[-1:] == ["l"]) == "red and green<|end|>"
    assert "image: 6 tokens, positions 1\N{EN DASH}6, grid (1, 4, 4), from 0.png" in read.packs[0]["chips"]


def test_the_head_and_json_have_the_same_true_numbers(written, omnikit, tmp_path, world) -> None:
    rows = [record([{"image": str(world / "0.png")}, {"text": "?"}], "red", f"r{i}") for i in range(4)]
    file, out = written(rows), tmp_path / "a.html"
    code, told, err = omnikit("data", "preview", file, "--stage", "only", "-n", 2, "--out", out, "--json")
    assert (code, err) == (0, [])
    numbers = json.loads(told)
    # <|user|>, six places, a space and "?", <|assistant|>, "red" and <|end|>: twelve positions, two of them learned.
    each = 64 // 12
    assert (
        numbers["packs"]
        == [
            {
                "step": 1,
                "samples": each,
                "tokens": 12 * each,
                "labels": 2 * each,
                "media": each,
                "padding": 1 - 12 * each / 64,
            }
        ]
        * 2
    )
    assert (numbers["samples"], numbers["tokens"], numbers["labels"]) == (2 * each, 24 * each, 4 * each)
    assert numbers["padding"] == pytest.approx(1 - 12 * each / 64) and numbers["media"] == {"image": 2 * each}
    assert (numbers["unread"], numbers["bad"], numbers["page"]) == ([], [], str(out))
    words = Page(out.read_text()).words()
    for fact in (
        "samples 10",
        "tokens 120",
        "learned 20 16.7% of the tokens",
        "padding 6.2% of the positions",
        "image 10 media",
    ):
        assert fact in words
    code, told, _ = omnikit("data", "preview", file, "--stage", "only", "-n", 2, "--out", out)
    assert told == f"{out}: 2 packs, 10 samples, 6.2% padding\n"


def test_a_later_step_shows_the_packs_that_it_takes(shown) -> None:
    first, later = shown("omni", packs=4)[0], shown("omni", packs=2, step=2)[0]
    assert [row.step for row in first.rows] == [1, 1, 2, 2] and [row.step for row in later.rows] == [2, 2]
    assert [row.segments[0].ids for row in later.rows] == [row.segments[0].ids for row in first.rows[2:]]


def test_a_stage_of_epochs_ends_with_its_last_pack(recipe_of, parts, small_windows) -> None:
    short = {key: value for key, value in parts.stage({"text": 1}, {"rest": 1e-3}).items() if key != "steps"}
    recipe = recipe_of({"only": {**short, "epochs": 1, "batch": {"length": 256, "packs": 4, "micro": 1}}})
    data = StageData(recipe, "only", layouter_of(recipe))
    total = sum(1 for _ in data.packs(Position()))
    last = preview(recipe, "only", total)
    assert sum(len(row.segments) for row in last.rows) == 160 and total % 4
    with pytest.raises(ValueError, match=rf"-n {total + 1}: .* has {total} packs; ask for 1 to {total}$"):
        preview(recipe, "only", total + 1)
    with pytest.raises(ValueError, match=rf"--step 99: stage only has steps 1 to {-(-total // 4)}$"):
        preview(recipe, "only", 1, step=99)


def test_no_model_is_built_and_equal_recipes_have_equal_pages(shown, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("omnikit.model.OmniModel.__init__", refuse)
    for kind in ("omnikit.builtin.backbone_config.HFCausalLM", "omnikit_siglip.SiglipConfig"):
        monkeypatch.setattr(f"{kind}.build", refuse)
    assert shown("omni")[1].text == shown("omni")[1].text


# ------------------------------------------------------------------------------------------------------ text as tokens


@pytest.mark.parametrize(
    "text",
    [
        "red",
        "  two  spaces ",
        "naïve 日本 🙂🏽 end",
        "line\nline\ttab",
        "\ufffd and \ufffd\ufffd",
        "שלום עולם",
        "",
        "a\x00b",
    ],
)
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    tokenizer = byte_level(("<|end|>",), ("red", "green"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    found = pieces(tokenizer, ids)
    assert len(found) == len(ids) and "".join(found) == text


def test_a_piece_is_what_its_own_token_adds() -> None:
    tokenizer = byte_level(("<|end|>",), ("red", "green"))
    ids = tokenizer.encode("red green ë!", add_special_tokens=False).ids
    assert pieces(tokenizer, ids) == ["red", " green", " ", "", "ë", "!"]
    assert specials(tokenizer) == {0: "<|end|>"}


def test_what_is_not_seen_is_shown_by_its_number_and_markup_is_escaped() -> None:
    assert visible("a\nb\t\x00\x7f\u202e\ud800<b>\"'&") == (
        "a↵\nb\u2409\u2400⟨U+007F⟩⟨U+202E⟩⟨U+D800⟩&lt;b&gt;&quot;&#x27;&amp;"
    )
    assert visible("שלום 🙂\u200d👩") == "שלום 🙂\u200d👩", "joiners shape what stands beside them"


def test_nothing_in_a_data_set_becomes_markup(written, omnikit, tmp_path, world) -> None:
    picture = tmp_path / "x\">'<script>.png"
    picture.write_bytes((world / "0.png").read_bytes())
    rows = [record([{"image": picture.name}, {"text": HOSTILE}], HOSTILE, HOSTILE) | {"kind": HOSTILE}]
    out = tmp_path / "a.html"
    assert omnikit("data", "preview", written(rows, 512), "--stage", "only", "-n", 1, "--out", out)[0] == 0
    read = Page(out.read_text())
    assert read.tags["script"] == 0 and "onerror" not in dict(read.attributes) and "<script" not in read.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", read.text)
    said = "".join(text for kind, text in read.texts)
    assert "<script>alert('1')</script>" in said and "⟨U+202E⟩evil⟨U+202C⟩" in said and "\u2400\u2407\u241b" in said
    assert picture.name in said


def test_a_long_text_is_all_there_and_the_page_stays_small(written, omnikit, tmp_path) -> None:
    words = " ".join(f"{word} & <{number}>" for number, word in enumerate(["red", "green", "blue"] * 2600))
    assert len(words) > 100_000
    out = tmp_path / "a.html"
    file = written([record(words, "red")], 120_000, config={"max_position_embeddings": 120_000})
    assert omnikit("data", "preview", file, "--stage", "only", "-n", 1, "--out", out)[0] == 0
    read = Page(out.read_text())
    tokens = read.packs[0]["tokens"]
    assert words in "".join(text for _, kinds, text in tokens if "part" not in kinds)
    assert SINGLE < len(tokens) < SINGLE + 10 and out.stat().st_size < 400_000
    # What is shown in one piece is still told apart by what is learned.
    assert [text for _, kinds, text in tokens if kinds == ["l"]] == ["red"]
    begin, end = span(tokens[SINGLE + 1][0])  # behind <|user|>
    assert begin == SINGLE + 1 and end > 30_000


# --------------------------------------------------------------------------------------------------- items as pictures


class Given(ReaderConfig):
    """Reads what the test says."""

    type: ClassVar[str] = "given"
    makes = Input
    named: tuple[str, ...] = ()
    each: int = 1

    def sizes(self, input):
        return dict.fromkeys(self.named, (1, 1, 1))

    def grids(self, medium, input):
        return [(9, 1, 1), (self.each, 1, 1)]


class Scent(Input):
    """What no one but a plugin knows of."""


def branch(input: Input, **options: Any) -> Branch:
    return Branch(Given(**options), input, None)


PIXELS = Pixels(size=8, patch=4, mean=(0.5, 0.25, 0.1), std=(0.5, 0.25, 0.2))
MEDIUM = Medium("a.png")


def drawn(item: Item, input: Input, **options: Any) -> tuple[Page, list[str], list[str]]:
    inner, words, faults = figure(item, MEDIUM, branch(input, **options), Room())
    return Page(inner), words, faults


def views(*colours: tuple[int, int, int]) -> np.ndarray:
    """Normalised views of one colour each."""
    scaled = np.array(colours, np.float32)[:, :, None, None] / 255
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (PIXELS.mean, PIXELS.std))
    return np.broadcast_to((scaled - mean) / std, (len(colours), 3, 8, 8)).astype(np.float32)


def test_a_picture_is_the_item_with_mean_and_std_undone() -> None:
    read, words, faults = drawn(Item(views((220, 30, 30), (0, 255, 128)), (2, 2, 2)), PIXELS)
    assert faults == [] and words == ["2 x 3 x 8 x 8 float32, values \N{MINUS SIGN}1 to 3"]
    first, second = read.pictures()
    assert first.shape == (8, 8, 3) and (first == (220, 30, 30)).all() and (second == (0, 255, 128)).all()


def test_pictures_come_from_the_reader_and_not_from_the_file(shown, monkeypatch) -> None:
    def corners(read: Page) -> set[tuple[int, ...]]:
        return {tuple(int(v) // 8 for v in picture[0, 0]) for picture in read.pictures()}

    red = tuple(v // 8 for v in COLOURS["red"])
    assert red in corners(shown("image")[1]) and red[::-1] != red
    from omnikit_siglip import SquareConfig

    right = SquareConfig.read

    def swapped(self, medium, input, grid):
        item = right(self, medium, input, grid)
        return Item(np.ascontiguousarray(1 - item.value * 0), item.grid)

    monkeypatch.setattr(SquareConfig, "read", swapped)
    assert corners(shown("image")[1]) == {(31, 31, 31)}, "a reader's fault is visible"


def test_values_that_make_no_picture_are_told() -> None:
    _, _, faults = drawn(Item(np.full((1, 3, 8, 8), 128, np.float32), (1, 2, 2)), PIXELS)
    assert len(faults) == 1 and "100.0% of the pixels lie outside 0 to 1" in faults[0]
    value = views((9, 9, 9)).copy()
    value[0, 0, 0, :2] = np.nan, np.inf
    read, _, faults = drawn(Item(value, (1, 2, 2)), PIXELS)
    assert faults == ["2 of 192 values are no finite numbers"] and len(read.pictures()) == 1
    for shape, grid in (((1, 8, 8, 3), (1, 2, 2)), ((2, 3, 8, 8), (1, 2, 2)), ((3, 8, 8), (1, 2, 2))):
        read, _, faults = drawn(Item(np.zeros(shape, np.float32), grid), PIXELS)
        assert faults == ["should be 1 x 3 x 8 x 8, as the encoder eats it"] and read.tags["img"] == 0


def test_views_are_named_by_what_they_are() -> None:
    square, tiles, frames = ("picture",), ("tile",), ("frame",)
    for expected, options in (
        (["whole picture"], {"named": square}),
        (["view 1", "view 2", "view 3"], {}),
        (["whole picture", "tile 1", "tile 2"], {"named": tiles}),
        (["frame 1", "frame 2", "frame 3"], {"named": frames}),
        (
            ["frame 1", "frame 1, part 1", "frame 1, part 2", "frame 2", "frame 2, part 1", "frame 2, part 2"],
            {"named": frames, "each": 3},
        ),
    ):
        assert names_of(MEDIUM, branch(PIXELS, **options), len(expected)) == expected


def test_large_views_are_shown_smaller_as_room_ends() -> None:
    large = Pixels(size=384, patch=14)
    noise = np.random.default_rng(0).uniform(-1, 1, (2, 3, 384, 384)).astype(np.float32)
    for room, side in ((Room(), 192), (Room(pictures=0), 96)):
        inner, _, _ = figure(Item(noise, (2, 27, 27)), MEDIUM, branch(large), room)
        assert [picture.shape for picture in Page(inner).pictures()] == [(side, side, 3)] * 2
    frames = np.zeros((20, 3, 384, 384), np.float32)
    assert {p.shape for p in drawn(Item(frames, (20, 27, 27)), large)[0].pictures()} == {(96, 96, 3)}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.arange(6, dtype=np.int16).reshape(2, 3), "2 x 3 int16, values 0 to 5"),
        (np.float32(2.5), "a number float32, values 2.5 to 2.5"),
        (np.full((3,), np.nan, np.float32), "3 float32"),
        (np.zeros((0, 4), np.float32), "0 x 4 of float32"),
        (np.array(["<b>", "x"]), "2 of <U3"),
        (np.array([True, False]), "2 bool, values 0 to 1"),
    ],
)
def test_an_input_that_nobody_knows_is_a_line_of_its_shape_and_values(value: Any, words: str) -> None:
    for input in (Scent(), PIXELS, Mel()):  # whatever the encoder eats, whatever came: nothing fails
        inner, said, _ = figure(Item(value, (1, 1, 1)), MEDIUM, branch(input), Room())
        assert (inner, said) == ("", [words])


# ---------------------------------------------------------------------------------------------------------------- sound


def test_a_spectrum_has_low_tones_below_and_time_to_the_right() -> None:
    value = np.full((80, 120), -1.0, np.float32)
    value[:8, :12] = 1.0  # low and early
    read, _, faults = drawn(Item(value, (60, 1, 1)), Mel())
    [picture] = read.pictures()
    bright = picture.astype(int).sum(2)
    height, width = bright.shape
    assert faults == [] and 20 <= height <= 80 and 40 <= width <= 120
    assert bright[-1, 0] == bright.max() and bright[0, 0] == bright[-1, -1] == bright[0, -1] == bright.min()
    assert (bright > bright.min()).mean() == pytest.approx(0.01, abs=0.01)
    assert "1.2 s" in read.words() and "are sound" not in read.words()
    padded = np.zeros((80, 3000), np.float32)
    assert "30.0 s, of which 1.2 s are sound" in drawn(Item(padded, (60, 1, 1)), Mel())[0].words()


def test_what_is_listened_to_is_exactly_what_is_read(tmp_path) -> None:
    rate = 16000
    time = np.arange(2 * rate) / rate
    wave = (0.5 * np.sin(2 * np.pi * (200 + 200 * time) * time)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="PCM_16")
    medium = Medium(str(tmp_path / "a.wav"), 0.5, 1.25)
    room = Room()
    item = Item(np.zeros((80, 75), np.float32), (38, 1, 1))
    inner, _, _ = figure(item, medium, branch(Mel()), room)
    [data] = re.findall(r"data:audio/flac;base64,([\w+/=]+)", inner)
    heard, heard_rate = soundfile.read(BytesIO(base64.b64decode(data)), dtype="float32")
    assert heard_rate == rate and np.array_equal(
        heard, soundfile.read(tmp_path / "a.wav", dtype="float32")[0][8000:20000]
    )
    assert (room.played, room.silent) == (1, 0) and room.sounds == Room().sounds - len(data)
    inner, _, _ = figure(item, medium, branch(Mel()), full := Room(sounds=len(data) - 1))
    assert "<audio" not in inner and full.silent == 1
    (tmp_path / "b.wav").write_bytes(b"nothing")
    assert "<audio" not in figure(item, Medium(str(tmp_path / "b.wav")), branch(Mel()), Room())[0]
    assert LARGEST <= 200_000 and SoundAlone.type == "sound_alone"


# ----------------------------------------------------------------------------------------------------------- bad things


def test_a_medium_that_cannot_be_read_is_told_in_its_place(written, omnikit, tmp_path, world) -> None:
    whole = (world / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])  # its header tells its size
    rows = [record([{"image": name}, {"text": "?"}], "red", name) for name in (str(world / "1.png"), "cut.png")]
    out = tmp_path / "a.html"
    code, told, err = omnikit("data", "preview", written(rows), "--stage", "only", "-n", 1, "--out", out)
    assert (code, err) == (0, []) and re.search(
        r"padding, (\d) samples cannot be used, \1 media cannot be read\n$", told
    )
    read = Page(out.read_text())
    reasons = [text for kind, text in read.texts if kind == "bad" and "cut.png" in text]
    assert reasons and all("sample cut.png: image: " in text for text in reasons)
    bad = sum("broken" in kinds for kinds, _, _ in read.packs[0]["bar"])
    assert (
        0 < len(reasons) == bad < len(read.packs[0]["chips"])
        and len(read.pictures()) == len(read.packs[0]["chips"]) - bad
    )
    found = json.loads(
        omnikit("data", "preview", out.with_name("recipe.yaml"), "--stage", "only", "-n", 1, "--out", out, "--json")[1]
    )
    assert len(found["unread"]) == bad and found["unread"][0]["sample"] == "cut.png"


def test_what_is_asked_wrongly_is_one_line(written, omnikit, tmp_path, world) -> None:
    file = written([record("?", "red")])
    (tmp_path / "file").write_text("")
    base = ["data", "preview", file, "--stage", "only"]
    for args, says in (
        (["data", "preview", file, "--stage", "onyl"], "--stage onyl: is no stage of the recipe; did you mean `only`?"),
        ([*base, "--out", tmp_path / "no" / "a.html"], f"there is no folder {tmp_path / 'no'}; make it"),
        ([*base, "--out", tmp_path / "file" / "a.html"], "there is no folder"),
        ([*base, "--out", tmp_path], "is a folder; name a file in it"),
        (
            [*base, "-n", 0, "--out", tmp_path / "a.html"],
            "-n 0: is no number of packs; ask for 1 or more",
        ),
        ([*base, "-n", 5, "--step", 2, "--out", tmp_path / "a.html"], "from step 2 on, stage only has 4 packs"),
        ([*base, "--step", 4, "--out", tmp_path / "a.html"], "--step 4: stage only has steps 1 to 3"),
        ([*base, "--step", 0, "--out", tmp_path / "a.html"], "--step 0: the first step is 1"),
    ):
        code, out, err = omnikit(*args)
        assert (code, out, len(err)) == (2, "", 1) and says in err[0], (err, says)
    (tmp_path / "rows.jsonl").unlink()
    code, out, err = omnikit(*base, "--out", tmp_path / "a.html")
    assert (code, out) == (2, "") and err == [
        f"data.rows: {tmp_path / 'rows.jsonl'} is not there; "
        "put it there, or name another with `--set data.rows.path=FILE`"
    ]
    assert not list(tmp_path.glob("a.html*"))


def test_a_page_that_cannot_be_made_leaves_the_old_one(written, omnikit, tmp_path, monkeypatch) -> None:
    out = tmp_path / "a.html"
    out.write_text("old")
    args = ("data", "preview", written([record("?", "red")]), "--stage", "only", "-n", 1, "--out", out)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "a.html.tmp")

    with monkeypatch.context() as patch:
        patch.setattr("omnikit.checkpoint.sync", fail)
        code, _, err = omnikit(*args)
    assert (code, err, out.read_text()) == (2, ["a.html.tmp: No space left on device"], "old")
    assert omnikit(*args)[0] == 0 and out.read_text().startswith("<!doctype html>")


def test_the_page_needs_nothing_from_elsewhere(shown) -> None:
    _, read = shown("omni")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]*", "", read.text))
    assert read.tags["link"] == read.tags["script"] == read.tags["iframe"] == 0
    assert all(value.startswith("data:") for name, value in read.attributes if name == "src")
    assert all(value.startswith("#p") for name, value in read.attributes if name == "href")
    assert ("http-equiv", "Content-Security-Policy") in read.attributes
    anchors = [value for name, value in read.attributes if name == "id"]
    assert len(anchors) == len(set(anchors)) > 0
    assert {value[1:] for name, value in read.attributes if name == "href"} <= set(anchors)


def test_a_preview_counts_what_it_shows(shown) -> None:
    found, read = shown("omni", packs=5)
    numbers = summary(found)
    assert numbers["samples"] == sum(pack["samples"] for pack in numbers["packs"]) == read.tags["article"]
    assert numbers["tokens"] == sum(one.end - one.start for row in found.rows for one in row.segments)
    assert sum(numbers["media"].values()) == sum(len(pack["chips"]) for pack in read.packs) == read.tags["figure"]
