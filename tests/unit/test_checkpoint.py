"""What a run leaves on disk: committed whole or not at all, verified, and safe to open."""

import copy
import json
import random
import resource
import shutil
import warnings
from importlib.metadata import version

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open

from omnikit import checkpoint
from omnikit.checkpoint import COMMIT, RunFolder, flat_tensors, save, verify
from omnikit.tensorfiles import load_into, names_in
from omnikit.train import train

TENSORS = {
    "a.weight": torch.arange(12.0).view(3, 4),
    "a.half": torch.arange(5, dtype=torch.bfloat16),
    "optim.state.a.weight.step": torch.tensor(7.0),
    "whole": torch.arange(3),
    "empty": torch.zeros(0, 4),
}


def begin(run, recipe):
    """As `train` begins a run."""
    run.begin(recipe, run.check(recipe))


def like(tensors):
    return {name: torch.full_like(tensor, 99) for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------------- one checkpoint


def test_what_is_saved_comes_back_bitwise(tmp_path):
    save(tmp_path / "step-000001", TENSORS, {"position": [1, 2]})
    found = like(TENSORS)
    assert load_into(tmp_path / "step-000001", found) == set(TENSORS) == names_in(tmp_path / "step-000001")
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert verify(tmp_path / "step-000001") is None


def test_a_file_holds_so_many_bytes_unless_a_tensor_is_larger(tmp_path, monkeypatch):
    monkeypatch.setattr("omnikit.tensorfiles.FILE", 100)
    tensors = {
        name: torch.randn(size) for name, size in (("a", 10), ("b", 15), ("c", 1), ("d", 60), ("e", 2), ("f", 2))
    }
    save(tmp_path / "one", tensors, {})
    held = []
    for path in sorted((tmp_path / "one").glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            held.append(sorted(opened.keys()))
    assert held == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    filled = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert load_into(tmp_path / "one", filled) == set(tensors) and verify(tmp_path / "one") is None
    assert all(torch.equal(filled[name], tensor) for name, tensor in tensors.items())


def test_loading_fills_what_is_asked_for_and_says_what_it_filled(tmp_path):
    save(tmp_path / "s", TENSORS, {})
    wanted = {"a.weight": torch.zeros(3, 4), "b.weight": torch.zeros(2)}
    assert load_into(tmp_path / "s", wanted) == {"a.weight"}
    assert torch.equal(wanted["a.weight"], TENSORS["a.weight"]) and not wanted["b.weight"].any()
    assert load_into(tmp_path / "s", {"b.weight": torch.zeros(2)}) == set()


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (12,), (2, 4)])
def test_another_shape_is_an_error_that_names_the_tensor(tmp_path, shape):
    save(tmp_path / "s", TENSORS, {})
    with pytest.raises(ValueError, match=r"a\.weight is \(3, 4\) there and \(") as caught:
        load_into(tmp_path / "s", {"a.weight": torch.zeros(shape)})
    assert str(tmp_path / "s") in str(caught.value) and "\n" not in str(caught.value)


def test_ties_are_one_tensor_on_disk_and_are_listed():
    module = torch.nn.Module()
    module.first, module.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    module.second.weight = module.first.weight
    tensors, ties = flat_tensors(module)
    assert set(tensors) == {"first.weight", "first.bias", "second.bias"} and ties == {"second.weight": "first.weight"}


def test_tensors_without_elements_are_no_ties():
    module = torch.nn.Module()
    module.a, module.b = torch.nn.Parameter(torch.zeros(0, 2)), torch.nn.Parameter(torch.zeros(0, 3))
    tensors, ties = flat_tensors(module)
    assert set(tensors) == {"a", "b"} and not ties


class Killed(BaseException):
    """Stands for kill -9: nothing catches it on the way out."""


class Accident:
    """Replaces functions of omnikit.checkpoint by ones that count their calls and die at the nth of all of them."""

    POINTS = ("write_atomically", "sync", "_sha256")

    def __init__(self, monkeypatch, at=None):
        self.calls = 0
        for name in self.POINTS:
            monkeypatch.setattr(checkpoint, name, self._wrap(getattr(checkpoint, name), at))
        monkeypatch.setattr(dcp, "save", self._wrap(dcp.save, at))

    def _wrap(self, function, at):
        def wrapped(*args, **kwargs):
            self.calls += 1
            if self.calls == at:
                raise Killed
            return function(*args, **kwargs)

        return wrapped


def points_of(function):
    """At how many points `function` can be killed."""
    with pytest.MonkeyPatch.context() as patch:
        accident = Accident(patch)
        function()
        return accident.calls


def test_a_save_that_is_killed_anywhere_counts_as_none_and_the_one_before_stays(tmp_path):
    run = RunFolder(tmp_path / "run")

    def first():
        run.save("only", 1, TENSORS, {"step": 1}, keep=2)

    def second():
        run.save("only", 2, TENSORS, {"step": 2}, keep=2)

    first()
    points = points_of(second)
    assert points >= 6
    for at in range(1, points + 1):
        shutil.rmtree(tmp_path / "run")
        first()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            Accident(patch, at)
            second()
        latest = run.latest("only")
        print(f"killed at point {at} of {points}: latest is step {latest.step}")
        assert latest.step == (2 if (tmp_path / "run/only/step-000002" / COMMIT).is_file() else 1)
        assert latest.state() == {"step": latest.step}
        for found in run.committed("only"):
            assert verify(found.folder) is None, "committed but bad"
        run.sweep(["only"])
        second()  # the same again goes through
        assert [found.step for found in run.committed("only")] == [1, 2] and run.latest("only").step == 2
    assert at > 5


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(tmp_path):
    run, large = RunFolder(tmp_path), {"a": torch.zeros(100_000)}
    run.save("only", 1, TENSORS, {"step": 1}, keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes a file may have
    try:
        with pytest.raises(ValueError, match=r"step-000002: cannot be written \(.*too large\); make room") as caught:
            run.save("only", 2, large, {"step": 2}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert run.latest("only").step == 1
    run.save("only", 2, large, {"step": 2}, keep=2)
    assert run.latest("only").step == 2


def test_the_commit_is_the_last_file_that_is_written(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        checkpoint, "write_atomically", lambda path, text: (written.append(path.name), path.write_text(text))
    )
    save(tmp_path / "s", TENSORS, {})
    assert written == ["state.json", "COMMIT"]
    hashes = json.loads((tmp_path / "s" / COMMIT).read_text())
    assert set(hashes) == {path.name for path in (tmp_path / "s").iterdir()} - {COMMIT}


def test_a_folder_without_commit_does_not_count_and_is_swept(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2):
        run.save("only", step, TENSORS, {}, keep=2)
    (tmp_path / "only/step-000002" / COMMIT).unlink()
    (tmp_path / "only/notes").mkdir()
    (tmp_path / "only/step-x").mkdir()
    assert run.latest("only").step == 1
    run.sweep(["only", "another"])
    assert sorted(path.name for path in (tmp_path / "only").iterdir()) == ["notes", "step-000001"]


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path):
    run, chance = RunFolder(tmp_path), random.Random(0)
    for step in (1, 2):
        run.save("only", step, TENSORS, {"step": step}, keep=2)
    folder = tmp_path / "only/step-000002"
    files = sorted(path for path in folder.iterdir() if path.name != COMMIT)
    assert len(files) >= 2
    for number in range(60):
        path = files[number % len(files)]
        whole = path.read_bytes()
        broken = bytearray(whole)
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        broken[place] ^= 1 << bit
        path.write_bytes(broken)
        with pytest.warns(
            UserWarning, match=rf"{path.name}: has changed since it was saved; the checkpoint before it is used"
        ):
            found = run.latest("only")
        assert found.step == 1, f"bit {bit} of byte {place} of {path.name}"
        path.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run.latest("only").step == 2


def test_a_file_cut_short_or_gone_is_found(tmp_path):
    run = RunFolder(tmp_path)
    run.save("only", 1, TENSORS, {}, keep=2)
    folder = tmp_path / "only/step-000001"
    for path in sorted(path for path in folder.iterdir() if path.name != COMMIT):
        whole = path.read_bytes()
        for length in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            assert "has changed" in verify(folder)
        path.unlink()
        assert "is missing" in verify(folder)
        with pytest.warns(UserWarning, match="is missing"):
            assert run.latest("only") is None
        path.write_bytes(whole)
    assert verify(folder) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"../../outside": "0"}', "null", '{"state.json": 3}', "{}"])
def test_a_commit_that_is_none_is_a_fault_and_no_crash(tmp_path, text):
    run = RunFolder(tmp_path)
    run.save("only", 1, TENSORS, {}, keep=2)
    (tmp_path / "only/step-000001" / COMMIT).write_text(text)
    with pytest.warns(UserWarning, match="the checkpoint before it is used"):
        assert run.latest("only") is None


@pytest.mark.parametrize("keep", [2, 3])
def test_pruning_keeps_the_newest(tmp_path, keep):
    run = RunFolder(tmp_path)
    for step in range(1, 7):
        run.save("only", step, {"a": torch.tensor([step])}, {}, keep)
        run.save("other", step, {"a": torch.tensor([step])}, {}, keep)
        expected = list(range(max(1, step - keep + 1), step + 1))
        assert (
            [found.step for found in run.committed("only")]
            == [found.step for found in run.committed("other")]
            == expected
        )
    assert len(list((tmp_path / "only").iterdir())) == keep


def test_a_damaged_checkpoint_does_not_count_among_those_kept(tmp_path):
    """Else it and a shorter interval would push the last good one out."""
    run = RunFolder(tmp_path)
    for step in (2, 4):
        run.save("only", step, {"a": torch.tensor([step])}, {}, keep=2)
    (tmp_path / "only/step-000004/state.json").write_text("{}")
    with pytest.warns(UserWarning, match="state.json: has changed"):
        resumed = run.latest("only").step
    run.forget_after("only", resumed)
    run.save("only", 3, {"a": torch.tensor([3])}, {}, keep=2)
    assert [found.step for found in run.committed("only")] == [2, 3]
    assert all(verify(found.folder) is None for found in run.committed("only"))


@pytest.mark.parametrize("step", [2, 3], ids=["saved again", "pruned"])
def test_a_checkpoint_that_is_half_removed_does_not_count(tmp_path, monkeypatch, step):
    run = RunFolder(tmp_path)
    for before in (1, 2):
        run.save("only", before, TENSORS, {}, keep=2)

    def die_half_way(folder, **_):
        if folder.exists():
            next(folder.glob("*.safetensors")).unlink()
            raise Killed

    monkeypatch.setattr(checkpoint.shutil, "rmtree", die_half_way)
    with pytest.raises(Killed):
        run.save("only", step, TENSORS, {}, keep=2)
    monkeypatch.undo()
    assert [found.step for found in run.committed("only")] == ([1] if step == 2 else [2, 3])
    assert all(verify(found.folder) is None for found in run.committed("only"))
    run.sweep(["only"])
    assert len(list((tmp_path / "only").iterdir())) == len(run.committed("only"))


def test_saving_a_step_again_replaces_it(tmp_path):
    run = RunFolder(tmp_path)
    run.save("only", 2, {"a": torch.tensor([1]), "b": torch.tensor([1])}, {"n": 1}, keep=2)
    run.save("only", 2, {"a": torch.tensor([2])}, {"n": 2}, keep=2)
    assert names_in(tmp_path / "only/step-000002") == {"a"}
    assert run.latest("only").state() == {"n": 2}


def test_the_hash_of_a_checkpoint_is_that_of_its_content(tmp_path):
    run = RunFolder(tmp_path)
    for stage, value in (("a", 1), ("b", 1), ("c", 2)):
        run.save(stage, 5, {"x": torch.tensor([value])}, {"n": 0}, keep=2)
    a, b, c = (run.latest(stage).hash() for stage in "abc")
    assert a == b != c


def test_equal_tensors_make_equal_files(tmp_path):
    tensors = {"ä" * 7: torch.ones(3), **TENSORS}
    written = []
    for number in range(6):  # metadata was written in one of six orders, at random
        save(tmp_path / str(number), tensors, {"n": 0})
        written.append({path.name: path.read_bytes() for path in (tmp_path / str(number)).iterdir()})
    assert all(files == written[0] for files in written)


# ------------------------------------------------------------------------------------------------------------ metrics


def test_metrics_survive_a_line_that_a_kill_cut_short(tmp_path):
    run = RunFolder(tmp_path)
    run.log({"stage": "a", "step": 1})
    run.log({"stage": "a", "step": 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "a", "st')
    assert [line["step"] for line in run.metrics()] == [1, 2]
    run.forget_after("a", 1)
    run.log({"stage": "a", "step": 2})
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_forget_after_drops_only_later_steps_of_its_stage(tmp_path):
    run = RunFolder(tmp_path)
    run.forget_after("a", 3)  # nothing there yet
    for stage in ("a", "b"):
        for step in range(1, 6):
            run.log({"stage": stage, "step": step})
    run.forget_after("b", 3)
    assert [(line["stage"], line["step"]) for line in run.metrics()] == [
        *(("a", n) for n in range(1, 6)),
        *(("b", n) for n in range(1, 4)),
    ]


# --------------------------------------------------------------------------------------------------------- going on


@pytest.fixture
def begun(tmp_path, recipe_of):
    run = RunFolder(tmp_path / "run")
    begin(run, recipe_of())
    return run


def test_begin_writes_a_recipe_that_loads_to_the_same_and_goes_on_with_it(begun, recipe_of, registry):
    from omnikit.recipe import load_recipe

    assert load_recipe(begun.path / "recipe.yaml", registry) == recipe_of()
    lock = json.loads((begun.path / "lock.json").read_text())
    assert set(lock) == {"recipe", "data", "weights", "versions"} and lock["versions"]["torch"] == version("torch")
    begin(begun, recipe_of())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run": {"seed": 5}}, "run.seed: the run was begun with 0, the recipe now says 5"),
        ({"run": {"precision": "bf16"}}, "run.precision"),
        ({"run": {"recompute": True}}, "run.recompute"),
        (
            {"config": {"hidden_size": 64}},
            "backbone.config.hidden_size: the run was begun with 32, the recipe now says 64",
        ),
        ({"config": {"rms_norm_eps": 1e-3}}, "backbone.config.rms_norm_eps: the run was begun with nothing"),
    ],
)
def test_begin_refuses_a_changed_recipe_and_names_the_key(begun, recipe_of, changes, named):
    before = {path: path.read_bytes() for path in begun.path.iterdir()}
    with pytest.raises(ValueError) as caught:
        begin(begun, recipe_of(**changes))
    [line] = str(caught.value).splitlines()
    assert f": {named}" in line and "give --out another folder" in line
    assert {path: path.read_bytes() for path in begun.path.iterdir()} == before, "nothing is written"


def changed(parts, change):
    stages = copy.deepcopy(parts.stages)
    return change(stages) or stages


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("stages.image.steps", lambda stages: stages["image"].update(steps=4)),
        ("stages.omni.data.text.share", lambda stages: stages["omni"]["data"].update(text=2)),
        ("stages.omni.data.mixed.share", lambda stages: stages["omni"]["data"].pop("mixed") and None),
        # Order counts: rules are tried in turn, stages train in turn, a mixture is cut in the order of its sources.
        ("stages[order]", lambda stages: dict(reversed(stages.items()))),
        (
            "stages.audio.train[order]",
            lambda stages: stages["audio"].update(train=dict(reversed(stages["audio"]["train"].items()))),
        ),
        (
            "stages.omni.data[order]",
            lambda stages: stages["omni"].update(data=dict(reversed(stages["omni"]["data"].items()))),
        ),
    ],
)
def test_begin_refuses_changed_stages(begun, recipe_of, parts, named, change):
    with pytest.raises(ValueError) as caught:
        begin(begun, recipe_of(changed(parts, change)))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines() if f": {named}: " in line] == [named]


def test_begin_refuses_parts_in_another_order(begun, recipe_of, parts):
    """Modalities run, and byte-level tokens are numbered, in the order in which they are written."""
    with pytest.raises(ValueError, match=r": modalities\[order\]: "):
        begin(begun, recipe_of(modalities=dict(reversed(parts.modalities.items()))))
    backbone = copy.deepcopy(parts.backbone)
    backbone["chat"]["prefix"] = dict(reversed(backbone["chat"]["prefix"].items()))
    with pytest.raises(ValueError, match=r": backbone\.chat\.prefix\[order\]: "):
        begin(begun, recipe_of(backbone=backbone))


def test_begin_allows_what_changes_nothing_that_is_computed(begun, recipe_of):
    begin(begun, recipe_of(run={"save": 7, "keep": 5, "log": 3}))
    assert "keep: 5" in (begun.path / "recipe.yaml").read_text()


def test_begin_refuses_other_data(tmp_path, recipe_of, world, parts):
    copied = tmp_path / "text.jsonl"
    shutil.copy(world / "text.jsonl", copied)
    data = {"text": {"type": "jsonl", "path": str(copied)}}
    recipe = recipe_of({"language": parts.stages["language"]}, data=data)
    run = RunFolder(tmp_path / "run")
    begin(run, recipe)
    with copied.open("a") as file:
        file.write(copied.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"data\.text has changed since this run began; give --out another folder"):
        begin(run, recipe)


def test_a_run_that_another_process_began_in_the_meantime_is_not_taken_for_ones_own(
    tmp_path, recipe_of, parts, quiet, monkeypatch
):
    """While this one looked at its data and had no lock yet; the other has ended, and its lock is gone."""
    stages, folder = {"language": parts.stages["language"]}, tmp_path / "run"

    def meanwhile(*_):
        other = recipe_of(stages, run={"seed": 5})
        run = RunFolder(folder)
        run.begin(other, run.check(other))
        return {}

    monkeypatch.setattr("omnikit.train.check_data", meanwhile)
    with pytest.raises(ValueError, match=r"run\.seed: the run was begun with 5, the recipe now says 0"):
        train(recipe_of(stages), folder, quiet)
    assert "seed: 5" in (folder / "recipe.yaml").read_text()


def test_begin_refuses_a_folder_of_something_else(tmp_path, recipe_of):
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no run; give --out a new folder"):
        begin(RunFolder(tmp_path), recipe_of())
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


def test_a_begin_that_is_killed_anywhere_can_be_begun_again(tmp_path, recipe_of):
    recipe = recipe_of()
    for at in range(1, 1 + points_of(lambda: begin(RunFolder(tmp_path / "whole"), recipe))):
        run = RunFolder(tmp_path / f"run{at}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            Accident(patch, at)
            begin(run, recipe)
        begin(run, recipe)
        assert (run.path / "recipe.yaml").is_file() and (run.path / "lock.json").is_file()
    assert at >= 4


def test_resuming_with_tensors_missing_is_an_error_that_says_so(tmp_path, recipe_of, parts, quiet, monkeypatch):
    recipe = recipe_of({"language": parts.stage({"text": 1}, {"rest": 1e-3}, steps=4)})
    stop_after(monkeypatch, 1)
    with pytest.raises(Killed):
        train(recipe, tmp_path, quiet)
    monkeypatch.undo()
    folder = tmp_path / "language/step-000002"
    state = json.loads((folder / "state.json").read_text())
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}
    save(folder, {name: tensor for name, tensor in tensors.items() if not name.endswith("exp_avg")}, state)
    with pytest.raises(ValueError, match=r"step-000002: lacks \d+ tensors, such as optim\.state\..*exp_avg;"):
        train(recipe, tmp_path, quiet)


def stop_after(monkeypatch, saves):
    """Kill the run right after so many of its checkpoints."""
    real, left = RunFolder.save, [saves]

    def save_and_die(self, *args, **kwargs):
        real(self, *args, **kwargs)
        left[0] -= 1
        if not left[0]:
            raise Killed

    monkeypatch.setattr(RunFolder, "save", save_and_die)


# ---------------------------------------------------------------------------------------------------------- what it is


def test_no_file_of_a_run_is_a_pickle_or_a_zip(tmp_path, recipe_of, quiet, small_windows):
    train(recipe_of(), tmp_path, quiet)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yaml", ".json", ".jsonl", ".safetensors", ""}
    assert len(files) > 10
    for path in files:
        head = path.read_bytes()[:2]
        assert head and not head.startswith((b"PK", b"\x1f\x8b")), path
        assert not (head[0] == 0x80 and head[1] in range(2, 6)), f"{path}: a pickle"
        if path.suffix in (".json", "", ".jsonl"):
            [
                json.loads(line)
                for line in ([path.read_text()] if path.suffix != ".jsonl" else path.read_text().splitlines())
            ]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as opened:
                assert list(opened.keys())
