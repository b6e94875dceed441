"""Answers of a trained run, many at a time, and how likely it finds given ones.

Letters: N prompts in a batch, T positions of the longest prompt, S positions so far, H backbone width.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from omnikit.blind import blind_branches
from omnikit.checkpoint import RunFolder
from omnikit.component import Item, Sample, Turn
from omnikit.data import layouter_of, stand_back
from omnikit.export.loading import is_export, load
from omnikit.model import OmniModel
from omnikit.packing import collate, positions_of, read_items
from omnikit.recipe import Recipe, load_recipe
from omnikit.registry import Registry
from omnikit.sample import BadSample, Layout, Layouter, TooLong
from omnikit.sampling import Choose, Sampling, chooser
from omnikit.stages import build
from omnikit.starting import ancestors, inherit

PLACES = 8_192
"""Positions of a batch, of prompts and what is written after them: more rows of short prompts, fewer of long ones."""

A, B = TypeVar("A"), TypeVar("B")
Indexed = tuple[int, Layout]
"""A prompt, and the number of its sample."""


class Run:
    """A run's recipe and model, ready to answer."""

    def __init__(self, recipe: Recipe, model: OmniModel) -> None:
        self.recipe = recipe
        self.model = model.eval()
        self.layouter = layouter_of(recipe)
        self.context = recipe.backbone.context()
        """Positions that the backbone has been made for, prompt and answer together; None where it knows no bound."""
        self.checkpoints: list[str] = []
        """The hashes of those that it was loaded from; of an exported folder there are none."""

    @classmethod
    def load(cls, folder: str | Path, registry: Registry | None = None) -> "Run":
        """The run in `folder`, as far as it has been trained, or what `omnikit export` made of one; by default of the
        components that are installed.
        """
        folder, registry = Path(folder), registry or Registry.load()
        recipe, model, hashes = (*load(folder, registry), []) if is_export(folder) else _trained(folder, registry)
        model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        run = cls(recipe, model)
        run.checkpoints = hashes
        return run

    def answer(
        self, samples: Sequence[Sample], blind: bool = False, max_tokens: int = 64, sampling: Sampling | None = None
    ) -> list[str]:
        """What the model says in place of each sample's last assistant turn: the likeliest token again and again, or
        drawn ones. The first sample that cannot be asked is a BadSample.

        `blind` replaces every medium by its encoder's `example()`: what is still right then was guessed.
        """
        answers = [""] * len(samples)
        for number, answer in self.answers(samples, blind, max_tokens, sampling):
            if isinstance(answer, BadSample):
                raise answer
            answers[number] = answer
        return answers

    def answers(
        self, samples: Sequence[Sample], blind: bool = False, max_tokens: int = 64, sampling: Sampling | None = None
    ) -> Iterator[tuple[int, str | BadSample]]:
        """The number of each sample and its answer, as batches are done; in its stead why it cannot be asked."""
        layouter = self.layouter
        if blind:
            layouter = Layouter(layouter.chat, layouter.tokenizer, blind_branches(self.recipe))
        lay_out = _or_why(lambda sample: self.prompt(sample, layouter, max_tokens))
        read = _or_why(lambda prompt: read_items((prompt[1],), layouter.branches))
        with ThreadPoolExecutor(self.recipe.run.workers or 2, "read", initializer=stand_back) as pool:
            prompts: list[Indexed] = []
            for number, layout in enumerate(pool.map(lay_out, samples)):
                if isinstance(layout, BadSample):
                    yield number, layout
                else:
                    prompts.append((number, layout))
            for batch, found in _ahead(pool, read, _batches(prompts, max_tokens)):
                pairs = list(zip(batch, found, strict=True))
                yield from ((number, why) for (number, _), why in pairs if isinstance(why, BadSample))
                whole = [(prompt, items) for prompt, items in pairs if not isinstance(items, BadSample)]
                if whole:
                    layouts = [layout for (_, layout), _ in whole]
                    items = [item for _, own in whole for item in own]
                    choose = chooser(sampling, [layout.id for layout in layouts])
                    answers = self._answer_batch(layouts, items, choose, max_tokens)
                    yield from zip((number for (number, _), _ in whole), answers, strict=True)

    def prompt(self, sample: Sample, layouter: Layouter, max_tokens: int) -> Layout:
        """The sample laid out up to its last assistant turn, its media as small as the context makes them."""
        try:
            return layouter(sample, answer=False, room=self.room(max_tokens))
        except TooLong as error:
            raise self.too_long(f"sample {sample.id}: its prompt", max_tokens) from error

    def room(self, max_tokens: int) -> int | None:
        """Positions that a prompt may have: an answer gets its tokens, but never more than half of the context."""
        return None if self.context is None else self.context - min(max_tokens, self.context // 2)

    def most(self, positions: int, max_tokens: int) -> int:
        """Tokens that an answer after so many positions may have."""
        return max_tokens if self.context is None else min(max_tokens, self.context - positions)

    def too_long(self, what: str, max_tokens: int) -> BadSample:
        """The error of a prompt that has no place in the context."""
        return BadSample(
            f"{what} has more than the {self.room(max_tokens)} positions that a context of {self.context} leaves it, "
            "however small its media are made; shorten it, or let the answer have fewer tokens"
        )

    @torch.inference_mode()
    def likelihoods(self, samples: Sequence[Sample], choices: Sequence[Sequence[str]]) -> list[list[float]]:
        """How likely each of a sample's choices is as its answer: the natural logarithm of the probability of the
        choice's tokens, summed; the token that ends an answer is left out.

        A sample whose choices are one token each costs one pass, other ones a pass for each choice.
        """
        # What stands before a choice's last token decides about all of it; for letters it is the prompt, once for all.
        rows: dict[tuple[int, tuple[int, ...]], Layout] = {}
        wanted: dict[tuple[int, tuple[int, ...]], list[tuple[int, list[int], list[int]]]] = {}
        total = 0
        for number, (sample, texts) in enumerate(zip(samples, choices, strict=True)):
            for text in texts:
                layout = self._with_answer(sample, text)
                spoken = _last_answer(layout, self.layouter.stop)
                ids = tuple(layout.ids[: spoken[-1]])
                rows.setdefault((number, ids), layout._replace(ids=list(ids), learned=[False] * len(ids)))
                looked_up = (total, [at - 1 for at in spoken], [layout.ids[at] for at in spoken])
                wanted.setdefault((number, ids), []).append(looked_up)
                total += 1
        keys, scores = list(rows), [0.0] * total
        for batch in _batches(list(enumerate(rows.values())), 0):
            layouts = [layout for _, layout in batch]
            items = [item for layout in layouts for item in read_items((layout,), self.layouter.branches)]
            for (number, _), hidden in zip(batch, self._hidden(layouts, items), strict=True):
                for choice, at, tokens in wanted[keys[number]]:
                    shares = self.model.backbone.head(hidden[at]).float().log_softmax(-1)
                    found = shares.gather(1, torch.tensor(tokens, device=shares.device)[:, None])
                    scores[choice] = float(found.sum())
        stream = iter(scores)
        return [list(islice(stream, len(texts))) for texts in choices]

    def _with_answer(self, sample: Sample, text: str) -> Layout:
        answered = sample._replace(turns=(*sample.turns[:-1], Turn("assistant", (("text", text),))))
        try:
            layout = self.layouter(answered, room=self.context)
        except TooLong as error:
            raise self.too_long(f"sample {sample.id}: its prompt", 0) from error
        if not _last_answer(layout, self.layouter.stop):
            raise ValueError(f"sample {sample.id}: the choice {text!r} has no token; give one that says something")
        return layout

    def _hidden(self, layouts: Sequence[Layout], items: list[Item]) -> Float[Tensor, "N T H"]:
        length = max(len(layout.ids) for layout in layouts)
        batch = collate([(layout,) for layout in layouts], items, length).to(self.device)
        return self.model.backbone.hidden(self.model.embed(batch), batch.segments, positions_of(batch.segments))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.backbone.parameters()).device

    @torch.inference_mode()
    def _answer_batch(
        self, layouts: Sequence[Layout], items: list[Item], choose: Choose, max_tokens: int
    ) -> Iterable[str]:
        length, stop = max(len(layout.ids) for layout in layouts), self.layouter.stop
        most = [self.most(len(layout.ids), max_tokens) for layout in layouts]
        batch = collate([(layout,) for layout in layouts], items, length).to(self.device)
        embeds, mask = _left_padded(self.model.embed(batch), batch.segments > 0)
        written: list[list[int]] = [[] for _ in layouts]
        for tokens in self._written(embeds, mask, choose, most):
            for row, token in enumerate(tokens):
                if len(written[row]) < most[row] and stop not in written[row][-1:]:
                    written[row].append(token)
            if all(row[-1] == stop or len(row) == end for row, end in zip(written, most, strict=True)):
                break
        return [self.layouter.tokenizer.decode([token for token in row if token != stop]) for row in written]

    def _written(
        self, embeds: Float[Tensor, "N T H"], mask: Tensor, choose: Choose, most: Sequence[int]
    ) -> Iterator[list[int]]:
        """The next token of each prompt, again and again, with a cache.

        What follows a prompt's `most` is seen by nobody and takes no position: one beyond the context would change the
        rotary positions of its neighbours, where they follow the largest of a batch.
        """
        backbone, cache = self.model.backbone, None
        ends = torch.tensor(most, device=mask.device)[:, None]
        for number in range(1, max(most) + 1):
            hidden, cache = backbone.extend(embeds, mask, cache)
            tokens = choose(backbone.head(hidden[:, -1]))
            yield tokens.tolist()
            embeds = backbone.embed(tokens[:, None])
            mask = torch.cat([mask, (number < ends).to(mask.dtype)], dim=1)


def _trained(folder: Path, registry: Registry) -> tuple[Recipe, OmniModel, list[str]]:
    """A run's recipe, its model, and the hashes of its checkpoints: those that a training run makes meanwhile are other
    ones.
    """
    path = folder / "recipe.yaml"
    if not path.is_file():
        raise ValueError(f"{folder}: holds no run (no recipe.yaml); give the folder that `omnikit train` wrote")
    recipe = load_recipe(path, registry)
    checkpoints = ancestors(recipe, None, RunFolder(folder))
    if not any(checkpoint.step for checkpoint in checkpoints):
        raise ValueError(f"{folder}: has no checkpoint yet; let `omnikit train` reach its first one")
    hashes = [checkpoint.hash() for checkpoint in checkpoints]
    model = build(recipe, frozenset(recipe.modalities))
    inherit(model, checkpoints)
    return recipe, model, hashes


def _batches(prompts: Sequence[Indexed], further: int) -> Iterator[list[Indexed]]:
    """Prompts of like length together, so that little is padded, as many as PLACES takes with `further` tokens each.

    The longest come first: what memory does not hold fails at once.
    """
    batch: list[Indexed] = []
    for prompt in sorted(prompts, key=lambda prompt: (-len(prompt[1].ids), prompt[0])):
        if batch and (len(batch) + 1) * (len(batch[0][1].ids) + further) > PLACES:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


def _or_why(function: Callable[[A], B]) -> Callable[[A], B | BadSample]:
    """The function, which gives the BadSample that it would raise."""

    def called(given: A) -> B | BadSample:
        try:
            return function(given)
        except BadSample as error:
            return error

    return called


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[A], B], batches: Iterable[Sequence[A]]
) -> Iterator[tuple[Sequence[A], list[B]]]:
    """Each batch with `function` of all in it; that of the next one is computed by the pool meanwhile."""
    rest = iter(batches)
    waiting: deque[tuple[Sequence[A], list[Future[B]]]] = deque()

    def submit(number: int) -> None:
        waiting.extend((batch, [pool.submit(function, one) for one in batch]) for batch in islice(rest, number))

    submit(2)
    while waiting:
        batch, futures = waiting.popleft()
        found = [future.result() for future in futures]
        submit(1)
        yield batch, found


def _last_answer(layout: Layout, stop: int) -> list[int]:
    """Where the tokens of the last assistant turn stand, without the one that ends it."""
    learned = [at for at, is_learned in enumerate(layout.learned) if is_learned]
    ends = [at for at in learned if layout.ids[at] == stop]
    begin = ends[-2] if len(ends) > 1 else -1
    return [at for at in learned if at > begin and layout.ids[at] != stop]


def _left_padded(embeds: Float[Tensor, "N T H"], real: Tensor) -> tuple[Float[Tensor, "N T H"], Tensor]:
    """Rows moved to the right end, and their mask: every prompt ends where its answer begins."""
    length = embeds.shape[1]
    shift = length - real.sum(1, keepdim=True)
    source = torch.arange(length, device=embeds.device)[None, :] - shift
    mask = (source >= 0).long()
    return embeds.gather(1, source.clamp(min=0)[:, :, None].expand_as(embeds)), mask
