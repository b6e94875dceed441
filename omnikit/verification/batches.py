"""Laws of a step's batches, computed in float32 on one rank."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from omnikit.component import Item
from omnikit.model import OmniModel
from omnikit.packing import Batch, collate
from omnikit.sample import Layout
from omnikit.stages import trained
from omnikit.verification.observing import apart, component_of, gradients_of
from omnikit.verification.results import Finding, absent, close, largest, none_of
from omnikit.verification.trial import Trial

Row = Sequence[tuple[Layout, list[Item]]]
"""A pack's samples with their media."""


def packing_changes_nothing(trial: Trial, stage: str) -> Finding:
    """Samples packed together give the loss and the gradients that each gives alone in a row of its own."""
    model, packs = trial.model(stage), [pack for pack in trial.samples(stage) if pack]
    length = trial.recipe.stages[stage].batch.length
    packed = summed(model, [batch_of(packs, length)])
    # Another order of packs, and within them: neighbours and positions in a row are others.
    turned = summed(model, [batch_of([pack[::-1]], length) for pack in reversed(packs)])
    alone = summed(model, [batch_of([[one]], len(one[0].ids)) for pack in packs for one in pack])
    found = []
    for name, (loss, gradients) in {"packed": packed, "packed in another order": turned}.items():
        difference, where = apart(gradients, alone[1])
        found.append((abs(loss - alone[0]) / max(abs(alone[0]), 1e-12), f"the loss, {name}"))
        found.append((difference, f"gradient of {where}, {name}"))
    return close(*largest(found))


def absent_modalities_add_nothing(trial: Trial, stage: str) -> Finding:
    """A modality that a batch lacks gives its own parameters gradients of exactly zero, and changes no embedding."""
    model = trial.model(stage)
    if not model.branches:
        return absent("its samples hold text alone")
    rows = [one for pack in trial.samples(stage) for one in pack]
    length = trial.recipe.stages[stage].batch.length
    wrong, number = [], 0
    for modality in model.branches:
        without = [one for one in rows if modality not in one[0].group.split("+")]
        batch = batch_of([fitting(without, length)], length)
        model.zero_grad()
        model(batch).total.backward()
        idle = {f"modalities.{modality}.projector"}
        if not any(branch.encoder == model.branches[modality].encoder for name, branch in model.branches.items()
                   if name in batch.media):  # fmt: skip
            idle.add(f"encoders.{model.branches[modality].encoder}")
        for name, parameter in trained(model).items():
            if component_of(name) in idle:
                number += 1
                if parameter.grad is None:
                    wrong.append(f"without {modality}, {name} has no gradient at all: ranks would wait for it for ever")
                elif not bool((parameter.grad == 0).all()):
                    wrong.append(f"without {modality}, {name} has a gradient of {parameter.grad.abs().max():.1e}")
        number += 1
        if not _embeds_text(model, batch):
            wrong.append(f"without {modality}, embeddings of text are not those of the backbone")
    return none_of(wrong, number, "gradients and embeddings")


@torch.no_grad()
def _embeds_text(model: OmniModel, batch: Batch) -> bool:
    places = torch.ones(batch.ids.numel(), dtype=torch.bool)
    for media in batch.media.values():
        places[media.places] = False
    found, expected = model.embed(batch), model.backbone.embed(batch.ids)
    return torch.equal(found.flatten(0, 1)[places], expected.flatten(0, 1)[places])


def batch_of(packs: Sequence[Row], length: int) -> Batch:
    """The batch of these packs; of none, one of padding."""
    items = [item for pack in packs for _, media in pack for item in media]
    return collate([tuple(layout for layout, _ in pack) for pack in packs], items, length)


def fitting(samples: Iterable[tuple[Layout, list[Item]]], length: int) -> list[tuple[Layout, list[Item]]]:
    """As many of the samples, in their order, as fit into one pack."""
    taken, used = [], 0
    for one in samples:
        if used + len(one[0].ids) <= length:
            taken.append(one)
            used += len(one[0].ids)
    return taken


def summed(model: OmniModel, batches: Iterable[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The summed loss of batches, and its gradients."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(batch).total
        loss.backward()
        total += float(loss.detach())
    return total, gradients_of(model)
