"""Answers of a trained run.

Letters: N prompts in a batch, T positions of the longest prompt, H backbone width.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from omnikit.checkpoint import RunFolder
from omnikit.component import EncoderConfig, Grid, Item, Medium, ReaderConfig, Sample
from omnikit.data import branches_of, layouter_of
from omnikit.model import OmniModel
from omnikit.packing import collate, read_items
from omnikit.recipe import Recipe, load_recipe
from omnikit.registry import Registry
from omnikit.sample import Branch, Layout, Layouter
from omnikit.stages import build
from omnikit.starting import ancestors, inherit

BATCH = 64


class Run:
    """A run's recipe and model, ready to answer."""

    def __init__(self, recipe: Recipe, model: OmniModel) -> None:
        self.recipe = recipe
        self.model = model.eval()
        self.layouter = layouter_of(recipe)

    @classmethod
    def load(cls, folder: Path, registry: Registry) -> "Run":
        """The run in `folder`, as far as it has been trained."""
        path = folder / "recipe.yaml"
        if not path.is_file():
            raise ValueError(f"{folder}: holds no run (no recipe.yaml); give the folder that `omnikit train` wrote")
        recipe = load_recipe(path, registry)
        checkpoints = ancestors(recipe, None, RunFolder(folder))
        if not any(checkpoint.step for checkpoint in checkpoints):
            raise ValueError(f"{folder}: has no checkpoint yet; let `omnikit train` reach its first one")
        model = build(recipe, frozenset(recipe.modalities))
        inherit(model, checkpoints)
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(recipe, model)

    def answer(self, samples: Sequence[Sample], blind: bool = False, max_tokens: int = 64) -> list[str]:
        """What the model says in place of each sample's last assistant turn, greedily.

        `blind` replaces every medium by its encoder's `example()`: what is still right then was guessed.
        """
        layouter = self.layouter
        if blind:
            layouter = Layouter(layouter.chat, layouter.tokenizer, _blind_branches(self.recipe))
        layouts = [layouter(sample, answer=False) for sample in samples]
        # Prompts of like length share a batch, so that little is padded.
        order = sorted(range(len(layouts)), key=lambda index: len(layouts[index].ids))
        answers = [""] * len(layouts)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            texts = self._answer_batch([layouts[index] for index in chosen], layouter, max_tokens)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
        return answers

    @torch.inference_mode()
    def _answer_batch(self, layouts: list[Layout], layouter: Layouter, max_tokens: int) -> list[str]:
        length = max(len(layout.ids) for layout in layouts)
        packs = [(layout,) for layout in layouts]
        items = [item for one in packs for item in read_items(one, layouter.branches)]
        batch = collate(packs, items, length).to(next(self.model.backbone.parameters()).device)
        embeds, mask = _left_padded(self.model.embed(batch), batch.segments > 0)
        written: list[list[int]] = [[] for _ in layouts]
        for tokens in self._greedy(embeds, mask, max_tokens):
            for row, token in enumerate(tokens):
                if not written[row] or written[row][-1] != layouter.stop:
                    written[row].append(token)
            if all(row[-1] == layouter.stop for row in written):
                break
        return [layouter.tokenizer.decode([token for token in row if token != layouter.stop]) for row in written]

    def _greedy(self, embeds: Float[Tensor, "N T H"], mask: Tensor, max_tokens: int) -> Iterator[list[int]]:
        """The most likely next token of each prompt, again and again, with a cache."""
        backbone, cache = self.model.backbone, None
        for _ in range(max_tokens):
            hidden, cache = backbone.extend(embeds, mask, cache)
            tokens = backbone.head(hidden[:, -1]).argmax(-1)
            yield tokens.tolist()
            embeds = backbone.embed(tokens[:, None])
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)


def _left_padded(embeds: Float[Tensor, "N T H"], real: Tensor) -> tuple[Float[Tensor, "N T H"], Tensor]:
    """Rows moved to the right end, and their mask: every prompt ends where its answer begins."""
    length = embeds.shape[1]
    shift = length - real.sum(1, keepdim=True)
    source = torch.arange(length, device=embeds.device)[None, :] - shift
    mask = (source >= 0).long()
    return embeds.gather(1, source.clamp(min=0)[:, :, None].expand_as(embeds)), mask


class _ExampleReader(ReaderConfig):
    """Reads every medium as its encoder's `example()`."""

    type = "example"
    encoder: EncoderConfig

    def grids(self, medium: Medium, input: Any) -> list[Grid]:  # noqa: ANN401
        return [self.encoder.example().grid]

    def read(self, medium: Medium, input: Any, grid: Grid) -> Item:  # noqa: ANN401
        return self.encoder.example()


def _blind_branches(recipe: Recipe) -> Mapping[str, Branch]:
    return {
        name: branch._replace(reader=_ExampleReader(encoder=recipe.encoders[recipe.modalities[name].encoder]))
        for name, branch in branches_of(recipe).items()
    }
