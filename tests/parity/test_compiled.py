"""Compiled blocks (`run.compile`) against the same blocks as they are, by torch's own compiler for this machine."""

import json
import os
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


def test_a_run_learns_the_same_and_goes_on_with_the_same_kernels_bitwise(recipe_of, parts, tensors_of, tmp_path):
    stages = {"only": parts.stage({"text": 1, "image": 1}, {"rest": 3e-3}, steps=STEPS)}
    recipes = [
        recipe_of(stages, run={"compile": compiles, "precision": "bf16", "save": 3}) for compiles in (False, True)
    ]
    environ = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels"), "OMP_NUM_THREADS": "1"}

    def run(recipe, folder):
        path = tmp_path / f"{folder}.yaml"
        path.write_text(dump_recipe(recipe))
        command = [sys.executable, "-m", "omnikit", "train", str(path), "--out", str(tmp_path / folder)]
        return subprocess.run(command, check=True, timeout=900, env=environ, capture_output=True, text=True).stderr

    def losses(folder):
        return [json.loads(line)["loss"] for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]

    run(recipes[0], "plain")
    run(recipes[1], "whole")
    assert losses("whole") == pytest.approx(losses("plain"), rel=5e-3)
    assert losses("whole") != losses("plain"), "bf16 is rounded elsewhere: else nothing was compiled"

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "only" / f"step-{STEPS:06}")
    assert "going on after 3" in run(recipes[1], "cut")
    one, other = (tensors_of(folder / "only" / f"step-{STEPS:06}") for folder in (whole, cut))
    assert one.keys() == other.keys()
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
