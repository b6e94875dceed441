"""Does a pretrained Whisper, behind a fresh projector, make a pretrained language model hear?

    make real        (lays the weights down and makes the speech; then this: trains recipes/smol_omni.yaml)

Its report sets the trained run beside two references on the same held-out speech: the same model before training,
and Whisper with its own decoder. The word error rates of the two are over words as Whisper's normaliser leaves them
(case, punctuation and spelled numbers aside), which can only help them; the run's own is over words as they stand.
"""

import json
import sys
from pathlib import Path

import jiwer
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor
from whisper.normalizers import EnglishTextNormalizer

from omnikit.checkpoint import write_atomically
from omnikit.cli.watching import Lines
from omnikit.component import Sample
from omnikit.generate import Run
from omnikit.heldout import expected_answer, media_of
from omnikit.media import load_audio
from omnikit.recipe import Recipe, load_recipe
from omnikit.registry import Registry
from omnikit.report import REFERENCES, report
from omnikit.stages import build
from omnikit.train import train

ROOT = Path(__file__).parents[1]
RECIPE, RUN = ROOT / "recipes" / "smol_omni.yaml", ROOT / "runs" / "smol_omni"
WHISPER = ROOT / "weights" / "whisper-tiny.en"
UNTRAINED, ITSELF = "untrained projector", "Whisper tiny.en itself"


def samples_of(recipe: Recipe, name: str) -> list[Sample]:
    """The held-out samples of an entry."""
    source = recipe.heldout[name].data.open()
    return [source[index] for index in range(len(source))]


def by_untrained(recipe: Recipe, samples: list[Sample]) -> list[str]:
    """What the recipe's model answers before its first step."""
    return Run(recipe, build(recipe, frozenset({"audio"}))).answer(samples, max_tokens=16)


@torch.inference_mode()
def by_whisper(samples: list[Sample]) -> list[str]:
    """What Whisper writes down with its own decoder, greedily."""
    processor = WhisperProcessor.from_pretrained(WHISPER)
    model = WhisperForConditionalGeneration.from_pretrained(WHISPER, dtype=torch.float32)
    answers = []
    for begin in range(0, len(samples), 20):
        sounds = [load_audio(media_of(sample)[0][1], 16000) for sample in samples[begin : begin + 20]]
        mel = processor(sounds, sampling_rate=16000, return_tensors="pt").input_features
        answers += processor.batch_decode(model.generate(mel, max_new_tokens=40), skip_special_tokens=True)
    return answers


def normalised(texts: list[str]) -> list[str]:
    """Texts without what Whisper and the data spell differently."""
    normalise = EnglishTextNormalizer()
    return [normalise(text) for text in texts]


def main() -> None:
    """Trains, measures the references, and writes the report that shows all of them."""
    recipe = load_recipe(RECIPE, Registry.load(), sys.argv[1:])
    with Lines(list(recipe.stages), recipe.run.log) as display:
        train(recipe, RUN, display)
    references: dict[str, dict[str, float]] = {}
    for name in recipe.heldout:
        samples = samples_of(recipe, name)
        expected = normalised([expected_answer(sample) for sample in samples])
        given = {UNTRAINED: by_untrained(recipe, samples), ITSELF: by_whisper(samples)}
        references[name] = {label: jiwer.wer(expected, normalised(texts)) for label, texts in given.items()}
    write_atomically(RUN / REFERENCES, json.dumps(references, indent=1) + "\n")
    for name, table in report(RUN)["heldout"].items():
        beside = ", ".join(f"{label} {score:.1%}" for label, score in table["references"].items())
        print(f"{name}: {table['score']:.1%} words wrong ({beside})")
    print(f"report: {RUN / 'report.html'}")


if __name__ == "__main__":
    main()
