"""The runner and `omnikit eval`: resuming, what is left out, definitions that are wrong, and the messages."""

import json
import math
from pathlib import Path

import pytest

from omnikit.component import BenchmarkConfig
from omnikit.evaluate import defined, running
from omnikit.evaluate.columns import OPERATIONS, filled
from omnikit.evaluate.definition import Files, read_definition
from omnikit.evaluate.judges import JudgeFailed
from omnikit.evaluate.running import Asked
from omnikit.evaluate.tables import opened
from omnikit.weights import fetched

ROOT = Path(__file__).parents[2]
NUMBERS = """
title: Larger number
modality: text
data: {layout: jsonl, files: "*.jsonl"}
fetch: "give the folder of numbers.jsonl"
columns: {letter: {place: {of: numbers, value: larger}}}
id: "{id}"
prompt: |-
  Which number is larger?
  {_choices}
choices: numbers
reference: letter
metric: {name: choice, options: {by: text}}
cite: nobody
"""


@pytest.fixture(autouse=True)
def chunks_of_two(monkeypatch):
    monkeypatch.setattr(running, "CHUNK", 2)


@pytest.fixture
def numbers(tmp_path):
    """numbers(rows, old=new, ...) -> (the benchmark of NUMBERS with these texts changed, the folder of its data)."""

    def make(rows=5, **changes):
        text = NUMBERS
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        file, folder = tmp_path / "numbers.yaml", tmp_path / "data"
        file.write_text(text, encoding="utf-8")
        folder.mkdir(exist_ok=True)
        found = [{"id": str(n), "numbers": [str(n), str(n + 1)], "larger": str(n + 1)} for n in range(rows)]
        (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
        return defined(file)(), folder

    return make


class Run:
    """Says B, until it is killed or comes to a question that it cannot take."""

    def __init__(self, killed_at=math.inf, refuses=()):
        self.killed_at, self.refuses, self.asked = killed_at, refuses, []

    def answer(self, samples, *, max_tokens):
        for sample in samples:
            if sample.id in self.refuses:
                raise ValueError(f"sample {sample.id}: has 900 tokens, more than a pack of 48")
        self.asked += [sample.id for sample in samples]
        if len(self.asked) > self.killed_at:
            raise KeyboardInterrupt
        return [f"B, says {sample.id}" for sample in samples]


def evaluate(*arguments):
    outcome = running.evaluate(*arguments)
    return {**outcome.score, "folder": str(outcome.folder)}


def files_of(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# ------------------------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("torn", [b"", b'{"id": "2", "answer": "B, sa', b'{"id": "2", "answer": "B, says 2"}\n'])
def test_a_killed_evaluation_goes_on_and_gives_the_same_bytes(numbers, tmp_path, torn):
    benchmark, folder = numbers()
    whole = evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Run(killed_at=3), Asked(benchmark, folder), "w", tmp_path / "cut")
    (kept,) = (tmp_path / "cut").iterdir()
    assert len((kept / "answers.jsonl").read_text().splitlines()) == 2 and not (kept / "score.json").exists()
    with (kept / "answers.jsonl").open("ab") as file:
        file.write(torn)
    again = Run()
    found = evaluate(again, Asked(benchmark, folder), "w", tmp_path / "cut")
    assert again.asked == ["2", "3", "4"], "what was answered is not asked again"
    assert files_of(found["folder"]) == files_of(whole["folder"])
    nobody = Run()
    assert evaluate(nobody, Asked(benchmark, folder), "w", tmp_path / "cut")["value"] == 100 and nobody.asked == []


def test_answers_are_kept_by_run_data_definition_and_limit(numbers, tmp_path):
    benchmark, folder = numbers()
    first = evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "out")
    folders = {first["folder"]}
    for run, limit, rows, change in (
        ("v", None, 5, {}),
        ("w", 3, 5, {}),
        ("w", None, 6, {}),
        ("w", None, 5, {"Which": "What"}),
    ):
        benchmark, folder = numbers(rows, **change)
        folders.add(evaluate(Run(), Asked(benchmark, folder, limit), run, tmp_path / "out")["folder"])
    assert len(folders) == 5
    benchmark, folder = numbers(5, **{"cite: nobody": "cite: nobody # but"})
    assert evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "out")["folder"] == first["folder"]


def test_two_at_once_are_refused(numbers, tmp_path):
    benchmark, folder = numbers()

    class Impatient(Run):
        def answer(self, samples, *, max_tokens):
            evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "out")

    with pytest.raises(ValueError, match="another process evaluates into it"):
        evaluate(Impatient(), Asked(benchmark, folder), "w", tmp_path / "out")


def test_damaged_answers_are_named(numbers, tmp_path):
    benchmark, folder = numbers()
    found = evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "out")
    path = Path(found["folder"]) / "answers.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"id"', b'"di"', 1))
    with pytest.raises(ValueError, match=r"answers\.jsonl: is damaged"):
        evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------------ left out


def test_a_limit_is_said(numbers, tmp_path):
    benchmark, folder = numbers()
    found = evaluate(Run(), Asked(benchmark, folder, 3), "w", tmp_path / "out")
    assert (found["questions"], found["of"], found["notes"]) == (3, 5, ["limited to 3 of 5 questions"])
    more = evaluate(Run(), Asked(benchmark, folder, 50), "w", tmp_path / "out")
    assert (more["questions"], more["notes"]) == (5, [])


def test_a_limit_counts_groups_and_takes_them_whole(registry, tmp_path):
    benchmark = registry.get("benchmark", "mmbench_en")()
    run = Run()
    found = evaluate(run, Asked(benchmark, benchmark.specimen(), 2), "w", tmp_path)
    assert run.asked == ["0", "1000000", "1", "1000001"] and found["notes"] == ["limited to 4 of 6 questions"]


def test_a_question_that_cannot_be_asked_does_not_spoil_the_others(numbers, tmp_path):
    benchmark, folder = numbers()
    run = Run(refuses=("1", "4"))
    found = evaluate(run, Asked(benchmark, folder), "w", tmp_path / "out")
    assert run.asked == ["0", "2", "3"] and (found["value"], found["questions"]) == (100, 3)
    assert found["notes"] == ["2 not asked, which do not count"]
    assert found["left_out"][0] == {
        "id": "1",
        "why": "sample 1: has 900 tokens, more than a pack of 48",
        "kind": "not asked",
    }
    assert len((Path(found["folder"]) / "answers.jsonl").read_text().splitlines()) == 5


def test_where_none_of_the_first_can_be_asked_the_reason_is_said_and_nothing_kept(numbers, tmp_path):
    benchmark, folder = numbers()
    with pytest.raises(ValueError, match="none of its first 2 questions can be asked: sample 0: has 900 tokens"):
        evaluate(Run(refuses=("0", "1", "2")), Asked(benchmark, folder), "w", tmp_path / "out")
    assert not [*(tmp_path / "out").rglob("answers.jsonl")]


def test_missing_media_are_listed(numbers, tmp_path):
    media = 'media: [{modality: image, path: "{id}.png"}]\ncite: nobody'
    benchmark, folder = numbers(**{"cite: nobody": media})
    for name in ("0", "1", "3", "4"):
        (folder / f"{name}.png").write_bytes(b"x")
    found = evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "out")
    assert found["questions"] == 4
    why = found["left_out"][0]["why"]
    assert "numbers.jsonl: row 3: its image is not there: no file 2.png in" in why
    (folder / "2.png").write_bytes(b"x")
    more = evaluate(Run(), Asked(benchmark, folder), "w", tmp_path / "out")
    assert more["questions"] == 5 and more["folder"] != found["folder"], "other media are other data"


def test_likelihoods_choose_the_first_of_the_likeliest(numbers, tmp_path):
    class Weighs:
        def likelihoods(self, samples, choices):
            assert all(texts == ("A", "B") for texts in choices)
            return [[-2.0, -2.0] if sample.id == "0" else [-2.0, -1.123456789] for sample in samples]

    benchmark, folder = numbers(**{"by: text": "by: likelihood"})
    found = evaluate(Weighs(), Asked(benchmark, folder), "w", tmp_path / "out")
    assert found["value"] == 80
    lines = (Path(found["folder"]) / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["A", "B", "B", "B", "B"]
    assert json.loads(lines[1])["likelihoods"] == [-2.0, -1.123457]


def test_the_texts_of_choices_are_weighed_where_the_definition_says_so(numbers, tmp_path):
    class Weighs:
        def likelihoods(self, samples, choices):
            expected = [(sample.id, str(int(sample.id) + 1)) for sample in samples]
            assert list(choices) == expected
            return [[-1.0, -2.0] for _ in samples]

    benchmark, folder = numbers(**{"by: text": "by: likelihood", "cite:": "weighs: text\ncite:"})
    assert evaluate(Weighs(), Asked(benchmark, folder), "w", tmp_path / "out")["value"] == 0


def test_a_judge_that_fails_now_and_then_costs_those_questions_alone(registry, tmp_path):
    class Tired:
        model = "tired"

        def ask(self, messages, temperature=0.0):
            if "crimson" in messages[0]["content"]:
                raise JudgeFailed("judge tired: no reply in 5 tries")
            return "1.0"

    benchmark = registry.get("benchmark", "mmvet")()
    asked = Asked(benchmark, benchmark.specimen())
    found = evaluate(Run(), asked, "w", tmp_path, Tired())
    assert (found["value"], found["questions"]) == (100, 2)
    assert found["notes"] == ["1 not graded, which do not count", "graded by tired"]
    assert found["left_out"] == [{"id": "v1_0", "why": "judge tired: no reply in 5 tries", "kind": "not graded"}]
    with pytest.raises(ValueError, match="mmvet: its answers are graded by a judge"):
        evaluate(Run(), asked, "w", tmp_path)


# ---------------------------------------------------------------------------------------------------------- definitions


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("title: Larger", "titel: Larger", "numbers.yaml: title: Field required"),
        ("jsonl, files", "xml, files", "data.layout: Input should be 'parquet', 'csv'"),
        ('files: "*.jsonl"', 'files: "../*.jsonl"', "leads out of the data's folder"),
        ("{_choices}", "{_choices", "prompt: a lone {"),
        ("place: {of: numbers, value: larger}", "eval: numbers", "columns.letter: a column is one operation, of: text"),
        ("place: {of: numbers, value: larger}", "place: {of: numbers}", "place needs of, value; it has of"),
        ("cite: nobody", "media: [{modality: image}]\ncite: nobody", "media.0: a medium is of a `column`"),
        ("cite: nobody", "cite: nobody\ncite: you", "the key 'cite' again"),
    ],
)
def test_a_wrong_definition_is_refused_by_key(numbers, old, new, words):
    benchmark, _ = numbers(**{old: new})
    with pytest.raises(ValueError, match=r".") as refused:
        read_definition(type(benchmark).file)
    assert words in str(refused.value)
    assert all(line.startswith(str(type(benchmark).file)) for line in str(refused.value).splitlines())


def test_a_metric_that_is_not_there_is_named(numbers):
    benchmark, _ = numbers(**{"name: choice": "name: chance"})
    with pytest.raises(ValueError, match=r"numbers\.yaml: there is no metric 'chance'"):
        _ = benchmark.metric


@pytest.mark.parametrize("template", ["{id.__class__}", "{id!r}", "{id:>9}", "{id[0]}", "{self}", "{}"])
def test_a_template_names_columns_and_nothing_else(template):
    with pytest.raises(ValueError, match="here: has no column"):
        filled(template, {"id": "7"}, "here")


def test_braces_are_doubled():
    assert filled("{{{id}}} {{id}}", {"id": "{x}"}, "here") == "{{x}} {id}"


@pytest.mark.parametrize(
    ("name", "argument", "row", "expected"),
    [
        ("letter", "n", {"n": 2}, "C"),
        ("letter", "n", {"n": "0"}, "A"),
        ("map", {"of": "n", "to": {"1": "Yes"}, "else": "No"}, {"n": 1}, "Yes"),
        ("map", {"of": "n", "to": {"1": "Yes"}, "else": "No"}, {"n": 2}, "No"),
        ("split", {"of": "t", "by": "_", "at": 1}, {"t": "a_b_c"}, "b"),
        ("remainder", {"of": "n", "by": 1_000_000}, {"n": "2000007"}, 7),
        ("list", ["a", "b", "c"], {"a": "x", "b": None, "c": ""}, ["x"]),
        ("first", ["a", "b"], {"a": "", "b": "y"}, "y"),
        ("parse", "t", {"t": "['it\\'s', \"b\", 3]"}, ["it's", "b", "3"]),
        ("unlabel", "l", {"l": ["A. one", "(B)two", "C．三", "Dogs"]}, ["one", "two", "三", "Dogs"]),  # noqa: RUF001
        ("case", [{"when": {"k": "a"}, "text": "first"}, {"text": "{k}!"}], {"k": "b"}, "b!"),
        ("field", {"of": "m", "name": "task"}, {"m": {"task": "x"}}, "x"),
        ("strip", "t", {"t": "  a "}, "a"),
        ("accepted", "t", {"t": "['24/7', '3.43']"}, ["24/7", "3.43"]),
        ("accepted", "t", {"t": "A"}, "A"),
    ],
)
def test_operations(name, argument, row, expected):
    assert OPERATIONS[name](row, argument, "here") == expected


@pytest.mark.parametrize(
    ("name", "argument", "row", "words"),
    [
        ("letter", "n", {"n": "x"}, "the number of a choice is needed"),
        ("place", {"of": "l", "value": "v"}, {"l": ["a"], "v": "b"}, "'b' is none of the choices"),
        ("map", {"of": "n", "to": {}}, {"n": 2}, "which the definition does not map"),
        ("parse", "t", {"t": "__import__('os')"}, "a list such as"),
        ("parse", "t", {"t": "[" * 9_000}, "a list such as"),
        ("split", {"of": "t", "by": "_", "at": 3}, {"t": "a_b"}, "it has 2 parts"),
    ],
)
def test_operations_refuse_in_a_line(name, argument, row, words):
    with pytest.raises(ValueError, match="here: ") as refused:
        OPERATIONS[name](row, argument, "here")
    assert words in str(refused.value)


def test_solved_examples_stand_before_the_question(numbers):
    shots = (
        'shots: {number: 2, layout: jsonl, files: "*.jsonl", example: "{_prompt} {letter}", between: "\\n--\\n"}\ncite:'
    )
    benchmark, folder = numbers(**{"cite:": shots})
    text = benchmark.questions(folder)[4].sample.turns[0].content[0][1]
    assert text.split("\n--\n") == [
        "Which number is larger?\nA. 0\nB. 1 B",
        "Which number is larger?\nA. 1\nB. 2 B",
        "Which number is larger?\nA. 4\nB. 5",
    ]


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd"])
def test_a_row_cannot_show_a_file_outside_of_its_folder(numbers, name):
    benchmark, folder = numbers(1, **{"cite: nobody": 'media: [{modality: image, path: "{name}"}]\ncite: nobody'})
    (folder.parent / "secret").write_bytes(b"x")
    row = {"id": "0", "numbers": ["0", "1"], "larger": "1", "name": name}
    (folder / "numbers.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="which leads out of"):
        _ = benchmark.questions(folder)[0]


@pytest.mark.parametrize(
    ("layout", "name", "content", "words"),
    [
        ("jsonl", "a.jsonl", b'{"id": 1}\n{"id":\n', "a.jsonl:2: is no JSON"),
        ("json", "a.json", b'{"id": 1}', "holds no list of objects"),
        ("tsv", "a.tsv", b"a\tb\n1\n", "a.tsv:2: has 1 fields; the header has 2"),
        ("csv", "a.csv", b"a,a\n1,2\n", "has no header of distinct columns"),
        ("csv", "a.csv", b"a,b\n\xff\xfe,2\n", "a.csv: cannot be read"),
        ("parquet", "a.parquet", b"PAR1junk", "a.parquet: cannot be read"),
        ("lines", "a.txt", b"one\n", "a.txt:1: has 1 parts; key and value are needed"),
    ],
)
def test_broken_tables_are_named(numbers, layout, name, content, words):
    benchmark, folder = numbers(**{"layout: jsonl": f"layout: {layout}", '"*.jsonl"': f'"{name}"'})
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r".") as refused:
        _ = benchmark.questions(folder)[0]
    assert words in str(refused.value)


def test_quotation_marks_are_the_texts_own_where_the_definition_says_so(tmp_path):
    """CoVoST 2 is written without quoting: one mark alone would swallow the rows that follow."""
    (file := tmp_path / "a.tsv").write_text('path\ttold\na\tHe said "no\nb\t"Yes" it is\nc\ta\\\tb\n', encoding="utf-8")
    files = Files.model_validate({"layout": "tsv", "files": "a.tsv"})
    own = opened([file], files.model_copy(update={"quoted": False}), tmp_path)
    assert own.values("told") == ['He said "no', '"Yes" it is', "a\tb"]
    with pytest.raises(ValueError, match=r"a\.tsv:4: has 3 fields"):  # nor is the other reading taken from the cache
        opened([file], files, tmp_path)


# --------------------------------------------------------------------------------------------------------- command line


@pytest.fixture(scope="module")
def trained(recipe_of, parts, watched, tmp_path_factory):
    """A run that was trained for three steps: it answers, whatever."""
    tables = {"modalities": {"image": parts.modalities["image"]}, "encoders": {"vision": parts.encoders["vision"]}}
    recipe = recipe_of({"image": parts.stage({"image": 1}, {"rest": 1e-2})}, **tables)
    return watched(recipe, tmp_path_factory.mktemp("run"), window=16).run.path


@pytest.fixture
def omnikit(capsys):
    """omnikit(*arguments) -> (exit code, stdout, lines of stderr)."""
    from omnikit.cli import main

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(one) for one in arguments])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err.splitlines()

    return call


def test_eval_scores_a_run_and_goes_on(omnikit, trained, numbers, monkeypatch):
    benchmark, folder = numbers()
    arguments = ("eval", trained, "--bench", type(benchmark).file, "--data", f"numbers={folder}", "--limit", "4")
    code, out, err = omnikit(*arguments, "--json")
    assert code == 0, err
    (score,) = json.loads(out)["scores"]
    assert (score["benchmark"], score["questions"], score["notes"]) == ("numbers", 4, ["limited to 4 of 5 questions"])
    assert score["folder"].startswith(str(trained / "eval" / "numbers-"))
    before = files_of(score["folder"])
    monkeypatch.setattr("omnikit.generate.Run.answer", None)  # nobody is asked again
    code, out, _ = omnikit(*arguments)
    assert code == 0 and files_of(score["folder"]) == before
    assert out.startswith("Larger number  ") and "4 questions; limited to 4 of 5 questions" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "omnikit eval: give the folder of a run, or --list"),
        (("run",), "omnikit eval: name a benchmark by --bench"),
        (("run", "--bench", "mmlux"), "--bench mmlux: is no benchmark; did you mean `mmlu`?"),
        (("run", "--bench", "none.yaml"), "--bench none.yaml: there is no such file"),
        (("run", "--bench", "mmlu", "--data", "mmlu"), "--data mmlu: is not NAME=FOLDER"),
        (
            ("run", "--bench", "mmlu", "--data", "mmul=x"),
            "--data mmul=x: 'mmul' is not asked for; did you mean `mmlu`?",
        ),
        (("run", "--bench", "mmlu", "--data", "mmlu=nowhere"), "mmlu: there is no folder nowhere; "),
        (
            ("run", "--bench", "mmbench_en"),
            "mmbench_en: give its folder by --data mmbench_en=FOLDER; download MMBench_",
        ),
    ],
)
def test_eval_refuses_in_a_line(omnikit, arguments, expected):
    code, out, err = omnikit("eval", *arguments)
    assert (code, out, len(err)) == (2, "", 1), err
    assert err[0].startswith(expected)


def test_ctrl_c_leaves_a_line(omnikit, trained, numbers, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "evaluate", interrupted)
    _, folder = numbers()
    definition = next(folder.parent.glob("*.yaml"))
    asked = ("--bench", str(definition), "--data", f"{definition.stem}={folder}", "--out", str(tmp_path / "out"))
    code, _, told = omnikit("eval", trained, *asked)
    assert (code, told[-1]) == (130, "stopped; answers are kept, and the same command again goes on from there")


def test_a_mistyped_run_is_not_made_by_asking_a_judge(omnikit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ("--data", f"mmvet={ROOT / 'omnikit/evaluate/rows/mmvet'}")
    judge = ("--judge", "http://localhost:1/v1", "--judge-model", "none", "--judge-key", "OF_NOBODY")
    code, _, err = omnikit("eval", "runs/tyny", "--bench", "mmvet", *data, *judge)
    assert code == 2 and "runs/tyny: holds no run" in err[-1] and not list(tmp_path.iterdir())


def test_absent_data_of_several_benchmarks_is_said_at_once(omnikit, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = [argument for name in ("mmlu", "kespeech", "cmmlu") for argument in ("--bench", name)]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    code, _, err = omnikit("eval", "run", *names, "--data", f"cmmlu={tmp_path}")
    assert code == 2 and len(err) == 3
    assert err[0].startswith(
        "mmlu: its data is not here: the hub's data set cais/mmlu is neither in the cache nor to be reached"
    )
    assert f"(looked in {tmp_path / 'hub'}; LocalEntryNotFoundError); it comes from the hub by itself" in err[0]
    assert err[1].startswith("kespeech: give its folder by --data kespeech=FOLDER; ask for KeSpeech at")
    assert err[2].startswith(f"cmmlu: no file **/test/*.csv in {tmp_path}; download cmmlu_v1_0_1.zip")


def test_a_download_that_breaks_off_is_a_line(omnikit, monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    def breaks(*_, **__):
        raise HfHubHTTPError.__mro__[1]("peer closed connection")  # of the client that the hub's library uses

    monkeypatch.setattr("huggingface_hub.snapshot_download", breaks)
    code, _, err = omnikit("eval", "run", "--bench", "mmlu")
    assert code == 2 and len(err) == 1 and "cais/mmlu is neither in the cache nor to be reached" in err[0]
    with pytest.raises(ValueError, match="weights: a/b is neither a folder here nor a hub id that can be reached"):
        fetched("a/b", ["config.json"])


def test_a_judged_benchmark_wants_a_judge_before_the_run_is_loaded(omnikit, registry):
    benchmark = registry.get("benchmark", "mmvet")()
    assert isinstance(benchmark, BenchmarkConfig)
    arguments = ("eval", "run", "--bench", "mmvet", "--data", f"mmvet={benchmark.specimen()}")
    assert omnikit(*arguments)[2] == ["mmvet: answers are graded by a judge; give --judge URL and --judge-model MODEL"]
    assert omnikit(*arguments, "--judge", "http://localhost:1/v1")[2] == [
        "--judge: say by --judge-model which of its models grades"
    ]


def test_the_list_says_what_to_fetch(omnikit, registry):
    code, out, _ = omnikit("eval", "--list", "--json")
    found = json.loads(out)["benchmarks"]
    assert code == 0 and [one["name"] for one in found] == list(registry.types("benchmark"))
    assert all(one["fetch"] and one["title"] for one in found)
    assert {one["name"] for one in found if one["judged"]} == {
        "activitynet_qa", "airbench_chat", "mathvista", "mmvet", "msvd_qa"
    }  # fmt: skip
    assert "cais/mmlu" in omnikit("eval", "--list")[1]


def test_a_run_that_lacks_the_modality_is_told_so(omnikit, registry, trained):
    folder = registry.get("benchmark", "fleurs_en").specimen()
    code, _, err = omnikit("eval", trained, "--bench", "fleurs_en", "--data", f"fleurs_en={folder}")
    assert code == 2 and err[-1].startswith(
        "fleurs_en: none of its first 2 questions can be asked: sample 0.wav:1: the recipe has no modality 'audio'"
    )
