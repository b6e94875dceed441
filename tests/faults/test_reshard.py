"""Test 7: a checkpoint of four ranks in 1, 2, 3 and 4 ranks and back, bitwise; and data that goes on in other ranks."""

import itertools
import json

import pytest
import torch
from harness import check_same, metrics_of
from safetensors import safe_open
from torch.distributed.checkpoint import load
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from omnikit.checkpoint import RunFolder

TRAIN = {"encoders.vision": "frozen", "rest": 3e-3}


@pytest.fixture(scope="module")
def odd(toy, parts):
    """Sizes that no number of ranks divides: a backbone 30 wide with 45 in its MLPs, 3 heads, a vocabulary as it is."""
    backbone = {**parts.backbone, "config": {**parts.backbone["config"], "tie_word_embeddings": True}}
    backbone["config"] |= {"hidden_size": 30, "intermediate_size": 45}
    backbone["config"] |= {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10}
    stages = {"omni": parts.stage({"text": 1, "image": 1, "audio": 1}, TRAIN, steps=4, batch=BATCH)}
    return toy("odd", stages, backbone=backbone)


BATCH = {"length": 48, "packs": 4, "micro": 1}


@pytest.fixture(scope="module", params=[4, 2], ids=["sharded over 4", "hybrid, 2 by 2"])
def saved(request, ranks, odd, tmp_path_factory):
    """A run of four ranks, whose step 2 holds the optimizer's state."""
    folder = tmp_path_factory.mktemp("four") / "run"
    arguments = ("train", odd, "--out", folder, "--set", f"run.shard={request.param}")
    ranks.run(*arguments, ranks=4, faults=[("small_files", {})])
    assert len([*(folder / "omni/step-000002").glob("*.safetensors")]) > 8, "several files of each rank"
    return folder


def tensors_of(folder):
    """Every tensor, whole, wherever its parts lie."""
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    found = {name: torch.empty(tuple(t.size), dtype=t.properties.dtype) for name, t in stored.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return found


def test_four_ranks_to_any_number_and_back_is_bitwise_the_same(ranks, odd, saved, tmp_path):
    first = tensors_of(saved / "omni/step-000002")
    states = [name for name in first if name.startswith("optim.")]
    odd_sizes = [name for name, tensor in first.items() if tensor.ndim and tensor.shape[0] % 4]
    assert len(states) > 30 and len(odd_sizes) > 30 and len(first) > len(states)
    for size, held in ((1, None), (2, None), (3, None), (4, None), (4, 2), (2, 1), (4, 1)):
        there, back = tmp_path / f"{size}-{held}", tmp_path / f"{size}-{held}-back"
        ranks.run(odd, saved, there, held, ranks=size, call="cases:reshard")
        ranks.run(odd, there, back, None, ranks=4, call="cases:reshard")
        for folder in (there, back):
            found = tensors_of(folder / "omni/step-000002")
            assert found.keys() == first.keys()
            assert all(torch.equal(found[name], tensor) for name, tensor in first.items())
        files = len([*(there / "omni/step-000002").glob("*.safetensors")])
        print(f"injected: 4 ranks -> {size} (run.shard {held}) -> 4: {len(first)} tensors bitwise, {files} files there")


@pytest.mark.parametrize(("size", "held"), [(2, 2), (4, 2)])
def test_frozen_layers_in_16_bits_change_no_bit_on_several_ranks(ranks, toy, parts, tmp_path, size, held):
    """Blocks that are frozen whole, in part and not at all; a frozen root with tied embeddings; hybrid sharding."""
    train = {"backbone.model.layers.0": "frozen", "backbone.model.layers.1.mlp": 1e-3, "encoders.vision": 1e-3}
    stages = {
        "some": parts.stage({"image": 1, "audio": 1}, {**train, "rest": "frozen"}, steps=2, batch=BATCH),
        "all": parts.stage({"image": 1, "audio": 1}, {"rest": 1e-3}, steps=2, batch=BATCH),
    }
    recipe = toy("held", stages, run={"precision": "bf16", "shard": held})
    for name, faults in (("as it is", []), ("whole", [("hold_frozen_whole", {})])):
        ranks.run("train", recipe, "--out", tmp_path / name, ranks=size, faults=faults)
    check_same(tmp_path / "whole", tmp_path / "as it is", tuple(stages))
    print(f"injected: frozen layers in float32 beside those in 16 bits, {size} ranks, run.shard {held}")


def test_a_rank_whose_data_differ_ends_the_run_before_it_trains(ranks, odd, tmp_path):
    started = ranks.start("train", odd, "--out", tmp_path / "run", faults=[("other_index", {"rank": 1})])
    codes = started.wait()
    print(f"injected: another index of data.image on rank 1: {codes}\n{started.told()}")
    assert codes == [2, 2] and "Traceback" not in started.told()
    assert started.told().count("data.image: has other lengths on rank 1 than on rank 0;") == 1
    assert not list(RunFolder(tmp_path / "run").metrics())


def test_kept_features_recomputing_and_held_out_samples_are_on_ranks_as_on_one(ranks, toy, parts, world, tmp_path):
    heldout = {
        name: {"data": {"type": "jsonl", "path": str(world / f"{name}.jsonl"), "modalities": holds}, "metric": "exact"}
        for name, holds in {"text": [], "image": ["image"]}.items()
    }
    train = {"encoders.vision": "frozen", "rest": 3e-3}
    stages = {"one": parts.stage({"text": 1, "image": 2}, train, steps=4, batch=BATCH, cache=True)}
    recipe = toy("kept", stages, heldout=heldout, run={"recompute": True, "eval": 2})
    lines, made = {}, {}
    for size in (1, 2):
        folder, cache = tmp_path / f"{size}", tmp_path / f"cache {size}"
        ranks.run("train", recipe, "--out", folder, ranks=size, faults=[("small_shards", {})], OMNIKIT_CACHE=str(cache))
        run = RunFolder(folder)
        assert run.latest("one").state()["cached"]
        lines[size] = [(one["step"], one["loss"]) for kind in ("step", "heldout") for one in run.metrics(kind)]
        shards = [sorted(safe_open(path, "pt").keys()) for path in cache.glob("features-*.safetensors")]
        made[size] = sorted(item for shard in shards for item in shard)
        owners = [{int(item, 16) % size for item in shard} for shard in shards]
        assert sorted(map(tuple, owners)) == sorted((rank,) for owner in owners for rank in owner), "each by one rank"
        assert {rank for owner in owners for rank in owner} == set(range(size)), "and every rank made some"
    assert made[1] == made[2] and len(set(made[1])) == len(made[1])
    assert [step for step, _ in lines[1]] == [1, 2, 3, 4, 2, 4] == [step for step, _ in lines[2]]
    found, expected = ([loss for _, loss in lines[size]] for size in (2, 1))
    assert found == pytest.approx(expected, rel=1e-5)
    print(f"injected: shards of two features; 2 ranks beside one: {found} beside {expected}")


def read_by(folder):
    """Per step the ids that were read, in any order; of the newest start that made it."""
    found = {}
    for path in sorted(folder.glob("trace-*.jsonl")):
        lines, ids = [json.loads(line) for line in path.read_text().splitlines()], []
        for line in lines:
            if line["what"] == "read":
                ids = line["ids"]
            elif line["what"] == "step":
                found.setdefault(line["step"], []).extend(ids)
    return {step: sorted(ids) for step, ids in found.items()}


def test_data_goes_on_where_it_was_when_the_number_of_ranks_changes(ranks, toy, parts, tmp_path):
    stages = {"omni": parts.stage({"text": 1, "image": 1, "mixed": 1}, TRAIN, steps=12, batch=BATCH)}
    recipe = toy("order", stages, run={"save": 100})
    (tmp_path / "one").mkdir()
    trace = ("trace", {"folder": str(tmp_path / "one")})
    ranks.run("train", recipe, "--out", tmp_path / "whole", ranks=1, faults=[trace])
    expected = read_by(tmp_path / "one")
    assert len(expected) == 12 and all(expected.values())

    found = {}
    for number, (size, stop) in enumerate(((4, 3), (2, 7), (4, None))):
        folder = tmp_path / str(number)
        folder.mkdir()
        faults = [("trace", {"folder": str(folder)})]
        faults += [("stop_after", {"stage": "omni", "step": stop})] if stop else []
        codes = (75,) if stop else (0,)
        ranks.run("train", recipe, "--out", tmp_path / "cut", ranks=size, faults=faults, codes=codes)
        told = read_by(folder)
        assert not told.keys() & found.keys(), "no step is made twice"
        found |= told
    print(f"injected: 4 ranks to step 4, 2 to step 8, 4 to the end: ids by step as of one rank: {found == expected}")
    assert found == expected
    losses = [[line["loss"] for line in metrics_of(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    seen = list(itertools.chain.from_iterable(found.values()))
    assert len(seen) > 60
    assert RunFolder(tmp_path / "cut").latest("omni").step == 12
