"""How the next token is chosen: the likeliest one, or one that is drawn."""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

Choose = Callable[[Float[Tensor, "N V"]], Int[Tensor, " N"]]
"""Logits of the next token of N texts to one token for each."""


class Sampling(NamedTuple):
    """Draw tokens by their probability at a temperature, out of the `top_k` likeliest (0: all) and of the fewest that
    together have a probability of `top_p`.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def check(self) -> None:
        """Refuse values that mean nothing."""
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature:g}: is not above 0; leave it out to take the likeliest")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: is below 0; give how many tokens are drawn from, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p:g}: is not a probability above 0; 1 draws from all tokens")


def chooser(sampling: Sampling | None, names: Sequence[str]) -> Choose:
    """What chooses tokens for texts of these names; without `sampling` it is the likeliest one.

    Each text draws from a generator of its own, seeded with its name: neighbours and batches change nothing.
    """
    if sampling is None:
        return lambda logits: logits.argmax(-1)
    sampling.check()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    seeds = (hashlib.sha256(f"{sampling.seed}\0{name}".encode()).digest()[:8] for name in names)
    generators = [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]

    def draw(logits: Float[Tensor, "N V"]) -> Int[Tensor, " N"]:
        nothing = torch.empty(len(logits), 0, dtype=torch.long)  # of what was said before these ask nothing
        shares = warpers(nothing, logits.float()).softmax(-1).cpu()
        if not shares.isfinite().all():
            told = f"at temperature {sampling.temperature:g} the probabilities are no numbers"
            raise ValueError(f"{told}; take a higher one, or a run that has not diverged")
        drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(shares, generators, strict=True)]
        return torch.cat(drawn).to(logits.device)

    return draw
