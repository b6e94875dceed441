"""The command line: what each command prints, imports and leaves; what is typed wrong is one line and exit code 2."""

import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from omnikit.checkpoint import RunFolder
from omnikit.cli import main
from omnikit.cli.watching import Bars, Lines, counted
from omnikit.recipe import dump_recipe, load_recipe

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes" / "tiny_omni.yaml"
FULL = ROOT / "recipes" / "baichuan_omni.yaml"


@pytest.fixture
def omnikit(capsys):
    """omnikit("show", path) -> (exit code, stdout, lines of stderr)."""

    def call(*args):
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err.splitlines()

    return call


@pytest.fixture
def refused(omnikit):
    """refused("show", "x") -> the one line that says why."""

    def call(*args):
        code, out, err = omnikit(*args)
        assert (code, out, len(err)) == (2, "", 1), (code, out, err)
        return err[0]

    return call


def python(*args, timeout=600, **kwargs):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=timeout, **kwargs)


# ---------------------------------------------------------------------------------------------------------------- help

OPTIONS = {
    "train": ["RECIPE", "--set PATH=VALUE", "--out FOLDER", "--json", "resumes"],
    "check": ["RECIPE", "--set PATH=VALUE", "--json"],
    "show": ["[RECIPE]", "--set PATH=VALUE", "--json", "--schema"],
    "chat": [
        "RUN",
        "--message TEXT",
        "-m",
        "--max-tokens N",
        "--temperature T",
        "--top-k K",
        "--top-p P",
        "--seed N",
        "--json",
    ],
    "eval": [
        *("[RUN]", "--bench NAME", "--data NAME=FOLDER", "--limit N", "--out FOLDER", "--judge URL"),
        *("--judge-model MODEL", "--judge-key VARIABLE", "--report FILE", "--list", "--json"),
    ],
    "export": ["RUN", "DIR", "--stage NAME", "--dtype <fp32|bf16>", "--json"],
    "plugins": ["--json", "check", "new"],
    "plugins check": ["[NAME]...", "--all", "--json", "kind/type"],
    "plugins new": ["NAME", "--kind <reader|encoder|projector|backbone|source|benchmark>", "--out FOLDER"],
    "env": ["--json"],
    "data": ["sample", "preview", "lint"],
    "data preview": [
        *("RECIPE", "--stage NAME", "-n N", "--step K", "--out FILE", "--set PATH=VALUE", "--json"),
    ],
    "data lint": ["RECIPE", "--set PATH=VALUE", "--source NAME", "--limit N", "--media", "--json"],
    "data sample": ["FOLDER", "--seed N", "--size N", "--json", "GPL-3.0-or-later"],
}


def test_help_lists_every_command_and_what_it_is_for(omnikit):
    code, out, err = omnikit("--help")
    assert (code, err) == (0, [])
    assert {command.split()[0] for command in OPTIONS} <= set(out.split())
    assert "..." not in out.partition("Commands:")[2], "a short description was cut"


@pytest.mark.parametrize("command", OPTIONS)
def test_help_of_a_command_names_its_options(omnikit, command):
    code, out, err = omnikit(*command.split(), "--help")
    assert (code, err) == (0, [])
    words = " ".join(out.split())
    for option in OPTIONS[command]:
        assert option in words, f"{option} is not in\n{out}"


def test_no_command_is_answered_with_the_help(omnikit):
    code, out, err = omnikit()
    assert (code, out) == (2, "") and "Commands:" in err


def test_the_module_is_the_command():
    done = python("-m", "omnikit", "--help")
    assert done.returncode == 0 and done.stdout.startswith("Usage: omnikit ")


TORCH_FREE = """
import contextlib, io, sys
from omnikit.cli import main
commands = [*(f"{{name}} --help" for name in {names!r}), "--help", "plugins", "plugins --json", "show --schema",
            "eval --list", "show {recipe}", "show {recipe} --json --set modalities.audio.projector=mlp",
            "show nothing.yaml", "chta"]
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(command.split())
        except SystemExit as left:
            assert (left.code or 0) == (2 if command in ("show nothing.yaml", "chta") else 0), command
    heavy = {{"torch", "transformers", "grain", "numba"}} & set(sys.modules)
    assert not heavy, f"`omnikit {{command}}` imports {{heavy}}"
"""


def test_help_plugins_and_show_import_no_torch():
    done = python("-c", TORCH_FREE.format(names=list(OPTIONS), recipe="recipes/tiny_omni.yaml"), cwd=ROOT)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- what is typed wrong


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("trian", "omnikit: No such command 'trian'. Did you mean 'train'?; see omnikit --help"),
        ("train", "omnikit train: Missing argument 'RECIPE'; see omnikit train --help"),
        ("show a b", "omnikit show: Got unexpected extra argument(s) (b); see omnikit show --help"),
        ("check x --sett a=1", "omnikit check: No such option: --sett"),
        ("env --json=1", "Option '--json' does not take a value; see omnikit "),
        ("data sample x --size 0", "omnikit data sample: Invalid value for '--size'"),
        ("data sample x --seed one", "omnikit data sample: Invalid value for '--seed'"),
        ("data smaple x", "omnikit data: No such command 'smaple'"),
        ("show", "omnikit show: give a recipe file or the folder of a run, or --schema"),
        ("show nothing.yaml", "nothing.yaml: cannot be read: no such file"),
        ("train nothing.yaml", "nothing.yaml: cannot be read: no such file"),
        ("check .", "recipe.yaml: cannot be read: no such file"),
        ("chat nothing", "nothing: holds no run"),
    ],
)
def test_what_is_typed_wrong_is_one_line(refused, tmp_path, monkeypatch, args, expected):
    monkeypatch.chdir(tmp_path)
    line = refused(*args.split())
    assert expected in line
    assert not list(tmp_path.iterdir())


def test_a_bad_set_is_one_line_for_each(omnikit):
    code, out, err = omnikit("show", TINY, "--set", "run.sede=1")
    assert (code, out, len(err)) == (2, "", 1) and "did you mean `seed`" in err[0]
    code, out, err = omnikit("show", TINY, "--set", "nonsense", "--set", "run.seed")
    assert (code, out, len(err)) == (2, "", 2) and all("is not path=value" in line for line in err)


# --------------------------------------------------------------------------------------------------- plugins, show, env


def test_plugins_lists_packages_and_components(omnikit):
    code, out, err = omnikit("plugins")
    assert (code, err) == (0, [])
    assert f"conv_gmlp  (omnikit-conv-gmlp {version('omnikit-conv-gmlp')})\n  projector: conv_gmlp\n" in out
    assert "BROKEN" not in out and "CLASH" not in out
    found = json.loads(omnikit("plugins", "--json")[1])
    assert found["clashes"] == []
    assert {plugin["name"] for plugin in found["plugins"]} >= {"builtin", "conv_gmlp", "siglip", "video", "whisper"}
    assert [p["components"] for p in found["plugins"] if p["name"] == "conv_gmlp"] == [{"projector": ["conv_gmlp"]}]


def test_what_show_prints_is_the_recipe(omnikit, tmp_path, registry):
    text = omnikit("show", TINY)[1]
    assert not text.endswith("\n\n")
    (tmp_path / "text.yaml").write_text(text)
    (tmp_path / "json.yaml").write_text(omnikit("show", TINY, "--json")[1])
    expected = load_recipe(TINY, registry)
    assert load_recipe(tmp_path / "text.yaml", registry) == expected
    assert load_recipe(tmp_path / "json.yaml", registry) == expected
    assert omnikit("show", tmp_path / "text.yaml")[1] == text


def test_show_prints_the_schema_that_is_committed_for_editors(omnikit):
    assert json.loads(omnikit("show", "--schema")[1])["properties"].keys() >= {"backbone", "stages", "extends"}


def leaves(node, path=""):
    if not isinstance(node, dict):
        return {path: node}
    return {key: value for name, below in node.items() for key, value in leaves(below, f"{path}.{name}").items()}


def test_show_of_two_runs_differs_in_the_node_that_was_set_alone(omnikit, tmp_path, registry):
    for name, sets in (("a", []), ("b", ["modalities.audio.projector=mlp"])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(dump_recipe(load_recipe(TINY, registry, sets)))
    a, b = (leaves(json.loads(omnikit("show", tmp_path / name, "--json")[1])) for name in "ab")
    differing = {key for key in a | b if a.get(key) != b.get(key)}
    node = ".modalities.audio.projector"
    assert f"{node}.type" in differing and all(key.startswith(f"{node}.") for key in differing)


def test_env_tells_versions_and_the_machine(omnikit):
    found = json.loads(omnikit("env", "--json")[1])
    assert found["torch"] == version("torch") and found["omnikit-siglip"] == version("omnikit-siglip")
    assert {"python", "system", "cpus", "gpu"} <= set(found)
    assert f"torch: {found['torch']}\n" in omnikit("env")[1]


# --------------------------------------------------------------------------------------------------------------- check


def test_check_tells_what_each_stage_trains_of_each_component(omnikit, registry):
    code, out, _ = omnikit("check", TINY, "--json")
    assert code == 0
    result, recipe = json.loads(out), load_recipe(TINY, registry)
    assert list(result["stages"]) == list(recipe.stages)
    paths = {"backbone", "encoders.vision", "encoders.audio"}
    paths |= {f"modalities.{name}.projector" for name in ("image", "video", "audio")}
    for stage in result["stages"].values():
        assert set(stage["components"]) == paths
        for row in stage["components"].values():
            assert {"params", "trainable", "lr"} <= set(row)
            assert 0 <= row["trainable"] <= row["params"] and row["params"] > 0
            assert (row["lr"] is None) == (row["trainable"] == 0)
    captions = result["stages"]["image_caption"]["components"]
    assert [path for path, row in captions.items() if row["trainable"]] == ["modalities.image.projector"]
    assert captions["modalities.image.projector"]["trainable"] == captions["modalities.image.projector"]["params"]


def test_check_shows_names_and_numbers_uncut_and_warns_of_absent_data(omnikit, tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text(TINY.read_text())
    code, out, err = omnikit("check", copy)
    assert code == 0 and "modalities.audio.projector" in out and "…" not in out
    assert re.search(r"image_caption +[\d,]+ +backbone +[\d,]+ +0 +frozen", out)
    assert err and all(line.startswith("warning: ") for line in err)
    assert any("data.speech: " in line and "is not there yet" in line for line in err)


OFFLINE = """
import re, socket, sys
from pathlib import Path
def connect(*_):
    raise AssertionError("a connection")
socket.socket.connect = connect
from omnikit.cli import main
try:
    main(["check", sys.argv[1], "--json"])
finally:
    # Not getrusage: its maximum survives exec, so it may be that of the process that started this one.
    status = Path("/proc/self/status")
    if status.exists():
        print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1], file=sys.stderr)
    import time
    print("seconds", time.process_time(), file=sys.stderr)
"""


def test_check_of_the_full_recipe_is_exact_offline_and_small():
    # One thread: the limits are for one core, whatever the machine has.
    threads = {"OMP_NUM_THREADS": "1"}
    done = python("-c", OFFLINE, str(FULL), env={**os.environ, "HF_HUB_OFFLINE": "1", **threads})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert list(result["stages"]) == [
        *("image_caption", "image_vqa", "image_full", "video_images", "video_mixed", "audio", "omni", "sft")
    ]
    for stage in result["stages"].values():
        params = {path: row["params"] for path, row in stage["components"].items()}
        assert params["backbone"] == 7_615_616_512
        assert params["encoders.vision"] == 412_987_248
        assert params["encoders.audio"] == 635_048_960
    tokens = result["tokens"]
    assert tokens["image"]["tile"] == 182
    assert (tokens["video"]["frame"], tokens["video"]["wide frame"]) == (182, 546)
    assert tokens["audio"]["30 s"] == 375
    told = dict(line.split(" ") for line in done.stderr.splitlines() if re.fullmatch(r"(peak|seconds) [\d.]+", line))
    assert float(told["seconds"]) < 60
    assert int(told.get("peak", 0)) < 2_000_000


# ----------------------------------------------------------------------------------------------------- train and chat

SAVE = 2


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, recipe_of, parts, world):
    """A recipe of two short stages, text and then pictures, with held-out data."""
    stages = {name: {**parts.stages[name], "steps": 4} for name in ("language", "image")}
    held = {"type": "jsonl", "path": str(world / "image.jsonl"), "modalities": ["image"]}
    written = {"type": "jsonl", "path": str(world / "text.jsonl")}
    recipe = recipe_of(
        stages,
        run={"log": 2, "save": SAVE},
        encoders={"vision": parts.encoders["vision"]},
        modalities={"image": parts.modalities["image"]},
        heldout={
            "pictures": {"data": held, "metric": "exact", "target": 0.99},
            "texts": {"data": written, "metric": "wer"},
        },
    )
    path = tmp_path_factory.mktemp("recipes") / "small.yaml"
    path.write_text(dump_recipe(recipe))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, recipe_file):
    """(folder, stdout, lines of stderr) of a run that is trained to its end."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        out, err = io.StringIO(), io.StringIO()
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        main(["train", str(recipe_file), "--out", str(folder)])
    assert not left.value.code, err.getvalue()
    return folder, out.getvalue(), err.getvalue().splitlines()


def test_training_prints_a_line_every_few_steps_and_the_held_out_table(run):
    folder, out, err = run
    assert "stage 1 of 2, language: 4 steps" in err and "stage 2 of 2, image: 4 steps" in err
    figures = r"loss \d+\.\d{3}  [\d,]+ tokens/s  MFU .+  wait \d+%  \d\.\d GB  (.+ left|in .+)"
    lines = [line for line in err if re.fullmatch(rf"\w+ \d/4  {figures}", line)]
    assert [line.split("  ")[0] for line in lines] == ["language 2/4", "language 4/4", "image 2/4", "image 4/4"]
    number = r"\d+\.\d%"
    assert re.search(
        rf"^pictures: {number} right of \d+ samples "
        rf"\(target 99.0%: (met|missed); chance {number}, blind {number}\)$",
        out,
        re.M,
    )
    assert re.search(rf"^texts: {number} words wrong of \d+ samples \(chance {number}\)$", out, re.M)
    assert out.endswith(f"report: {folder / 'report.html'}\n")
    assert {"recipe.yaml", "metrics.jsonl", "report.json", "report.html"} <= {path.name for path in folder.iterdir()}


def test_the_same_command_on_a_finished_run_trains_nothing_and_measures_again(omnikit, run, recipe_file):
    folder, _, _ = run
    before = (folder / "metrics.jsonl").read_text()
    code, out, err = omnikit("train", recipe_file, "--out", folder, "--json")
    assert code == 0 and not any("loss" in line for line in err)
    assert (folder / "metrics.jsonl").read_text() == before
    result = json.loads(out)
    assert result["run"] == str(folder) and set(result["heldout"]) == {"pictures", "texts"}
    assert set(result["heldout"]["pictures"]) == {"metric", "samples", "score", "target", "met", "chance", "blind"}


def test_a_runs_folder_stands_for_its_recipe_and_goes_on_in_place(omnikit, run):
    folder, _, _ = run
    code, out, _ = omnikit("train", folder)
    assert code == 0 and out.endswith(f"report: {folder / 'report.html'}\n")


def test_a_changed_recipe_does_not_go_on_in_the_same_folder(refused, run, recipe_file):
    line = refused("train", recipe_file, "--out", run[0], "--set", "run.seed=7")
    assert "run.seed" in line and "--out" in line


def test_without_out_the_folder_has_the_recipes_name(omnikit, recipe_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("omnikit.cli.training._run", lambda path, sets, folder: seen.append(folder) or {"heldout": {}})
    assert omnikit("train", recipe_file)[0] == 0
    assert seen == [Path("runs/small")]


def test_an_interrupted_run_says_so_and_goes_on(omnikit, recipe_file, tmp_path, monkeypatch):
    folder, step = tmp_path / "run", Lines.step

    def interrupted(self, record):
        step(self, record)
        if record["step"] == SAVE + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "step", interrupted)
        code, out, err = omnikit("train", recipe_file, "--out", folder)
    assert (code, out) == (130, "")
    assert err[-1] == "stopped; the same command again goes on from the last checkpoint"
    assert RunFolder(folder).latest("language").step == SAVE
    code, _, err = omnikit("train", recipe_file, "--out", folder)
    assert code == 0 and f"stage 1 of 2, language: 4 steps, going on after {SAVE}" in err


def test_a_run_that_stops_itself_is_one_line_and_exit_code_1(omnikit, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setattr("omnikit.account.Outcome.loss", math.nan)
    code, out, err = omnikit("train", recipe_file, "--out", tmp_path / "run")
    assert (code, out) == (1, "")
    assert err[-1].startswith("stages.language: step 1: loss nan") and not any("Traceback" in line for line in err)


def test_absent_data_is_a_line_each_with_what_to_do(omnikit, tmp_path, monkeypatch, recipe_file):
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(recipe_file.read_text())
    tree["data"]["text"]["path"] = "../gone.jsonl"
    tree["heldout"]["texts"]["data"]["path"] = "../data/sample/heldout/text.jsonl"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "moved.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    code, out, err = omnikit("train", "recipes/moved.yaml")
    assert (code, out) == (2, "")
    assert err == [
        f"data.text: {tmp_path / 'gone.jsonl'} is not there; put it there, or name another with "
        "`--set data.text.path=FILE`",
        f"heldout.texts.data: {tmp_path / 'data/sample/heldout/text.jsonl'} is not there; make it with "
        "`omnikit data sample data/sample`",
    ]
    assert not (tmp_path / "runs").exists()


def test_bars_show_loss_speed_and_time_left(capsys):
    with Bars(["warm_up", "main"], every=10) as bars:
        bars.stage("warm_up", 2, 4)
        times = {"seconds": 0.5, "wait": 0.1, "tokens_per_second": 200.0, "mfu": 0.3, "memory": 2e9}
        bars.step({"stage": "warm_up", "step": 3, "loss": 1.25, "tokens": 100, **times})
        bars.note("held-out [red]: 3 samples")
    err = capsys.readouterr().err
    assert "held-out [red]: 3 samples" in err
    figures = r"loss 1\.250  200 tokens/s  MFU 30%  wait 20%  2\.0 GB  \d+ s left"
    assert re.search(rf"1/2 warm_up .*3/4 {figures}", " ".join(err.split("\n")))


def test_work_in_parts_has_a_bar_for_each_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")  # where CI's is dumb, or colours are not wanted, bars look otherwise
    monkeypatch.delenv("NO_COLOR", raising=False)
    with counted() as progress:
        progress("data.[red]", 1, 2)
        progress("stages", 0, 4)
        progress("stages", 4, 4)
    shown = re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", capsys.readouterr().err)
    assert re.search(r"data\.\[red\] [━╺]+ 1/2 .*\n    stages ━+ 4/4 [\d:]+\n$", shown), shown
    assert "stages: 4" not in shown, "a line as well as a bar"


def test_chat_answers_a_question_with_media(omnikit, run, world):
    for image in (["--image", world / "0.png"], [f"--image={world / '0.png'}"]):
        code, out, err = omnikit("chat", run[0], *image, "-m", "colour?", "--json")
        assert (code, err) == (0, []) and isinstance(json.loads(out)["answer"], str)
    code, plain, _ = omnikit("chat", run[0], *image, "-m", "colour?")
    assert code == 0 and plain == json.loads(out)["answer"] + "\n"
    assert omnikit("chat", run[0], "-m", "red?", "--temperature", "2", "--seed", "1", "--max-tokens", "3")[0] == 0


@pytest.fixture
def said(monkeypatch):
    """What the run is asked, turn by turn; it answers with how many it has heard."""
    from omnikit.conversation import Conversation

    turns = []

    def reset(self):
        turns.append("reset")

    def say(self, content):
        turns.append([value if name == "text" else (name, Path(value.source).name) for name, value in content])
        yield from ("turn ", str(len(turns)))

    monkeypatch.setattr(Conversation, "reset", reset)
    monkeypatch.setattr(Conversation, "say", say)
    return turns


def test_chat_is_a_conversation_line_by_line(omnikit, run, said, world, monkeypatch, tmp_path):
    spaced = shutil.copy(world / "0.png", tmp_path / "a picture.png")
    typed = [
        "red?",
        "",
        f"/image {world / '1.png'}",
        f"/image {world / '2.png'}",
        "and these?",
        f"'{spaced}' {world / '3.png'}",
        f"/image {spaced}",
        f"file://{world / '4.png'}",
        "those?",
        "/reset",
        "0.png is no file here",
        "/exit",
        "never asked",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(typed)))
    code, out, err = omnikit("chat", run[0])
    assert (code, err) == (0, [])
    assert said == [
        "reset",
        ["red?"],
        [("image", "1.png"), ("image", "2.png"), "and these?"],
        [("image", name) for name in ("a picture.png", "3.png", "a picture.png", "4.png")] + ["those?"],
        "reset",
        ["0.png is no file here"],
    ]
    assert out == "turn 2\nturn 3\nturn 4\nturn 6\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("red?\ngreen?"))
    assert omnikit("chat", run[0], "--json")[1] == '{"answer": "turn 8"}\n{"answer": "turn 9"}\n'


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("/depth a.png", "/depth: is no command; there are /image FILE, /reset, /exit"),
        ("/image no.png", "/image no.png: there is no file no.png"),
        ("/image", "/image: there is no file "),
    ],
)
def test_a_line_that_cannot_be_done_is_told_and_on_a_terminal_the_conversation_goes_on(
    omnikit, run, said, monkeypatch, typed, expected
):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{typed}\nred?"))
    code, out, err = omnikit("chat", run[0])
    assert code == 2 and len(err) == 1 and err[0].startswith(expected)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{typed}\nred?"))
    code, out, err = omnikit("chat", run[0])
    assert code == 0 and len(err) == 1 and err[0].startswith(expected) and out.endswith("turn 3\nyou: ")


@pytest.mark.parametrize("name", ["a b.png", "it's.png", "50%20 of 'it'.png", 'say "x".png', "é漢.png", "a\\b.png"])
def test_a_file_is_found_however_a_terminal_writes_its_path(omnikit, run, said, world, monkeypatch, tmp_path, name):
    path = shutil.copy(world / "0.png", tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    backslashed = re.sub(r"([ '\"\\])", r"\\\1", str(path))
    written = [str(path), shlex.quote(str(path)), backslashed, path.as_uri(), f"file://here{path.as_uri()[7:]}"]
    lines = [*written, " ".join(written[1:4]), f"~/{name}", *(f"/image {one}" for one in (*written, f"~/{name}"))]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([*lines, "so?"])))
    code, _, err = omnikit("chat", run[0])
    assert (code, err) == (0, []) and said == ["reset", [*[("image", name)] * (len(lines) + 2), "so?"]]


@pytest.mark.parametrize("line", ["/image " + "a" * 5000, "a" * 5000 + ".png", "/image \0.png", "~nobody/\0.png"])
def test_what_can_be_no_name_of_a_file_ends_no_conversation(omnikit, run, said, monkeypatch, line):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{line}\nred?"))
    code, _, err = omnikit("chat", run[0])
    assert code == 0 and said[-1] == ["red?"] and len(err) == line.startswith("/image")


def test_ctrl_c_while_media_are_read_leaves_the_message_unsaid(omnikit, run, monkeypatch, world):
    """It waits for no decoder, and the conversation goes on; where nobody types, it ends."""
    from omnikit import conversation

    read, asked = conversation.read_items, []

    def slow(layouts, branches):
        asked.append(len(layouts[0].places))
        if asked[-1]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return read(layouts, branches)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(conversation, "read_items", slow)
    began = time.monotonic()
    expected = json.loads(omnikit("chat", run[0], "-m", "red?", "--json")[1])
    monkeypatch.setattr(sys, "stdin", Terminal(f"/image {world / '0.png'}\ncolour?\nred?"))
    code, out, err = omnikit("chat", run[0], "--json")
    assert code == 0 and [json.loads(line) for line in out.splitlines()] == [expected], "no prompt is part of JSON"
    assert err[1] == "the message was broken off before its answer, and is as if unsaid"
    assert omnikit("chat", run[0], "-m", "colour?", "--image", world / "0.png")[:2] == (130, "")
    assert asked == [0, 1, 0, 1] and time.monotonic() - began < 50


def test_a_file_that_cannot_be_read_spoils_one_message_and_not_those_after_it(omnikit, run, monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"/image {tmp_path / 'a.png'}\nred?\ngreen?"))
    code, out, err = omnikit("chat", run[0], "--json")
    assert code == 0 and len(err) == 2 and "the message: image: " in err[0]
    assert out.count('{"answer": ') == 1


@pytest.mark.parametrize(
    ("message", "expected"),
    [("", "the message is empty; write something, or give a medium"), ("a\udcff", "the message: text holds half a")],
)
def test_a_message_that_says_nothing_readable_is_refused(refused, run, message, expected):
    assert expected in refused("chat", run[0], "-m", message)


def test_a_terminal_that_cannot_write_a_character_gets_the_answer_all_the_same(run, monkeypatch):
    from omnikit.conversation import Conversation

    monkeypatch.setattr(Conversation, "say", lambda self, content: iter(("red ", "\u7ea2")))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    with pytest.raises(SystemExit) as left:
        main(["chat", str(run[0]), "-m", "colour?"])
    assert not left.value.code and sys.stdout.buffer.getvalue() == b"red ?\n"


def test_ctrl_c_ends_an_answer_and_not_the_conversation(omnikit, run, monkeypatch):
    from omnikit.conversation import Conversation

    def endless(self, content):
        for number in itertools.count():
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield f"{number} "

    monkeypatch.setattr(Conversation, "say", endless)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "stdin", io.StringIO("red?\ngreen?"))
    assert omnikit("chat", run[0])[:2] == (0, "0 1 2 3 \n0 1 2 3 \n")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--image no.png", "--image no.png: there is no file no.png"),
        ("--image", "--image: is no option; of a modality, name a file after it: --image FILE"),
        ("0.png", "0.png: is no option; write media as, say, --image picture.png"),
        ("--imgae {world}/0.png", "the run has no modality 'imgae'; did you mean `image`?"),
        ("--image {world}/text.jsonl", "the message: image: "),
        ("--image {world}/0.wav", "the message: image: "),
        ("--top-k 3", "--top-k and --top-p say what is drawn from; give --temperature too"),
        ("--temperature 0", "temperature 0: is not above 0"),
    ],
)
def test_chat_refuses_bad_options_in_one_line(refused, run, world, options, expected):
    assert expected in refused("chat", run[0], "-m", "colour?", *options.format(world=world).split())


def test_a_damaged_checkpoint_is_a_warning_in_one_line(omnikit, run, tmp_path):
    folder = shutil.copytree(run[0], tmp_path / "run")
    with (RunFolder(folder).latest("image").folder / "state.json").open("a") as file:
        file.write(" ")
    code, _, err = omnikit("chat", folder, "-m", "red?")
    assert code == 0 and len(err) == 1
    assert re.fullmatch(
        r"warning: .*state.json: has changed since it was saved; the checkpoint before it is used", err[0]
    )


def test_chat_needs_a_checkpoint(refused, recipe_file, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe_file.read_text())
    assert "has no checkpoint yet" in refused("chat", tmp_path, "-m", "red?")


# --------------------------------------------------------------------------------------------------------- data sample


def test_data_sample_tells_what_it_made(omnikit, tmp_path, monkeypatch):
    asked = []

    def make(folder, seed, size, progress):
        asked.append((folder, seed, size))
        progress("pictures", 1, 2)
        progress("pictures", 2, 2)
        return {"train/text.jsonl": 12}

    monkeypatch.setattr("omnikit.sampledata.make_sample_data", make)
    code, out, err = omnikit("data", "sample", tmp_path / "data", "--seed", "3", "--size", "2")
    assert (code, out, err) == (0, f"{tmp_path / 'data' / 'train' / 'text.jsonl'}: 12 records\n", ["pictures: 2"])
    assert asked == [(tmp_path / "data", 3, 2)]
    found = json.loads(omnikit("data", "sample", tmp_path / "data", "--json")[1])
    assert found == {"folder": str(tmp_path / "data"), "records": {"train/text.jsonl": 12}}


def test_data_sample_leaves_another_folder_alone(refused, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "remove it or name another folder" in refused("data", "sample", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
