"""What ranks run in the tests of what they compute: many cases in one start."""

import json
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from omnikit.account import Account
from omnikit.checkpoint import RunFolder
from omnikit.data import Entry, StageData, layouter_of
from omnikit.distributed import joined, sum_replicas
from omnikit.packing import collate
from omnikit.recipe import built, load_recipe
from omnikit.registry import Registry
from omnikit.stages import apply_rules, optimizer_of, rules_by_parameter, trained
from omnikit.starting import _restore, changing, cut_up, optimizer_tensors, start_of


def _model(recipe, stage, world, cut=True):
    """The model of a stage, cut up among the ranks, and its optimizer; or whole, as a single rank has it."""
    model = start_of(recipe, stage, RunFolder(Path("nowhere")), fill=world.is_first or not cut)
    rules = rules_by_parameter((name for name, _ in model.named_parameters()), recipe, stage)
    apply_rules(model, rules)
    if cut:
        cut_up(model, recipe, world)
    return model, optimizer_of(model, rules)


def _full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def reshard(path, source, target, held):
    """Load the checkpoint of `source` (with its optimizer) into as many ranks as there are, and save it in `target`."""
    recipe = load_recipe(Path(path), Registry.load())
    with joined() as alone:
        world = alone.copies(held)
        name = next(iter(recipe.stages))
        model, optimizer = _model(recipe, name, world)
        checkpoint = next(c for c in RunFolder(Path(source)).committed(name) if c.step == 2)
        for tensor in (*trained(model).values(),):
            torch.nn.init.constant_(tensor.to_local() if isinstance(tensor, DTensor) else tensor, 7.0)
        _restore(model, optimizer, checkpoint)
        tensors = changing(model) | optimizer_tensors(model, optimizer)
        RunFolder(Path(target)).save(name, 2, tensors, checkpoint.state(), 2, world)


def subsets(path, records, out, held):
    """For every pair of `records` (a rank's samples, by the micro-batch) the loss and gradients of the ranks together,
    beside those of one process that computes all of it; a line of `out` for each.
    """
    recipe = load_recipe(Path(path), Registry.load())
    with joined() as alone:
        world = alone.copies(held)
        name = next(iter(recipe.stages))
        data = StageData(recipe, name, layouter_of(recipe))
        source = next(iter(data.sources))
        model, _ = _model(recipe, name, world)
        whole, _ = _model(recipe, name, world, cut=False)
        model.eval()
        whole.eval()

        def batch_of(numbers):
            packs, items = [], []
            for number in numbers:
                layout, found = data.read(Entry(source, number, int(data.indexes[source].lengths[number])))
                assert not layout.bad, layout.bad
                packs.append((layout,))
                items += found
            return collate(packs or [()], items, recipe.stages[name].batch.length)

        for case in json.loads(records):
            account = Account(built(recipe, name), world)
            for slot, by_rank in enumerate(case, 1):
                sum_replicas(model, slot == len(case))
                batch = batch_of(by_rank[world.rank])
                loss = model(batch)
                loss.total.backward()
                account.add(batch, loss)
            gradients = {path: [p.grad] for path, p in trained(model).items()}
            told = account.settle(gradients, 0, False, (0.0, 0.0))
            total = torch.zeros((), dtype=torch.float64)
            for by_rank in case:
                for numbers in by_rank:
                    loss = whole(batch_of(numbers))
                    loss.total.backward()
                    total += loss.total.detach().double()
            worst, largest, unused = 0.0, 0.0, {}
            for path, expected in trained(whole).items():
                found = _full(trained(model)[path].grad)
                worst = max(worst, float((found - expected.grad).abs().max()))
                largest = max(largest, float(expected.grad.abs().max()))
                part = ".".join(path.split(".")[:2])
                unused[part] = max(unused.get(part, 0.0), float(found.abs().max()))
            model.zero_grad(set_to_none=True)
            whole.zero_grad(set_to_none=True)
            if world.is_first:
                line = {
                    "case": case,
                    "loss": sum(told.losses.values()),
                    "expected": float(total),
                    "worst": worst / largest,
                    "gradient": unused,
                    "groups": sorted(told.losses),
                }
                with open(out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
