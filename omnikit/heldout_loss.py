"""The loss on held-out samples while a stage trains, and the alarm where a model forgets its language.

Samples of the recipe's `heldout` are laid out as if they were trained on, and their answers' loss is what is measured:
no answer is generated (`omnikit.heldout` does that, at the end). Every rank makes the same number of forward passes.
Nothing of the training changes by it: no gradient, dropout off, and chance is drawn anew in every step anyway.

Letters: S held-out sets, G groups of samples by what they hold.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from omnikit.account import groups_of
from omnikit.component import Item, Sample
from omnikit.data import stand_back
from omnikit.distributed import World
from omnikit.model import OmniModel
from omnikit.packing import Batch, Pack, collate, pack, read_items
from omnikit.recipe import Batch as BatchSize
from omnikit.recipe import Recipe, built
from omnikit.sample import BadSample, Layout, Layouter

SAMPLES = 64
"""Of each held-out set, spread over it: the same ones every time."""


class Part(NamedTuple):
    """A micro-batch before its media are read: the set that its samples are of, and its packs."""

    which: str
    packs: list[Pack]


class HeldOut:
    """The held-out samples that a stage's model is measured on: those of the sets whose modalities it has."""

    def __init__(
        self, recipe: Recipe, stage: str, layouter: Layouter, world: World, before: Iterable[Mapping[str, Any]]
    ) -> None:
        """`before` are the lines that were made so far, of this stage and of others."""
        self.stage, self.world, self.branches = stage, world, layouter.branches
        self.every, self.bf16 = recipe.run.eval, recipe.run.precision == "bf16"
        self.forgetting = Forgetting(next(iter(recipe.stages)), recipe.run.forgetting, before)
        batch, known = recipe.stages[stage].batch, built(recipe, stage)
        self.length, self.micro = batch.length, batch.micro
        self.groups = groups_of(known)
        first = set(built(recipe, next(iter(recipe.stages))))
        always = {name for name, entry in recipe.heldout.items() if set(entry.data.modalities) <= first}
        # Text that not every stage has room for would be measured by some and not, or cut, by others.
        room = min(one.batch.length for one in recipe.stages.values())

        def parts() -> Iterator[Part]:
            for name, entry in recipe.heldout.items():
                if set(entry.data.modalities) <= set(known):
                    source = entry.data.open()
                    found = (one for one in _laid_out(source, layouter, batch) if _held_in(one) <= set(known))
                    layouts = [one for one in found if one.places or (len(one.ids) <= room and not one.cut)]
                    packs = pack([len(layout.ids) for layout in layouts], batch.length)
                    for begin in range(0, len(packs), batch.micro):
                        chosen = packs[begin : begin + batch.micro]
                        yield Part(name, [tuple(layouts[number] for number in one) for one in chosen])

        # The first rank's word holds: if another one cannot read a file, they must not part.
        self.parts = world.agree(lambda: list(parts()))
        self.sets = list(dict.fromkeys(part.which for part in self.parts))
        self.always = [number for number, name in enumerate(self.sets) if name in always]
        """The sets that the first stage measures, too."""

    def is_due(self, step: int) -> bool:
        """Whether it is the time to measure after this step."""
        return self.every is not None and step % self.every == 0

    def measure(self, model: OmniModel, step: int) -> dict[str, Any]:
        """The line of metrics.jsonl for the model as it is after `step`; empty where no set can be measured.

        Mean losses of a label token: of all, by what samples hold, by set, and of text alone in those sets that the
        first stage measures as well. Called by every rank.
        """
        if not self.parts:
            return {}
        began = time.perf_counter()
        totals, labels = self._sums(model)

        def means(names: Iterable[str], axis: int, sets: list[int] | slice = slice(None)) -> dict[str, float]:
            pairs = zip(names, totals[sets].sum(axis).tolist(), labels[sets].sum(axis).tolist(), strict=True)
            return {name: total / number for name, total, number in pairs if number}

        line: dict[str, Any] = {
            "kind": "heldout",
            "stage": self.stage,
            "step": step,
            "loss": totals.sum().item() / max(labels.sum().item(), 1),
            "losses": means(self.groups, 0),
            "sets": means(self.sets, 1),
            "text": means(self.groups, 0, self.always).get("text"),
            "labels": int(labels.sum()),
            "seconds": time.perf_counter() - began,
        }
        return line | {"alarm": self.forgetting.add(line)}

    @torch.no_grad()
    def _sums(self, model: OmniModel) -> Float[Tensor, "2 S G"]:
        """Summed losses, and label tokens, by set and group."""
        device = self.world.device
        sums = torch.zeros(2, len(self.sets), len(self.groups), dtype=torch.float64, device=device)
        with _asking(model):
            for which, batch in self._batches():
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    loss = model(batch.to(device))
                where = torch.tensor([self.groups[name] for name in batch.group_names], device=device)
                if len(where):
                    of_set = sums[:, self.sets.index(which)]
                    of_set.index_add_(1, where, torch.stack([loss.by_group.double(), loss.counts.double()]))
        return self.world.add(sums).cpu()

    def _batches(self) -> Iterator[tuple[str, Batch]]:
        """This rank's micro-batches, as many as every rank's; one is read while another is computed."""
        own = self.parts[self.world.rank :: self.world.size]
        own += [Part(self.sets[0], [])] * (math.ceil(len(self.parts) / self.world.size) - len(own))
        with ThreadPoolExecutor(1, thread_name_prefix="heldout", initializer=stand_back) as pool:
            reading = pool.submit(self._read, own[0])
            for after in (*own[1:], None):
                ready = reading.result()
                if after is not None:
                    reading = pool.submit(self._read, after)
                yield ready

    def _read(self, part: Part) -> tuple[str, Batch]:
        items: list[Item] = []
        rows: list[Pack] = []
        for one in part.packs:
            row = []
            for layout in one:
                try:
                    items += read_items((layout,), self.branches)
                    row.append(layout)
                except BadSample as error:
                    row.append(Layout.padding(layout.id, len(layout.ids), str(error)))
            rows.append(tuple(row))
        # Batches of the shape that training has: compiled blocks need one graph more, without gradients, and no others.
        return part.which, collate(rows + [()] * (self.micro - len(rows)), items, self.length)


def _held_in(layout: Layout) -> set[str]:
    """The modalities that a sample holds."""
    return {place.modality for place in layout.places}


def _laid_out(source: Sequence[Sample], layouter: Layouter, batch: BatchSize) -> Iterator[Layout]:
    """Layouts of some samples of a source; one that cannot be used is left out."""
    for number in np.linspace(0, len(source) - 1, min(len(source), SAMPLES), dtype=int).tolist():
        try:
            sample = source[number]
        except ValueError:
            continue
        try:
            yield layouter(sample, room=batch.length, cut=batch.cut)
        except BadSample:
            continue


@contextmanager
def _asking(model: OmniModel) -> Iterator[None]:
    """Within it nothing is dropped and every encoder runs; afterwards the model is as it was, sharded as it was."""
    modes = {module: module.training for module in model.modules()}
    stored, model.stored = model.stored, {}  # features are kept of what is trained on alone
    model.eval()
    try:
        yield
    finally:
        model.stored = stored
        for module, training in modes.items():
            module.training = training
    if isinstance(model, FSDPModule):
        model.reset_iter_state()  # a forward pass without a backward pass leaves the root gathered


class Forgetting:
    """The alarm: text-only samples are understood worse than at the end of the first stage."""

    def __init__(self, first: str, allowed: float, lines: Iterable[Mapping[str, Any]]) -> None:
        """`first` is the first stage, `allowed` the rise, `lines` what was measured so far."""
        self.first, self.allowed = first, allowed
        self.before: float | None = None
        self.told = False
        for line in lines:
            self.add(line)

    def add(self, line: Mapping[str, Any]) -> str | None:
        """Take in a line; what is to be said the first time that the loss has risen too far."""
        loss = line.get("text")
        if line["stage"] == self.first:
            self.before = loss  # of its lines the last counts: its end
        elif not self.told and loss is not None and self.before is not None and loss > self.before + self.allowed:
            self.told = True
            return (
                f"stages.{line['stage']}: step {line['step']}: the loss on held-out text is {loss:.3f}, and was "
                f"{self.before:.3f} at the end of {self.first}: the model forgets. Mix text into this stage, lower the "
                "backbone's rate, or raise run.forgetting"
            )
        return None
