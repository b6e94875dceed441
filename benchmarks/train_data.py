"""The data and the recipe of `benchmarks/train.py`: pictures, questions of log-normal length, and what they cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from omnikit.builtin.backbone_config import PRESETS
from omnikit.recipe import Recipe, load_recipe
from omnikit.registry import Registry

SAMPLES, PICTURES = 512, 32
SIDE = 256
"""Pixels of a picture, which the tower sees in patches of 16."""
BATCH = 8
LENGTH = 1536
"""Positions of a pack. A sample has an eighth of them in the mean, so that a pack holds 8."""
TEXT_LENGTH = 2048
"""Positions of a pack of text alone."""
MEDIA = 64
"""Tokens of a picture: its 16 x 16 features are joined by 2 x 2."""
MEDIAN, SIGMA = 100.0, 0.7
"""Of the text's log-normal lengths, in tokens."""
LONGEST = 400
"""Tokens of the longest text beside a picture."""
LABELS = 0.3
"""The share of a sample's tokens that are learned."""
WORDS = tuple(a + b for a in "bdfgklmnprst" for b in ("an", "el", "id", "os", "um"))
CHAT = {
    "prefix": {"user": "<|user|>", "assistant": "<|assistant|>"},
    "suffix": {"user": "<|end|>", "assistant": "<|end|>"},
    "stop": "<|end|>",
}
CONFIG: dict[str, Any] = PRESETS["smollm2-135m-instruct"]["config"]


class Lengths(NamedTuple):
    """The tokens of a sample, and how many of them are learned."""

    all: int
    labels: int


class Question(NamedTuple):
    """A sample: a picture's file, what is asked and what is answered."""

    image: str
    prompt: str
    answer: str


def write(folder: Path, media: bool = True, median: float = MEDIAN, samples: int = SAMPLES) -> list[Lengths]:
    """Lay the data down as JSONL and PNG; the samples' lengths. Without `media` it is text alone."""
    chance = np.random.default_rng(0)
    for number in range(PICTURES if media else 0):
        small = chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    taken = 4 + MEDIA * media  # two roles' names, two ends
    lengths = []
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for number in range(samples):
            text = int(np.clip(chance.lognormal(np.log(median), SIGMA), 16, LONGEST if media else TEXT_LENGTH - taken))
            answer = min(max(round(LABELS * (taken + text)) - 1, 1), text - 1)
            lengths.append(Lengths(taken + text, answer + 1))
            words = chance.choice(WORDS, text).tolist()
            asked: list[dict[str, str]] = [{"image": f"{number % PICTURES}.png"}] if media else []
            asked.append({"text": " ".join(words[answer:])})
            told = [{"text": " ".join(words[:answer])}]
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
            file.write(json.dumps({"id": str(number), "turns": turns}) + "\n")
    return lengths


def read(folder: Path) -> list[Question]:
    """The samples for those who do not read a recipe."""
    found = []
    for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines():
        (image, text), (answer,) = (turn["content"] for turn in json.loads(line)["turns"])
        found.append(Question(str(folder / image["image"]), text["text"], answer["text"]))
    return found


def recipe_of(folder: Path, registry: Registry, setting: str, seed: int, sets: Sequence[str] = ()) -> Recipe:
    """The recipe of a setting, for as many steps as one likes: `full`, `align`, or `text` of the backbone alone."""
    modality = {"reader": "square", "encoder": "vision", "projector": {"type": "pool_mlp", "newline": False}}
    holds_media = setting != "text"
    stage = {
        "steps": 1000,
        "batch": {"length": LENGTH if holds_media else TEXT_LENGTH, "packs": 1},
        "data": {"questions": 1},
        "train": {"modalities.image.projector": 1e-3, "rest": "frozen"} if setting == "align" else {"rest": 1e-4},
        "cache": setting == "align",
    }
    held = {
        "backbone": {"type": "hf_causal_lm", "config": CONFIG, "chat": CHAT, "words": list(WORDS)},
        "encoders": {"vision": {"type": "siglip", "preset": "base-patch16-256"}} if holds_media else {},
        "modalities": {"image": modality} if holds_media else {},
        "data": {"questions": {"type": "jsonl", "path": "data.jsonl", "modalities": ["image"] if holds_media else []}},
        "stages": {"only": stage},
        "run": {"seed": seed, "precision": "bf16", "save": 10_000},
    }
    path = folder / f"{setting}.yaml"
    path.write_text(json.dumps(held), encoding="utf-8")
    return load_recipe(path, registry, list(sets))


class Costs(NamedTuple):
    """FLOPs of a training step for each real token, by the components' own `cost`."""

    needed: float
    """What the setting asks for: real tokens, and the head on labels alone."""
    padded: float
    """What a batch of BATCH padded samples with logits everywhere takes, encoder always run."""


def costs_of(recipe: Recipe, setting: str, lengths: Sequence[Lengths], batches: int = 2000) -> Costs:
    """Means over the data. A frozen part that gradients cross costs a forward pass and their way back."""
    backward = 2.0 if setting == "align" else 3.0
    vision = projector = 0.0
    for entry in recipe.modalities.values():
        encoder = recipe.encoders[entry.encoder]
        grid = encoder.example().grid
        vision = (1.0 if setting == "align" else 3.0) * encoder.cost(grid)
        projector = 3.0 * entry.projector.cost(grid, encoder.width, CONFIG["hidden_size"])
    own = sum(backward * recipe.backbone.cost(*one) + projector for one in lengths)
    tokens = sum(one.all for one in lengths)
    chance, padded, real = np.random.default_rng(1), 0.0, 0
    for _ in range(batches):
        batch = [lengths[place].all for place in chance.choice(len(lengths), BATCH, replace=False)]
        padded += BATCH * (backward * recipe.backbone.cost(max(batch), max(batch)) + projector + vision)
        real += sum(batch)
    cached = setting == "align"
    return Costs((own + (0.0 if cached else vision * len(lengths))) / tokens, padded / real)
