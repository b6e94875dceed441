"""Compiled blocks (`run.compile`) against the same blocks as they are, by torch's own compiler for this machine."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from omnikit_siglip import SiglipConfig
from torch._dynamo.utils import counters

from omnikit.compiling import compile_in_place
from omnikit.component import Item
from omnikit.recipe import dump_recipe
from omnikit.train import train

STEPS = 6


@pytest.fixture(autouse=True)
def forgetful():
    """Nothing is compiled yet; afterwards all is forgotten again."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_of_siglip_base_is_the_same(precision):
    encoder = SiglipConfig(preset="base-patch16-256").model_copy(update={"layers": 1}).build()
    pixels = torch.randn(11, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    items = [Item(one[None], (1, 16, 16)) for one in pixels]
    weights = torch.randn(11 * 256, encoder.width, generator=torch.Generator().manual_seed(1))
    features = []
    for compiles in (False, True):
        if compiles:
            compile_in_place(encoder.blocks)
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            features.append(encoder(items))
        (features[-1] * weights).mean().backward()
        features.append(encoder.tower.embeddings.patch_embedding.weight.grad.clone())
    assert counters["stats"]["unique_graphs"], "something was compiled"
    plain, gradient, compiled, gradient_compiled = features
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    torch.testing.assert_close(compiled, plain, rtol=0, atol=tolerance)
    apart = (gradient_compiled - gradient).norm() / gradient.norm()
    assert apart < (1e-4 if precision == "fp32" else 2e-2)


class Losses:
    """A display that keeps the losses."""

    def __init__(self, quiet):
        self.quiet, self.losses = quiet, []

    def __getattr__(self, name):
        return getattr(self.quiet, name)

    def step(self, record):
        self.losses.append(record["loss"])


def test_a_run_learns_the_same_and_goes_on_in_another_process_bitwise(recipe_of, parts, quiet, tensors_of, tmp_path):
    stages = {"only": parts.stage({"text": 1, "mixed": 1}, {"rest": 3e-3}, steps=STEPS)}  # sounds beside pictures
    recipes = [
        recipe_of(stages, run={"compile": compiles, "precision": "bf16", "save": 3}) for compiles in (False, True)
    ]
    path, whole, cut = tmp_path / "recipe.yaml", tmp_path / "whole", tmp_path / "cut"
    path.write_text(dump_recipe(recipes[1]))
    command = [sys.executable, "-m", "omnikit", "train", str(path), "--out"]
    subprocess.run([*command, str(whole)], check=True, timeout=900)

    plain = Losses(quiet)
    train(recipes[0], tmp_path / "plain", plain)
    compiled = [json.loads(line)["loss"] for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert compiled == pytest.approx(plain.losses, rel=5e-3)
    assert compiled != plain.losses, "bf16 is rounded elsewhere: else nothing was compiled"

    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "only" / f"step-{STEPS:06}")
    went_on = subprocess.run([*command, str(cut)], check=True, timeout=900, capture_output=True, text=True)
    assert "going on after 3" in went_on.stdout + went_on.stderr
    one, other = (tensors_of(folder / "only" / f"step-{STEPS:06}") for folder in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
