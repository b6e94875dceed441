"""How far Whisper's features of real frames alone (`padding: ragged`) are from those of padded windows (`full`).

    python benchmarks/whisper_padding.py weights/whisper-tiny.en [--preset tiny.en]

Speech of espeak-ng in several voices, of about 1, 3, 10 and 30 s. Printed for each length, over the features of real
sound: the mean and the least cosine of a feature with its other self, the largest difference, the norm of the
difference as a part of the features', and the time of one sound. Then what Whisper's own decoder, which was trained on
whole padded windows, makes of them, as word error rates against what was spoken: of a full window with its silence, of
the same cut to the real sound (which is what a projector gets), and of ragged features.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import jiwer
import numpy as np
import soxr
import torch
import transformers
from omnikit_whisper import WhisperConfig
from omnikit_whisper.reader import log_mel
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from whisper.normalizers import EnglishTextNormalizer

from omnikit.component import Item
from omnikit.sampledata.speech import Utterance, synthesise

RATE = 16_000
VOICES = ("en-us+m1", "en+m3", "en+f1", "en+m7", "en+linda", "en-us+f4")
SPOKEN = {
    1: ("Open the door.", "Come here now.", "It is raining.", "Good evening.", "Two red birds.", "Where are you?"),
    3: (
        "The old man walked slowly down to the river.",
        "She put seven apples into a wooden box.",
        "We will meet again on Monday morning.",
        "The train leaves from platform number nine.",
        "My brother bought a small green car.",
        "They painted the kitchen wall bright yellow.",
    ),
    10: (
        "The north wind and the sun disputed which of them was the stronger, when a traveller came along wrapped in a "
        "warm cloak, and they agreed that the one who made him take it off would win.",
        "Early in the morning the farmer opened the gate, counted his sheep, and found that three of them were gone, "
        "so he called the dog and followed the tracks across the field.",
    ),
    30: (
        "The north wind and the sun disputed which of them was the stronger, when a traveller came along wrapped in a "
        "warm cloak. They agreed that the one who first made the traveller take his cloak off should be considered "
        "stronger than the other. Then the north wind blew as hard as he could, but the more he blew, the more closely "
        "did the traveller fold his cloak around him, and at last the north wind gave up. Then the sun shone out "
        "warmly, and immediately the traveller took off his cloak.",
    ),
}
"""What is spoken, by the seconds that it takes; nothing is longer than a window."""
SOUNDS = 6
"""For each length; texts and voices take turns."""


def speech(text: str, voice: str, seconds: int) -> np.ndarray:
    """Float32 samples at 16 kHz, never longer than a window; the speed brings them near `seconds`."""
    samples, rate = synthesise(Utterance(text, voice, 150, 50))
    speed = int(np.clip(150 * len(samples) / rate / (0.97 * seconds), 100, 260))
    samples, rate = synthesise(Utterance(text, voice, speed, 50))
    sound = soxr.resample(samples.astype(np.float32) / 2**15, rate, RATE)
    return sound[: 30 * RATE]


def heard(model: transformers.WhisperForConditionalGeneration, words: object, found: Tensor, most: int) -> str:
    """What Whisper's decoder makes of features: greedy, at most so many tokens."""
    encoded = BaseModelOutput(last_hidden_state=found[None])
    ids = model.generate(encoder_outputs=encoded, max_new_tokens=most, num_beams=1, do_sample=False)
    return words.decode(ids[0], skip_special_tokens=True)


def measured(folder: Path, preset: str) -> Iterator[str]:
    """A line of a Markdown table for each length."""
    full = WhisperConfig(preset=preset, weights=str(folder))
    ragged = full.model_copy(update={"padding": "ragged"})
    module = full.build().eval()
    module.load_state_dict(dict(full.pretrained()))
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    normal = EnglishTextNormalizer()
    yield "| sounds | features | cosine | least | max abs | norm | ms full | ragged | WER full | cut | ragged |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for seconds, texts in SPOKEN.items():
        chosen = list(itertools.islice(zip(itertools.cycle(texts), itertools.cycle(VOICES), strict=False), SOUNDS))
        lengths, times, texts_heard = [], ([], []), ([], [], [])
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for text, voice in chosen:
            sound = speech(text, voice, seconds)
            real = full.input.features(len(sound) // 160)
            lengths.append(len(sound) / RATE)
            for way, (config, count) in enumerate(((full, 1500), (ragged, real))):  # silence too: the decoder wants it
                mel = torch.from_numpy(log_mel(sound, config.input))
                began = time.perf_counter()
                features = module([Item(mel, (count, 1, 1))])
                times[way].append(1000 * (time.perf_counter() - began))
                found[way].append(features[:real])
                texts_heard[2 * way].append(normal(heard(model, words, features, 10 + 6 * seconds)))
            texts_heard[1].append(normal(heard(model, words, found[0][-1], 10 + 6 * seconds)))
        whole, real = torch.cat(found[0]), torch.cat(found[1])
        cosine = torch.nn.functional.cosine_similarity(whole, real)
        spoken = [normal(text) for text, _ in chosen]
        cells = [
            f"{len(chosen)} of {np.mean(lengths):.1f} s",
            f"{len(whole)}",
            f"{cosine.mean():.3f}",
            f"{cosine.min():.2f}",
            f"{(whole - real).abs().max():.1f}",
            f"{(whole - real).norm() / whole.norm():.2f}",
            *(f"{np.median(each):.0f}" for each in times),
            *(f"{100 * jiwer.wer(spoken, each):.0f} %" for each in texts_heard),
        ]
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a transformers folder of Whisper")
    parser.add_argument("--preset", default="tiny.en")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        for line in measured(options.weights, options.preset):
            print(line, flush=True)


if __name__ == "__main__":
    main()
