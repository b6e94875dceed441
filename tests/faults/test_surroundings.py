"""Test 29: time zone, locale, umask, a clock that jumps, names with spaces and other letters, and very long ones."""

import json
import os
import stat
import subprocess
import sys

import pytest
from harness import ENVIRON, HERE, PATIENCE, check_same, metrics_of

STAGES = ("omni",)


@pytest.fixture(scope="module")
def recipe(toy, parts):
    stages = {"omni": parts.stage({"text": 1, "image": 1}, {"rest": 3e-3}, steps=4)}
    return toy("surroundings", stages, run={"save": 2})


@pytest.fixture(scope="module")
def whole(ranks, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    ranks.run("train", recipe, "--out", folder)
    return folder


FOLDERS = {
    "spaces and letters": 'my runs/größer 模型 🎈/it\'s "1" $HOME %s {x} *',
    "the longest name": "x" * 255,
    "deep": "/".join(["d" * 100] * 20),
}
FAULTS = {
    "the clock jumps a day ahead": ("clock", {"seconds": 86_400, "step": 2}),
    "the clock jumps a day back": ("clock", {"seconds": -86_400, "step": 3}),
    "umask 077": ("umask", {"mask": 0o077}),
    "umask 000": ("umask", {"mask": 0}),
}


@pytest.mark.parametrize("name", FOLDERS | FAULTS)
def test_a_run_is_the_same_wherever_it_runs_and_goes_on(ranks, recipe, whole, tmp_path, name):
    folder = tmp_path / FOLDERS.get(name, "run")
    folder.parent.mkdir(parents=True, exist_ok=True)
    faults = [FAULTS[name]] if name in FAULTS else []
    asked = ("stop_after", {"stage": "omni", "step": 1})  # noticed, and saved, in step 2
    ranks.run("train", recipe, "--out", folder, "--set", "run.log=1", faults=[*faults, asked], codes=(75,))
    ranks.run("train", recipe, "--out", folder, "--set", "run.log=1", faults=faults)
    print(f"injected: {name}")
    check_same(whole, folder, STAGES)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["seconds"] < 100 for line in lines), "durations are not of the clock on the wall"
    if name == "umask 077":
        modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder.rglob("*")}
        assert modes == {0}, "what the user keeps to themselves stays so"


PLACES = {
    "Kiritimati, C": {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Newfoundland, Turkish": {"TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8", "LANGUAGE": "tr"},
}


def test_a_run_is_the_same_in_every_time_zone_and_locale(ranks, recipe, tmp_path):
    """Fresh processes: what a locale means to Python is settled as it starts. The folder's name is not ASCII."""
    ranks.run("train", recipe, "--out", tmp_path / "whole", ranks=1)
    for number, (name, environ) in enumerate(PLACES.items()):
        folder = tmp_path / f"größer 模型 {number}"
        ended = subprocess.run(
            [sys.executable, str(HERE / "start.py"), "train", str(recipe), "--out", str(folder)],
            env={**os.environ, **ENVIRON, "FAULTS": '[["small_windows", {}]]', **environ},
            capture_output=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        print(f"injected: {name}: exit code {ended.returncode}")
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")
        check_same(tmp_path / "whole", folder, STAGES)


def test_names_in_a_recipe_may_be_long_and_files_have_other_letters(ranks, toy, parts, world, tmp_path):
    """A stage named with 200 letters; a data file and its media in a folder with spaces and other letters."""
    place = tmp_path / "Daten für 模型 🎈"
    place.mkdir()
    for path in world.iterdir():
        (place / path.name).symlink_to(path)
    stage = "s" * 200
    data = {"image": {"type": "jsonl", "path": str(place / "image.jsonl"), "modalities": ["image"]}}
    recipe = toy("names", {stage: parts.stage({"image": 1}, {"rest": 1e-3}, steps=3)}, data=data)
    ranks.run("train", recipe, "--out", tmp_path / "run")
    print("injected: a stage named with 200 letters, data in a folder that is not ASCII")
    assert len(metrics_of(tmp_path / "run")) == 3
    assert (tmp_path / "run" / stage / "step-000003/COMMIT").is_file()
