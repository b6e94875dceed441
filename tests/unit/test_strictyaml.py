"""The strict YAML reader: what it takes for what, what it refuses and how it says so, and that its writer agrees."""

import copy
import math
import os
import time
from pathlib import Path

import pytest

from omnikit.strictyaml import RecipeError, Table, Text, read_file, read_text, write


def read(text: str):
    return read_text(text, "r.yaml", Path("/folder"))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("off", "off"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("1e-3", 0.001),
        ("2e-5", 2e-5),
        ("-1.5E+3", -1500.0),
        ("1.", 1.0),
        (".5", 0.5),
        (".inf", math.inf),
        ("12", 12),
        ("-7", -7),
        ("012", "012"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-31", "2024-01-31"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("~", None),
        ("", None),
        ("null", None),
        ("=", "="),
        ("9" * 5000, "9" * 5000),
        ("[1, two, 3e0]", [1, "two", 3.0]),
    ],
)
def test_scalars_mean_what_they_say(text, value):
    found = read(f"key: {text}\n")["key"]
    assert (found, type(found) if not isinstance(found, str) else str) == (value, type(value))


def test_nan_is_a_number_for_the_schema_to_refuse():
    assert math.isnan(read("a: .nan")["a"])


def test_every_key_knows_its_line_and_every_string_its_folder():
    table = read("a: 1\nb:\n  c: word\n  d: [x]\n")
    assert str(table.places["b"]) == "r.yaml:2"
    assert str(table["b"].places["d"]) == "r.yaml:4"
    assert isinstance(table["b"], Table) and isinstance(table["b"]["c"], Text)
    assert table["b"]["c"].folder == table["b"]["d"][0].folder == Path("/folder")


REFUSED = {
    "equal keys": ("a: 1\nb: 2\na: 3", "r.yaml:3: the key 'a' again (first in line 1)"),
    "equal keys, inner": ("s:\n  a: 1\n  a: 2", "r.yaml:3: the key 'a' again (first in line 2)"),
    "tag, python": ("a: !!python/object/apply:os.system ['true']", "r.yaml:1: the tag !!python/object/apply:os.system"),
    "tag, own": ("a: !path x", "the tag !path"),
    "tag, plain": ("a: !!str 1", "the tag !!str"),
    "tag, lone": ("a: ! 1", "the tag !"),
    "anchor": ("a: &x 1", "the anchor &x; write the value out, or use `extends`"),
    "alias": ("a: &x 1\nb: *x", "r.yaml:2: the alias *x"),
    "merge key": ("a: {<<: {b: 1}}", "the merge key <<"),
    "number as key": ("1: a", "the key 1 is no word"),
    "boolean as key": ("true: a", "the key True is no word"),
    "null as key": ("~: a", "the key None is no word"),
    "list as key": ("? [a, b]\n: 1", "is no word"),
    "two documents": ("a: 1\n---\nb: 2", "r.yaml:2: a second document"),
    "directive": ("%YAML 1.1\n---\na: 1", "a % directive"),
    "too deep, flow": ("a: " + "[" * 200, "more than 40 levels deep"),
    "too deep, block": ("- " * 200, "more than 40 levels deep"),
    "control character": ("a: 'x\x07'", "control character"),
    "control character, escaped": ('a: "\\x1b[31m"', "the control character U+001B"),
    "null byte, escaped": ('a: "\\0"', "the control character U+0000"),
    "half a pair": ('a: "\\ud800"', "the control character U+D800"),
    "beyond Unicode": ('a: "\\UFFFFFFFF"', "is no Unicode character"),
    "lone star": ("*: frozen", "the rule for all the rest is"),
    "tab": ("a:\n\tb: 1", "indent with spaces"),
    "colon in value": ("a: b: c", "r.yaml:1: not valid YAML: mapping values are not allowed here; put a value"),
    "open bracket": ("a: [1, 2", "not valid YAML"),
    "open quote": ("a: 'b", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "expected"), REFUSED.values(), ids=REFUSED)
def test_refused(text, expected):
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert expected in str(caught.value)
    assert all(message.startswith("r.yaml:") and "\n" not in message for message in caught.value.messages)


def test_all_faults_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        read("a: &x 1\na: 2\n3: *x\nb: !t 1\n")
    assert [message.split(": ")[0] for message in caught.value.messages] == [f"r.yaml:{n}" for n in (1, 2, 3, 3, 4)]


def test_many_faults_are_counted_not_poured_out():
    with pytest.raises(RecipeError) as caught:
        read("a: 1\n" * 1000)
    assert len(caught.value.messages) == 999
    assert str(caught.value).count("\n") == 50 and str(caught.value).endswith("and 949 more")


def test_errors_survive_copying():
    """As between processes: both go through __reduce__."""
    error = RecipeError(["a: b", "c: d"])
    assert copy.copy(error).messages == error.messages


LAUGHS = "a: &a [lol]\n" + "".join(
    f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BOMBS = {
    "billion laughs": LAUGHS,
    "brackets": "[" * 250_000,
    "dashes": "- " * 125_000,
    "questions": "? " * 125_000,
    "braces": "{a: " * 60_000,
    "anchors": "&a " * 80_000,
    "bangs": "!" * 250_000,
    "equal keys": "a: 1\n" * 50_000,
    "open list": "[" + "1," * 120_000,
    "one word": "a" * 250_000,
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_soon(text):
    before = time.process_time()
    try:
        assert not isinstance(read(text), Table)
    except RecipeError:
        pass
    assert time.process_time() - before < 8  # about 1 s; the bound is for a machine that is busy with more


def test_files(tmp_path):
    def refused(path, expected):
        with pytest.raises(RecipeError) as caught:
            read_file(path)
        assert str(caught.value).startswith(str(path)) and expected in str(caught.value)

    def file(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    refused(tmp_path / "none.yaml", "no such file")
    refused(tmp_path, "is a folder")
    refused(tmp_path / ("x" * 400), "cannot be read")
    refused(file("empty.yaml", b""), "the file is empty")
    refused(file("comment.yaml", b"# only this\n"), "the file is empty")
    refused(file("list.yaml", b"[a, b]"), "holds no mapping")
    refused(file("latin.yaml", "a: 1\nb: \xe9".encode("latin-1")), ":2: is not UTF-8")
    refused(file("utf16.yaml", "a: 1".encode("utf-16")), "is not UTF-8")
    refused(file("nul.yaml", b"a: \x00"), "control character")
    refused(file("big.yaml", b"# " + b"x" * 2_000_000), "is larger than")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is no regular file")  # and does not wait for a writer
    assert read_file(file("bom.yaml", b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")) == {"a": 1, "b": 2}


def test_a_path_with_a_nul_is_refused():
    with pytest.raises(RecipeError, match="cannot be read"):
        read_file("a\0b")


@pytest.mark.parametrize(
    "word", ["off", "1e-3", "", "null", "012", "0x1", "true", "~", "2024-01-31", "a: b", "# x", "*"]
)
def test_written_strings_stay_strings(word):
    assert read(write({"key": word, word or "empty": [word]})) == {"key": word, word or "empty": [word]}


def test_short_mappings_are_written_on_one_line():
    value = {"a": {"type": "siglip", "rates": [1e-5, 2]}, "b": {str(n): "x" * 20 for n in range(9)}, "c": {}}
    text = write(value)
    assert text.splitlines()[0] == "a: {type: siglip, rates: [1e-05, 2]}"
    assert len(text.splitlines()) == 12 and read(text) == value
