"""The encoder `whisper` and its log-mel against transformers and openai-whisper, on speech and on real weights.

Everything is loaded as a recipe loads it: from a transformers folder, or from an openai-whisper .pt file. The real
weights of whisper-tiny.en lie in $OMNIKIT_WEIGHTS (default: weights/); benchmarks/real_weights.py lays them down.
"""

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
import transformers
from omnikit_whisper import WhisperConfig
from omnikit_whisper.module import WhisperEncoder
from omnikit_whisper.reader import log_mel
from torch import Tensor
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.model import ModelDimensions, Whisper

from omnikit.component import Item
from omnikit.sampledata.speech import Utterance, synthesise

ROUNDING = 1e-5
"""Of features near 1, which a layer norm ends: other kernels sum in another order."""
SIZES = {
    "tiny": {"preset": "tiny"},
    "large-v3, one layer": {"preset": "large-v3", "layers": 1},
}
SPOKEN = (
    ("en-us+m1", "The north wind and the sun disputed which was the stronger, when a traveller came along."),
    ("en+f1", "She sells sea shells by the sea shore, and the shells she sells are sea shells, I am sure."),
    ("en+m7", "Seven hundred and forty two ships left the harbour at a quarter past nine."),
)


@pytest.fixture(scope="module")
def speech() -> list[np.ndarray]:
    """Sentences by espeak-ng, float32 at 16 kHz."""
    sounds = []
    for voice, text in SPOKEN:
        samples, rate = synthesise(Utterance(text, voice, 160, 50))
        sounds.append(soxr.resample(samples.astype(np.float32) / 2**15, rate, 16000))
    return sounds


@pytest.fixture(scope="module")
def tiny_en() -> Path:
    root = Path(os.environ.get("OMNIKIT_WEIGHTS", Path(__file__).parents[2] / "weights"))
    folder = root / "whisper-tiny.en"
    assert (folder / "model.safetensors").is_file(), (
        f"{folder} holds no weights; lay them down by `python benchmarks/real_weights.py {root}`, "
        "or say by OMNIKIT_WEIGHTS where they are"
    )
    return folder


def built(config: WhisperConfig) -> WhisperEncoder:
    module = config.build().eval()
    module.load_state_dict(dict(config.pretrained()), strict=True)
    return module


def openai_model(config: WhisperConfig) -> Whisper:
    """openai-whisper's model with random weights: this encoder, and a decoder as small as can be."""
    torch.manual_seed(0)
    encoder = config.mel_bins, 1500, config.width, config.heads, config.layers
    return Whisper(ModelDimensions(*encoder, 60, 8, 64, 1, 1)).eval()


def transformers_model(config: WhisperConfig) -> transformers.WhisperModel:
    torch.manual_seed(0)
    tokens = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1, "vocab_size": 60}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
    sizes = transformers.WhisperConfig(
        d_model=config.width,
        encoder_layers=config.layers,
        encoder_attention_heads=config.heads,
        encoder_ffn_dim=config.mlp_width,
        num_mel_bins=config.mel_bins,
        **decoder,
        **tokens,
    )
    return transformers.WhisperModel(sizes).eval()


def mel_of(sound: np.ndarray, config: WhisperConfig) -> tuple[Tensor, Item]:
    """openai-whisper's log-mel of the sound in a window of 30 s, and our item of the same sound."""
    features = config.input.features(len(sound) // 160)
    ours = torch.from_numpy(log_mel(sound, config.input))
    return log_mel_spectrogram(pad_or_trim(sound), config.mel_bins), Item(ours, (features, 1, 1))


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.isfinite().all()
    return (found - expected).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_random_weights_give_the_features_of_openai_whisper(
    size: str, speech: list[np.ndarray], tmp_path: Path
) -> None:
    config = WhisperConfig(**SIZES[size], weights=str(tmp_path / "checkpoint.pt"))
    theirs = openai_model(config)
    torch.save({"dims": asdict(theirs.dims), "model_state_dict": theirs.state_dict()}, config.weights)
    mel, item = mel_of(speech[0], config)
    expected = theirs.encoder(mel[None])[0]
    found = built(config)([Item(item.value, (1500, 1, 1))])
    print(f"{size}: max abs {difference(found, expected):.1e}")
    assert difference(found, expected) <= ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_random_weights_give_the_features_of_transformers(size: str, speech: list[np.ndarray], tmp_path: Path) -> None:
    config = WhisperConfig(**SIZES[size], weights=str(tmp_path))
    theirs = transformers_model(config)
    theirs.save_pretrained(tmp_path)
    mel, item = mel_of(speech[1], config)
    expected = theirs.encoder(mel[None]).last_hidden_state[0]
    found = built(config)([Item(item.value, (1500, 1, 1))])
    print(f"{size}: max abs {difference(found, expected):.1e}")
    assert difference(found, expected) <= ROUNDING


@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_of_speech(bins: int, speech: list[np.ndarray]) -> None:
    config = WhisperConfig(preset="large-v3" if bins == 128 else "tiny")
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    worst = {"openai-whisper": 0.0, "transformers": 0.0}
    for sound in speech:
        mel, item = mel_of(sound, config)
        of_transformers = extractor(sound, sampling_rate=16000, return_tensors="pt")["input_features"][0]
        worst["openai-whisper"] = max(worst["openai-whisper"], difference(item.value, mel))
        worst["transformers"] = max(worst["transformers"], difference(item.value, of_transformers))
    print(f"{bins} bins: max abs {worst}")
    assert worst["openai-whisper"] == 0, "it is openai-whisper's own function"
    assert worst["transformers"] <= 1e-4, "filters of another library, in float32"


@torch.no_grad()
def test_tiny_en_gives_the_features_of_transformers(tiny_en: Path, speech: list[np.ndarray]) -> None:
    config = WhisperConfig(preset="tiny.en", weights=str(tiny_en))
    ours = built(config)
    items = [mel_of(sound, config)[1] for sound in speech]
    found = ours([Item(value, (1500, 1, 1)) for value, _ in items]).unflatten(0, (len(items), 1500))
    mel = torch.stack([value for value, _ in items])
    eager, sdpa = (
        transformers.WhisperModel.from_pretrained(tiny_en, dtype=torch.float32, attn_implementation=attention)
        .eval()
        .encoder(mel)
        .last_hidden_state
        for attention in ("eager", "sdpa")
    )
    print(f"features up to {eager.abs().max():.1f}; max abs to transformers, eager: {difference(found, eager):.1e}")
    assert difference(found, eager) <= ROUNDING
    # The trained weights magnify rounding: transformers' two kernels differ by far more than 1e-5 between themselves.
    print(f"to sdpa: {difference(found, sdpa):.1e}; transformers' eager to its sdpa: {difference(eager, sdpa):.1e}")
    assert difference(found, sdpa) <= difference(eager, sdpa) + ROUNDING
    kept = ours(items).split([t for _, (t, _, _) in items])  # what a recipe gets: the features of real sound
    for part, whole in zip(kept, found, strict=True):
        assert torch.equal(part, whole[: len(part)])


@torch.no_grad()
def test_bf16_is_near_float32(tiny_en: Path, speech: list[np.ndarray]) -> None:
    config = WhisperConfig(preset="tiny.en", weights=str(tiny_en))
    ours = built(config)
    items = [mel_of(sound, config)[1] for sound in speech]
    exact = ours(items)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = ours(items).float()
    rounded = ours.bfloat16()(items).float()
    for name, found in (("autocast", autocast), ("bf16 weights", rounded)):
        cosine = torch.nn.functional.cosine_similarity(found, exact).mean().item()
        print(f"{name}: max abs {difference(found, exact):.2f}, mean cosine {cosine:.5f}")
        assert cosine > 0.99, name
