"""Rows, definitions and runs that are odd: each costs itself alone, and nothing is taken for something else."""

import datetime
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from omnikit import generate
from omnikit.checkpoint import RunFolder
from omnikit.cli import main
from omnikit.evaluate import defined, running
from omnikit.evaluate.columns import checked_operation
from omnikit.evaluate.judges import JudgeRefused
from omnikit.evaluate.results import Key, Store
from omnikit.evaluate.running import Asked, evaluate

GOOD = {"id": "good", "numbers": ["1", "2"], "larger": "B"}
ABOUT = {
    "title": "Larger number",
    "modality": "text",
    "data": {"layout": "jsonl", "files": "*.jsonl"},
    "fetch": "give the folder",
    "id": "{id}",
    "prompt": "Which?\n{_choices}",
    "choices": "numbers",
    "reference": "larger",
    "metric": {"name": "choice", "options": {"by": "text"}},
    "cite": "nobody",
}


@pytest.fixture
def asked(tmp_path):
    """asked(row, ..., key=value, ...) -> the benchmark with these keys, of a good row and these."""

    def make(*rows, **keys):
        (folder := tmp_path / "data").mkdir()
        (file := tmp_path / "numbers.yaml").write_text(yaml.safe_dump({**ABOUT, **keys}))
        (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (GOOD, *rows)))
        return Asked(defined(file)(), folder)

    return make


class Run:
    """Says B."""

    def answer(self, samples, *, max_tokens):
        return ["B" for _ in samples]


class Judge:
    """Finds all right."""

    model = "kind"

    def ask(self, messages, temperature=0.0):
        return "1.0"


# ---------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(("name", "at"), [(".", ""), ("..", "data/")])
def test_no_row_shows_a_file_outside_of_a_folder_that_is_named_by_dots(asked, tmp_path, monkeypatch, name, at):
    secret = tmp_path.parent / f"secret-{tmp_path.name}"
    secret.write_bytes(b"x")
    rows = [{**GOOD, "file": file} for file in (f"{'../' * 20}{secret}", f"../{'' if at else '../'}{secret.name}")]
    found = asked(
        *rows,
        {**GOOD, "file": f"{at}numbers.jsonl"},
        media=[{"modality": "image", "path": "{file}"}],
        data={"layout": "jsonl", "files": f"{at}*.jsonl"},
    )
    monkeypatch.chdir(tmp_path / "data")
    questions = found.benchmark.questions(Path(name))
    for number in (1, 2):
        with pytest.raises(ValueError, match="which leads out of the data's folder"):
            _ = questions[number]
    assert questions[3].sample.turns[0].content[0][0] == "image"
    assert found.benchmark.fingerprint(Path(name)) == found.benchmark.fingerprint(Path(name).absolute())


@pytest.mark.parametrize("choices", ["12", 5, {"a": 1, "b": 2}, 2.5, True])
def test_choices_that_are_no_list_cost_their_question_alone(asked, tmp_path, choices):
    found = evaluate(Run(), asked({**GOOD, "id": "odd", "numbers": choices}), "w", tmp_path / "out").score
    assert found["questions"] == 1 and "row 2: numbers is " in found["left_out"][0]["why"]
    assert found["left_out"][0]["why"].endswith("; a list of choices is needed")


def test_half_a_character_in_a_row_ends_no_evaluation(asked, tmp_path):
    row = {**GOOD, "id": "half \ud83d", "kind": "\ud83d"}
    whole = asked(row, {**GOOD, "id": "odd \ud83d", "kind": "x", "numbers": 1}, present=["kind"], category="{kind}")
    for _ in range(2):  # and what was kept of it is read again
        found = evaluate(Run(), whole, "w", tmp_path / "out")
        assert (found.score["value"], found.score["questions"]) == (100, 1)
    assert json.loads((found.folder / "answers.jsonl").read_text().splitlines()[0])["id"] == "half ?"


@pytest.mark.parametrize("second", [10**400, "soon", [1]], ids=["large", "word", "list"])
def test_seconds_that_are_none_cost_their_question_alone(asked, tmp_path, second):
    media = [{"modality": "audio", "path": "numbers.jsonl", "start": "from"}]
    rows = asked({**GOOD, "from": 1}, {**GOOD, "id": "odd", "from": second}, media=media, present=["from"])
    found = evaluate(Run(), rows, "w", tmp_path / "out").score
    assert found["questions"] == 1 and "seconds are needed" in found["left_out"][0]["why"]


def test_a_name_of_a_file_that_goes_on_for_ever_is_cut(asked):
    rows = asked({**GOOD, "file": "a" * 5000}, media=[{"modality": "image", "path": "{file}"}])
    with pytest.raises(ValueError, match="its image is not there") as refused:
        _ = rows.benchmark.questions(rows.folder)[1]
    assert len(str(refused.value).replace(str(rows.folder), "")) < 300


# --------------------------------------------------------------------------------------------------------------- judges


def test_a_row_that_the_judge_cannot_be_asked_about_costs_itself_alone(asked, tmp_path):
    found = asked({**GOOD, "id": "odd", "larger": 7}, metric={"name": "mmvet"}, choices=[])
    score = evaluate(Run(), found, "w", tmp_path / "out", Judge()).score
    assert (score["value"], score["questions"]) == (100, 1)
    assert score["left_out"] == [{"id": "odd", "why": "odd: the reference 7 is no text", "kind": "not graded"}]


def test_a_judge_that_is_wrongly_named_ends_the_evaluation(asked, tmp_path):
    class Nobody(Judge):
        def ask(self, messages, temperature=0.0):
            raise JudgeRefused("judge: HTTP 404: check the address")

    with pytest.raises(ValueError, match="HTTP 404"):
        evaluate(Run(), asked(metric={"name": "mmvet"}, choices=[]), "w", tmp_path / "out", Nobody())
    assert [*(tmp_path / "out").rglob("answers.jsonl")], "what was answered is kept"


# ---------------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        ({"remainder": {"of": "a", "by": 0}}, "remainder needs under by a whole number from 1, not 0"),
        ({"remainder": {"of": "a", "by": "x"}}, "remainder needs under by a whole number from 1, not 'x'"),
        ({"split": {"of": "a", "by": "", "at": 0}}, "split needs under by a text that holds something, not ''"),
        ({"split": {"of": "a", "by": "_", "at": "x"}}, "split needs under at a whole number, not 'x'"),
        ({"split": {"of": "a", "by": "_", "at": True}}, "split needs under at a whole number, not True"),
        ({"replace": {"of": "a", "old": 1, "new": "b"}}, "replace needs under old a text that holds something, not 1"),
        ({"replace": {"of": "a", "old": "", "new": "b"}}, "replace needs under old a text that holds something, not"),
        ({"replace": {"of": "a", "old": "b", "new": 2}}, "replace needs under new a text, not 2"),
        ({"map": {"of": "a", "to": ["7"]}}, "map needs under to a mapping, not ['7']"),
        ({"place": {"of": ["a"], "value": "a"}}, "place needs under of the name of a column, not ['a']"),
        ({"field": {"of": "a", "name": ["b"]}}, "field needs under name the name of an entry, not ['b']"),
        ({"case": [{"when": ["x"], "text": "x"}]}, "case needs a list of {when: {column: value}, text: template}"),
    ],
)
def test_what_an_operation_cannot_do_is_said_with_the_definition(operation, words):
    with pytest.raises(ValueError, match=r".") as refused:
        checked_operation(operation)
    assert words in str(refused.value)


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def omnikit(capsys):
    """omnikit(*arguments) -> (exit code, stdout, lines of stderr)."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err.splitlines()

    return call


def test_two_definitions_of_one_name_are_refused(omnikit, asked, tmp_path):
    first = type(asked().benchmark).file
    (other := tmp_path / "other").mkdir()
    (second := other / "numbers.yaml").write_text(first.read_text())
    code, out, err = omnikit("eval", "run", "--bench", first, "--bench", second)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0] == f"--bench {second}: is called numbers, as --bench {first} is; give one of the files another name"
    twice = omnikit("eval", "run", "--bench", first, "--bench", first, "--data", f"numbers={tmp_path / 'data'}")
    assert twice[2][-1].startswith("run: holds no run"), "one that is named twice is asked once"


def test_a_terminal_that_cannot_write_a_character_gets_the_scores_all_the_same(asked, monkeypatch):
    outcome = running.Outcome({"title": "\u8003", "left_out": []}, Path("x"), [])
    monkeypatch.setattr("omnikit.evaluate.running.evaluate", lambda *_: outcome)
    monkeypatch.setattr("omnikit.generate.Run.load", lambda *_: SimpleNamespace(checkpoints=["a"]))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    found = asked()
    with pytest.raises(SystemExit) as left:
        main(["eval", "run", "--bench", str(type(found.benchmark).file), "--data", f"numbers={found.folder}", "--json"])
    sys.stdout.flush()
    assert not left.value.code and b'"title": "?"' in sys.stdout.buffer.getvalue()


def test_answers_are_kept_by_the_checkpoints_that_were_loaded(
    omnikit, asked, recipe_of, parts, watched, tmp_path, monkeypatch
):
    """The run is being trained meanwhile: behind what was loaded there is a newer checkpoint."""
    tables = {"modalities": {"image": parts.modalities["image"]}, "encoders": {"vision": parts.encoders["vision"]}}
    recipe = recipe_of({"image": parts.stage({"image": 1}, {"rest": 1e-2}, steps=2)}, run={"save": 1}, **tables)
    folder = watched(recipe, tmp_path / "run", window=16).run.path
    *_, before, newest = sorted(path for path in folder.rglob("step-*") if path.is_dir())
    arguments = ("eval", folder, "--bench", type(asked().benchmark).file, "--data", f"numbers={tmp_path / 'data'}")

    def key():
        code, out, err = omnikit(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)["scores"][0]["key"]["run"]

    of_newest = key()
    newest.rename(hidden := tmp_path / "hidden")
    inherit = generate.inherit

    def meanwhile(model, checkpoints):
        inherit(model, checkpoints)
        hidden.rename(newest)

    with monkeypatch.context() as patch:
        patch.setattr("omnikit.generate.inherit", meanwhile)
        of_before = key()
    assert RunFolder(folder).latest("image").folder == newest and before.is_dir()
    assert of_before != of_newest and key() == of_newest


def test_of_what_is_not_json_the_text_is_kept(tmp_path):
    store = Store(tmp_path, Key("b", "r", "d", "d", "0", None))
    with store.alone():
        store.write([{"reference": datetime.date(2026, 1, 2)}], {"value": 1.0})
    assert json.loads((store.folder / "grades.jsonl").read_text()) == {"reference": "2026-01-02"}
