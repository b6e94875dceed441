"""Every shape of record that people have becomes the same Sample, or one line that names the record."""

import base64
import json

import pytest

from omnikit.builtin.sources import Jsonl
from omnikit.component import Medium, Records, Turn
from omnikit.registry import Registry

ASK, ANSWER = {"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a cat"}
PNG = b"\x89PNG\r\n\x1a\n..."
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.fixture
def opened(tmp_path):
    """opened(records, **options) -> the opened source of these records, one a line."""

    def call(records, **options):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return Jsonl(path=str(path), **{"modalities": ("image", "video", "audio"), **options}).open()

    return call


@pytest.fixture
def one(opened, tmp_path):
    """one(record, **options) -> its turns as (role, part, part, ...), paths without their folder."""

    def shown(name, value):
        if not isinstance(value, Medium):
            return value
        if isinstance(value.source, bytes):
            return name, value.source
        return (name, value.source.removeprefix(f"{tmp_path}/"), *([value.start] if value.start else []))

    def call(record, **options):
        [sample] = opened([record], **options)
        return [(turn.role, *(shown(name, value) for name, value in turn.content)) for turn in sample.turns]

    return call


def typed(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "a cat"}]}


CAT = [("user", ("image", "a.png"), "what is it?"), ("assistant", "a cat")]
TEXT = {"type": "text", "text": "what is it?"}
SHAPES = {
    "llava": {"id": 1, "image": "a.png", "conversations": [ASK, ANSWER], "model": ""},
    "llava, a list": {"image": ["a.png"], "conversations": [ASK, ANSWER]},
    "sharegpt with images": {"images": ["a.png"], "conversations": [ASK, ANSWER]},
    "llama-factory's messages": {
        "images": ["a.png"],
        "messages": [{"role": "user", "content": "<image>what is it?"}, {"role": "assistant", "content": "a cat"}],
    },
    "no placeholder": {"image": "a.png", "conversations": [{"from": "human", "value": "what is it?"}, ANSWER]},
    "openai": typed({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, TEXT),
    "image_url is a text": typed({"type": "image_url", "image_url": "a.png"}, TEXT),
    "qwen": typed({"type": "image", "image": "a.png", "min_pixels": 3136}, TEXT),
    "qwen, old": typed({"image": "a.png"}, {"text": "what is it?"}),
    "transformers": typed({"type": "image", "path": "a.png"}, TEXT),
    "trl": typed({"type": "image", "index": 0, "text": None}, {**TEXT, "index": None}) | {"images": ["a.png"]},
    "question and answer": {"image": "a.png", "question": "what is it?", "answer": "a cat", "split": "train"},
    "caption": {"image": "a.png", "caption": "a cat"},
    "text": {"image": {"path": "a.png"}, "text": "a cat"},
    "turns": {
        "turns": [
            {"role": "user", "content": [{"image": "a.png"}, {"text": "what is it?"}]},
            {"role": "assistant", "content": "a cat"},
        ]
    },
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_becomes_the_same_turns(one, name):
    assert one(SHAPES[name], prompt="what is it?") == CAT


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["llava", "llava, a list"], "llava conversations, 2 records"),
        (["sharegpt with images"], "sharegpt conversations, 1 record"),
        (["openai", "trl", "qwen"], "openai messages, 3 records"),
        (["question and answer"], "questions and answers, 1 record"),
        (["caption", "text"], "captions, 2 records"),
        (["turns"], "omnikit turns, 1 record"),
    ],
)
def test_it_says_which_shape_was_seen(opened, names, words):
    data = opened([SHAPES[name] for name in names])
    assert isinstance(data, Records) and data.described() == words


def test_media_stand_where_their_placeholders_stand(one):
    turns = [
        {"from": "human", "value": "first <image> then\n<image>\nand <video>: compare"},
        ANSWER,
        {"from": "human", "value": "<audio>"},
        ANSWER,
    ]
    assert one({"image": ["a", "b"], "video": "c", "sound": "d", "conversations": turns}) == [
        ("user", "first ", ("image", "a"), " then", ("image", "b"), "and ", ("video", "c"), ": compare"),
        ("assistant", "a cat"),
        ("user", ("audio", "d")),
        ("assistant", "a cat"),
    ]


def test_the_tag_of_a_modality_that_the_source_has_not_is_text(one):
    said = [{"from": "human", "value": "what does <video> do in HTML?"}, ANSWER]
    assert one({"conversations": said}, modalities=("image",))[0] == ("user", "what does <video> do in HTML?")


def test_a_part_may_name_the_number_of_its_picture(one):
    record = typed({"type": "image", "index": 1}, {"type": "image", "index": 0}) | {"images": ["a", "b"]}
    assert one(record)[0] == ("user", ("image", "b"), ("image", "a"))


def test_roles_have_other_names_and_a_system_text_of_its_own(one):
    turns = [{"role": "human", "content": "hello"}, {"role": "model", "content": "hi"}]
    assert one({"system": "Be brief.", "conversations": turns}) == [
        ("system", "Be brief."),
        ("user", "hello"),
        ("assistant", "hi"),
    ]
    said = [{"from": "system", "value": "Be long."}, *turns]
    assert one({"system": "Be brief.", "conversations": said})[0] == ("system", "Be long.")


def test_media_are_bytes_when_they_are_written_as_such(one):
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}}
    film = {"type": "video_url", "video_url": {"url": "file://" + "/films/a.mp4"}}
    assert one(typed({"type": "image_url", "image_url": {"url": DATA}}, sound, film))[0] == (
        "user",
        ("image", PNG),
        ("audio", b"RIFF"),
        ("video", "/films/a.mp4"),
    )


def test_columns_name_what_is_called_otherwise(one, opened):
    record = {"key": 7, "picture": "a.png", "text": "not this", "alt": "a cat", "image": 17}
    columns = {"id": "key", "image": "picture", "caption": "alt"}
    assert one(record, columns=columns, prompt="what is it?") == CAT
    assert opened([record], columns=columns)[0].id == "7"
    record = {"instruction": "what is it?", "output": "a cat", "images": ["a.png"]}
    assert one(record, columns={"question": "instruction", "answer": "output"}) == CAT


def test_a_plugins_modality_has_columns_and_placeholders_too(one):
    said = [{"from": "human", "value": "<pulse> how fast?"}, ANSWER]
    found = one({"pulses": ["p.bin"], "conversations": said}, modalities=("pulse",))
    assert found[0] == ("user", ("pulse", "p.bin"), " how fast?")


def test_media_begin_in_the_folder_that_is_given(opened, tmp_path):
    [sample] = opened([SHAPES["llava"]], media=str(tmp_path / "pictures"))
    assert sample.turns[0].content[0] == ("image", Medium(str(tmp_path / "pictures/a.png")))


BAD = {
    "too few pictures": ({"conversations": [ASK, ANSWER]}, "has 1 placeholders for image and 0 of them"),
    "too many": ({"image": ["a", "b"], "conversations": [ASK, ANSWER]}, "has 1 placeholders for image and 2 of them"),
    "an address": (
        typed({"type": "image_url", "image_url": {"url": "https://host/a.png"}}),
        r"turn 1: image: is an address \(https://host/a.png\); nothing is fetched while training",
    ),
    "no medium": ({"img": "a.png", "caption": "a cat"}, "has a caption but no medium that it is of; name its column"),
    "an address beside": ({"image": "http://host/a", "caption": "a"}, "image: is an address"),
    "s3": ({"image": "s3://bucket/a", "caption": "a"}, "image: is an address"),
    "broken base64": ({"image": "data:image/png;base64,abc", "caption": "a"}, "image: is a data: address that is no"),
    "broken sound": (typed({"type": "input_audio", "input_audio": {"data": "%"}}), "turn 1: audio: is no base64"),
    "undeclared": ({"depth": "a.png", "caption": "a", "image": 3}, "image: write a path"),
    "no answer": ({"conversations": [ASK], "image": "a"}, "has no assistant turn"),
    "empty answer": ({"image": "a", "caption": " "}, "turn 2: the assistant's answer is empty"),
    "two answers": ({"image": "a", "question": "?", "answer": ["a", "b"]}, "question and answer are str and list"),
    "a tool": ({"messages": [{"role": "tool", "content": "a"}]}, r"turn 1: has no role that is known \('tool'\)"),
    "no content": ({"messages": [{"role": "user", "content": None}]}, "turn 1: content is neither a text nor a list"),
    "another part": (typed({"type": "file", "file": "a"}), "turn 1: modality 'file' is not one of the source's"),
    "no part": (typed("hello"), "turn 1: a part is 'hello'"),
    "half a character": ({"image": "a", "caption": "\ud83d"}, "turn 2: text holds half a character"),
    "film as frames": ({"video": [["a", "b"]], "caption": "a"}, "video: write a path"),
    "a number beyond": (
        typed({"type": "image", "index": 3}) | {"images": ["a"]},
        r"shows image number 3 of 1; they count from 0",
    ),
    "nobody to show it": ({"image": "a", "messages": [{"role": "assistant", "content": "a"}]}, "no turn of the user"),
    "unknown": ({"prompt": "a", "completion": "b"}, r'has no list "turns", nor .*it has prompt, completion'),
    "text for bytes": ({"image": {"bytes": "abc"}, "caption": "a"}, "image: write a path"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_one_line_that_names_it(opened, name):
    record, message = BAD[name]
    data = opened([record])
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}") as told:
        data[0]
    assert "\n" not in str(told.value)


def test_an_undeclared_modality_is_not_left_out_without_a_word(opened):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: modality 'image' is not one of the source's \(audio\)"):
        opened([SHAPES["llava"]], modalities=("audio",))[0]


def test_the_first_records_agree_on_one_shape(opened):
    data = opened([SHAPES["llava"], SHAPES["openai"]])
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: is a record of messages, but .*rows\.jsonl:1 one of conv"):
        data[0]


def test_a_later_record_of_another_shape_is_a_bad_record(opened):
    data = opened([SHAPES["llava"]] * 150 + [SHAPES["openai"], SHAPES["llava"]])
    assert data.described() == "llava conversations, 152 records"
    with pytest.raises(ValueError, match=r"rows\.jsonl:151: is a record of messages; the source holds conversations"):
        data[150]
    assert data[151].turns and data[-1] == data[151]


def test_bad_records_among_the_first_do_not_hide_the_shape(opened):
    data = opened([{"a": 1}, {"image": "a", "conversations": 3}, SHAPES["llava"]])
    assert data.described() == "llava conversations, 3 records" and data[2].turns[1] == Turn(
        "assistant", (("text", "a cat"),)
    )


def test_a_source_without_a_usable_record_says_what_is_wrong_with_the_first(opened):
    data = opened([{"a": 1}, {"b": 2}])
    with pytest.raises(ValueError, match=r'rows\.jsonl:1: has no list "turns".*it has a'):
        data.described()


def test_a_column_that_is_not_there_is_named_with_those_that_are(opened):
    data = opened([{"image": "a", "alt": "x"}], columns={"caption": "alternative"})
    with pytest.raises(ValueError, match=r"columns: caption: none of the first 1 records has 'alternative'; they have"):
        data[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"captoin": "a"}}, "columns: 'captoin' is none of our names; did you mean 'caption'"),
        ({"columns": {"audio": "a"}}, "columns: modality 'audio' is not in `modalities`; add it"),
        ({"path": "https://host/a.jsonl"}, "https:// is an address; give the path of files on this machine"),
        ({"path": "pipe:cat a"}, "pipe: is an address"),
    ],
)
def test_bad_options_are_refused_when_they_are_read(options, message):
    with pytest.raises(ValueError, match=message):
        Jsonl.model_validate({"path": "a.jsonl", "modalities": ("image",), **options})


def test_all_formats_are_registered():
    for name in ("jsonl", "parquet", "hf_dataset", "webdataset", "folder"):
        assert Registry.load().get("source", name).type == name
