"""A stage that keeps its features is the stage without them: the same losses, and exact when it goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from omnikit.checkpoint import MEASURED
from omnikit.recipe import dump_recipe
from omnikit.train import train

pytestmark = pytest.mark.usefixtures("small_windows")


class Killed(BaseException):
    """Stands for kill -9 where a test needs to say when."""


class Observed:
    """A display that keeps what it is shown, and dies where it is told."""

    def __init__(self, die_at=None):
        self.records, self.made, self.die_at = [], 0, die_at

    def indexing(self, source, done, records):
        pass

    def caching(self, what, done, total):
        self.made += what.startswith("features")
        if self.die_at == ("features", self.made):
            raise Killed

    def note(self, text):
        assert text.startswith("data."), text

    def stage(self, name, done, steps):
        pass

    def step(self, record):
        self.records.append(record)
        if self.die_at == (record["stage"], record["step"]):
            raise Killed


def without_time(line):
    return {key: value for key, value in line.items() if key not in MEASURED}


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("OMNIKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


DATA = {"text": 1, "image": 1, "mixed": 2, "video": 2}
RULES = {"encoders": "frozen", "backbone.model.layers.0": "frozen", "rest": {"lr": 5e-3, "weight_decay": 0.1}}


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 2e-6), ("bf16", 2e-2)])
def test_losses_are_those_of_a_stage_without_a_cache(recipe_of, parts, tmp_path, precision, bound):
    """Live, the items of a batch are encoded together: sums in another order, and steps that build on them.

    Measured over these six steps on a CPU: no difference at all, in either precision, nor with a tower of SigLIP's base
    size. Features moved by 1e-4 are seen; the bounds leave room for kernels that go by the size of a batch.
    """
    found = {}
    for cached in (False, True):
        entry = parts.stage(DATA, RULES, steps=6, cache=cached, batch={"length": 64, "packs": 4, "micro": 4})
        recipe = recipe_of({"one": entry}, run={"precision": precision}, config={"attention_dropout": 0.2})
        display = Observed()
        train(recipe, tmp_path / str(cached), display)
        found[cached] = display.records
        assert bool(display.made) is cached
    differences = []
    for live, stored in zip(found[False], found[True], strict=True):
        assert live["losses"].keys() == stored["losses"].keys()
        assert {key: live[key] for key in ("labels", "tokens", "bad")} == {
            key: stored[key] for key in ("labels", "tokens", "bad")
        }
        differences += [abs(stored["losses"][group] / loss - 1) for group, loss in live["losses"].items()]
    print(precision, max(differences))
    assert max(differences) < bound


@pytest.fixture(scope="module")
def whole(recipe_of, parts, tmp_path_factory):
    """A run of two stages, the second with features and over a window's edge: recipe, run, metrics."""
    stages = {
        "language": parts.stage({"text": 1}, {"backbone": 1e-2}, steps=2),
        "omni": parts.stage(DATA, RULES, steps=7, cache=True, schedule={"shape": "cosine", "warmup": 0.3}),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnikit.mixing.WINDOW", 16)
        patch.setattr("omnikit.mixing.PACKS", 0)
        patch.setenv("OMNIKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        torch.set_num_threads(1)
        recipe = recipe_of(stages, run={"save": 1, "keep": 100}, config={"attention_dropout": 0.2})
        run = train(recipe, tmp_path_factory.mktemp("whole"), Observed())
    windows = [found.state()["position"][0] for found in run.committed("omni")]
    assert windows[0] == 0 and windows[-1] >= 1
    return recipe, run, [without_time(line) for line in run.metrics()]


@pytest.mark.parametrize(
    ("at", "kept"),
    [
        (("features", 4), "all"),
        (("omni", 1), "none"),
        (("omni", 4), "some"),
        (("omni", 6), "all"),
        (("omni", 6), "none"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1]}",
)
def test_a_stage_with_features_that_was_cut_ends_bitwise_the_same(
    whole, own_folder, tmp_path, tensors_of, monkeypatch, at, kept
):
    recipe, expected, metrics = whole
    monkeypatch.setattr("omnikit.filling.ITEMS", 3)  # other shards than the whole run has
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", Observed(die_at=at))
    shards = sorted(own_folder.glob("features-*"))
    if kept == "none":
        shutil.rmtree(own_folder)
    elif kept == "some":
        for path in shards[::2]:
            path.unlink()
    display = Observed()
    run = train(recipe, tmp_path / "run", display)
    assert bool(display.made) is (kept != "all" or at[0] == "features")
    ends = [tensors_of(one.latest("omni").folder) for one in (expected, run)]
    assert all(torch.equal(ends[1][name], tensor) for name, tensor in ends[0].items())
    assert run.latest("omni").hash() == expected.latest("omni").hash()
    assert run.latest("omni").state()["cached"] is True
    assert [without_time(line) for line in run.metrics()] == metrics


# ----------------------------------------------------------------------------------------------------------- kill -9

FILLING = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from omnikit import filling
from omnikit.recipe import load_recipe
from omnikit.registry import Registry
sys.path.insert(0, sys.argv[1])
from test_features import Filled, shards
import omnikit.builtin.backbone, omnikit_siglip.module, omnikit_siglip.reader, omnikit_whisper.module
import transformers.models.llama.modeling_llama
assert len(os.listdir("/proc/self/task")) == 1 or sys.platform != "linux", "forking with threads may hang"
filling.ITEMS = 3
folder = Path(os.environ["OMNIKIT_CACHE"])
recipe = load_recipe(sys.argv[2], Registry.load())
theirs, ours = os.pipe()

def start(number):
    "A fill, which says so and waits when it has written half of the shard after so many."
    child = os.fork()
    if not child:
        save = filling.save_file
        def slow(tensors, path):
            save(tensors, path)
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            if len(shards(folder)) == number:
                os.write(ours, b"x")
                time.sleep(100)
            time.sleep(0.02)
            path.write_bytes(content)
        filling.save_file = slow
        os._exit(0 if Filled(recipe).used else 1)
    return child

for number in (2, 3, 5):
    child = start(number)
    os.read(theirs, 1)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    print(*(f"{path.name}:{path.stat().st_mtime_ns}" for path in shards(folder)), sep=",")
children = [start(None) for _ in range(3)]
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
print(*(f"{path.name}:{path.stat().st_mtime_ns}" for path in shards(folder)), sep=",")
filled = Filled(recipe)
assert filled.used and not filled.display.made
for place, item, stored in filled.media():
    encoder = filled.model.encoders[recipe.modalities[place.modality].encoder]
    assert torch.equal(stored.value, encoder([item])), place
"""


def test_fills_that_are_killed_or_run_at_once_leave_whole_shards_alone(recipe_of, parts, own_folder, tmp_path):
    """Eight pictures, clips and sounds, three in a shard: fills killed as the third, fourth and sixth shard is half
    written, then three fills at once. All are children of one process, which has imported what they need."""
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe_of({"one": parts.stage(DATA, RULES, steps=16, cache=True)})))
    found = subprocess.run(
        [sys.executable, "-c", FILLING, str(Path(__file__).parents[1] / "unit"), str(path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    after = [set(line.split(",")) for line in found.stdout.split()]
    assert [len(names) for names in after] == [2, 3, 5, 9], "three at once make each shard once"
    assert after[0] < after[1] < after[2] < after[3], "whole shards are left as they were"
    assert not [*own_folder.glob("*.part"), *own_folder.glob("*.lock")]
