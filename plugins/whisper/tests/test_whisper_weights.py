"""Where the encoder's weights come from: transformers folders, openai-whisper checkpoints, and neither."""

import base64
import gzip
import hashlib
import io
import json
import os
import pickle
import re
from dataclasses import asdict
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import whisper
from omnikit_whisper import WhisperConfig
from whisper.model import AudioEncoder, ModelDimensions, TextDecoder, Whisper

from omnikit.component import Item

SIZES: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 128, "mel_bins": 80, "window": 2}
DIMS = ModelDimensions(80, 100, 32, 4, 2, 60, 10, 32, 4, 1)


def config(weights: str | Path, **changed: Any) -> WhisperConfig:
    return WhisperConfig(**SIZES | changed, weights=str(weights))


def folder_of(path: Path, model: type = transformers.WhisperForConditionalGeneration, **changed: Any) -> Path:
    torch.manual_seed(0)
    tokens = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1, "vocab_size": 60}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 32}
    encoder = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128}
    sizes = {"num_mel_bins": 80, "max_source_positions": 100, **encoder, **decoder, **tokens} | changed
    model(transformers.WhisperConfig(**sizes)).save_pretrained(path)
    return path


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    torch.manual_seed(0)
    return {"dims": asdict(DIMS), "model_state_dict": Whisper(DIMS).half().state_dict()}


@pytest.fixture
def saved(checkpoint: dict[str, Any], tmp_path: Path) -> Path:
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


def features(ours: WhisperConfig, mel: torch.Tensor) -> torch.Tensor:
    """Of one full window, by the module that the weights fill to the last tensor."""
    module = ours.build().eval()
    module.load_state_dict(dict(ours.pretrained()), strict=True)
    return module([Item(mel, (100, 1, 1))])


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    [
        transformers.WhisperModel,
        transformers.WhisperForConditionalGeneration,
        transformers.WhisperForAudioClassification,
    ],
)
def test_a_folder_gives_the_features_of_its_model(tmp_path: Path, model: type) -> None:
    folder_of(tmp_path, model)
    theirs = model.from_pretrained(tmp_path).eval()
    encoder = theirs.encoder if model is transformers.WhisperForAudioClassification else theirs.get_encoder()
    mel = torch.randn(80, 200)
    expected = encoder(mel[None]).last_hidden_state[0]
    torch.testing.assert_close(features(config(tmp_path), mel), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_checkpoint_gives_the_features_of_its_model(saved: Path, checkpoint: dict[str, Any]) -> None:
    theirs = Whisper(DIMS).eval()
    theirs.load_state_dict(checkpoint["model_state_dict"])
    mel = torch.randn(80, 200)
    torch.testing.assert_close(features(config(saved), mel), theirs.encoder(mel[None])[0], rtol=0, atol=1e-5)


def test_positions_are_those_of_the_weights(saved: Path, checkpoint: dict[str, Any]) -> None:
    trained = checkpoint["model_state_dict"]["encoder.positional_embedding"]
    trained += 0.25
    torch.save(checkpoint, saved)
    assert torch.equal(dict(config(saved).pretrained())["positions"], trained)
    assert torch.equal(dict(config(saved, window=0.5).pretrained())["positions"], trained[:25])
    with pytest.raises(ValueError, match=r"positions for 100 features, and window 3 needs 150; take a window of 2$"):
        dict(config(saved, window=3).pretrained())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"heads": 2}, "has heads 4, the recipe has heads 2; take the preset"),  # fits every shape, and is wrong
        ({"layers": 1}, "has layers 2, the recipe has layers 1"),
        ({"mel_bins": 128}, "has mel_bins 80, the recipe has mel_bins 128"),
        ({"width": 64, "heads": 8}, "has width 32, heads 4, the recipe has width 64, heads 8"),
    ],
)
def test_other_sizes_are_refused(saved: Path, tmp_path: Path, changed: dict[str, int], message: str) -> None:
    for weights in (saved, folder_of(tmp_path / "folder")):
        with pytest.raises(ValueError, match=rf"^weights: {re.escape(str(weights))} {message}"):
            dict(config(weights, **changed).pretrained())


def test_a_safetensors_file_is_refused_for_its_folder(tmp_path: Path) -> None:
    file = folder_of(tmp_path) / "model.safetensors"
    with pytest.raises(
        ValueError, match=rf"^weights: {re.escape(str(file))} is a file; give the folder that it is in$"
    ):
        dict(config(file).pretrained())


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.BertModel(transformers.BertConfig(vocab_size=60, **small)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a model of type bert; give one of type whisper$"):
        dict(config(tmp_path).pretrained())
    (tmp_path / "config.json").unlink()  # as a hub's files without it: the core refuses names that it does not know
    names = set(dict(config(tmp_path).pretrained()))
    assert names and not names & set(config(tmp_path).build().state_dict())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is broken JSON"):
        dict(config(tmp_path).pretrained())
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json is no JSON object"):
        dict(config(tmp_path).pretrained())


def test_tensors_that_whisper_lacks_are_passed_on(saved: Path, checkpoint: dict[str, Any]) -> None:
    state = checkpoint["model_state_dict"]
    state |= {"encoder.blocks.0.attn.rotary.weight": torch.ones(1), "encoder.adapter": torch.ones(1)}
    state["head.weight"] = torch.ones(1)
    torch.save(checkpoint, saved)
    ours = config(saved)
    extra = set(dict(ours.pretrained())) - set(ours.build().state_dict())
    assert extra == {"blocks.0.attn.rotary.weight", "adapter", "head.weight"}, "the core names and counts them"


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mkdir, (str(self.path), 0o700)


def test_a_poisoned_checkpoint_is_refused_and_runs_nothing(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    poisoned = [tmp_path / name for name in ("zip.pt", "old.pt", "raw.pt", "named_otherwise")]
    torch.save(checkpoint | {"canary": Canary(canary)}, poisoned[0])
    torch.save(checkpoint | {"canary": Canary(canary)}, poisoned[1], _use_new_zipfile_serialization=False)
    poisoned[2].write_bytes(pickle.dumps(Canary(canary)))
    poisoned[3].write_bytes(poisoned[0].read_bytes())
    for path in poisoned:
        with pytest.raises(ValueError, match=r"^weights: .* is refused .*a pickle that could run code") as caught:
            dict(config(path).pretrained())
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value), "nobody is told how to load it all the same"
        assert not canary.exists()
    function, arguments = Canary(canary).__reduce__()
    function(*arguments)
    assert canary.exists(), "it was poison"


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_is_no_checkpoint_is_refused_in_one_line(checkpoint: dict[str, Any], saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    bad = {
        name: tmp_path / f"{name}.pt"
        for name in ("cut", "empty", "text", "module", "list", "plain", "numbers", "lists")
    }
    bad["cut"].write_bytes(whole[: len(whole) // 2])
    bad["empty"].write_bytes(b"")
    bad["text"].write_text("version https://git-lfs.github.com/spec/v1\n")
    torch.save(Whisper(DIMS), bad["module"])
    torch.save([1], bad["list"])
    torch.save(checkpoint["model_state_dict"], bad["plain"])
    torch.save(checkpoint | {"dims": 80}, bad["numbers"])
    torch.save(checkpoint | {"model_state_dict": {"encoder.conv1.weight": [1.0]}}, bad["lists"])
    for name, path in [*bad.items(), ("missing", tmp_path / "missing.pt"), ("folder", tmp_path / "folder.pt")]:
        if name == "folder":
            path.mkdir()
        expected = {
            **dict.fromkeys(("list", "plain", "numbers"), "lacks dims or model_state_dict"),
            **dict.fromkeys(("missing", "folder"), "is no file here"),
            "lists": "holds 'encoder.conv1.weight', which is no tensor",
        }
        with pytest.raises(ValueError, match=f"^weights: .*{name}.pt {expected.get(name, 'is refused')}") as caught:
            dict(config(path).pretrained())
        assert "\n" not in str(caught.value)


def test_any_flipped_byte_gives_tensors_or_one_line(saved: Path) -> None:
    whole = saved.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for place in (*random.integers(0, 6000, 100), *random.integers(len(whole) - 6000, len(whole), 100)):
        broken = bytearray(whole)
        broken[place] ^= int(random.integers(1, 256))
        saved.write_bytes(broken)
        try:
            dict(config(saved).pretrained())
        except ValueError as error:
            refused += str(error).startswith("weights: ") and "\n" not in str(error)
    assert refused > 50


class Answer(io.BytesIO):
    """What a server sends."""

    def info(self) -> dict[str, int]:
        return {"Content-Length": len(self.getvalue())}


def test_a_name_is_fetched_from_openais_address_and_its_hash_is_checked(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, asked = saved.read_bytes(), []

    def answer(url: str) -> Answer:
        asked.append(url)
        return Answer(content)

    monkeypatch.setattr("urllib.request.urlopen", answer)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    official = whisper._MODELS["tiny.en"]
    with pytest.raises(ValueError, match=r"^weights: openai:tiny.en cannot be had \(.*SHA256") as caught:
        dict(config("openai:tiny.en").pretrained())
    assert "\n" not in str(caught.value)
    assert asked == [official] and official.startswith("https://openaipublic.azureedge.net/")

    address = f"https://example.org/{hashlib.sha256(content).hexdigest()}/small.pt"
    monkeypatch.setitem(whisper._MODELS, "tiny.en", address)
    tensors = dict(config("openai:tiny.en").pretrained())
    assert asked == [official, address]
    assert tensors.keys() == config("openai:tiny.en").build().state_dict().keys()
    assert (tmp_path / "cache" / "whisper" / "small.pt").read_bytes() == content
    dict(config("openai:tiny.en").pretrained())
    assert len(asked) == 2, "kept, and its hash checked again"


def test_a_name_that_openai_does_not_have_or_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(url: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"openai-whisper has no model tini; models: tiny.en, tiny, "):
        dict(config("openai:tini").pretrained())
    with pytest.raises(ValueError, match=r"openai:base cannot be had \(no network\); give the path of the .pt file"):
        dict(config("openai:base").pretrained())


def test_presets_are_openais_models() -> None:
    published = dict(re.findall(r"^\| *(\w+) *\| *(\d+) M *\|", str(metadata("openai-whisper").get_payload()), re.M))
    assert len(published) == 6
    for name in WhisperConfig.presets:
        ours = WhisperConfig(preset=name)
        assert (ours.mel_bins == 128) == (name in ("large-v3", "large-v3-turbo"))
        assert ours.mlp_width == 4 * ours.width and ours.width == 64 * ours.heads
        decoder_layers = 4 if name == "large-v3-turbo" else ours.layers
        # openai-whisper keeps a bit for each head of the decoder, which is as wide as the encoder.
        bits = gzip.decompress(base64.b85decode(whisper._ALIGNMENT_HEADS[name]))
        assert len(np.frombuffer(bits, dtype=bool)) == decoder_layers * ours.heads
        words = 51864 if name.endswith(".en") else 51865 + (ours.mel_bins == 128)
        with torch.device("meta"):
            encoder = AudioEncoder(ours.mel_bins, 1500, ours.width, ours.heads, ours.layers)
            decoder = TextDecoder(words, 448, ours.width, ours.heads, decoder_layers)
            shapes = [tuple(parameter.shape) for parameter in ours.build().parameters()]
        assert sorted(shapes) == sorted(tuple(parameter.shape) for parameter in encoder.parameters())
        size = "turbo" if name.endswith("turbo") else re.split(r"[.-]", name)[0]
        counted = sum(parameter.numel() for part in (encoder, decoder) for parameter in part.parameters()) / 1e6
        assert counted == pytest.approx(int(published[size]), rel=0.05)  # tiny: 37.2 of 39
    theirs, tiny = transformers.WhisperConfig(), WhisperConfig(preset="tiny")  # transformers' defaults are tiny's
    assert (tiny.width, tiny.layers, tiny.heads, tiny.mlp_width, tiny.mel_bins) == (
        theirs.d_model,
        theirs.encoder_layers,
        theirs.encoder_attention_heads,
        theirs.encoder_ffn_dim,
        theirs.num_mel_bins,
    )


def test_every_name_of_openai_has_a_preset() -> None:
    aliases = {"large": "large-v3", "turbo": "large-v3-turbo"}
    assert {aliases.get(name, name) for name in whisper.available_models()} == set(WhisperConfig.presets)


def test_weights_are_in_the_recipe_as_they_are_written() -> None:
    dumped = json.loads(config("openai:tiny.en").model_dump_json())
    assert dumped["weights"] == "openai:tiny.en"


def test_a_checkpoint_beside_the_recipe_is_found(saved: Path) -> None:
    class Scalar(str):
        """As a recipe's file holds it."""

        folder = saved.parent

    assert config(Scalar("checkpoint.pt")).weights == "checkpoint.pt", "a plain string has no folder"
    written = WhisperConfig(**SIZES, weights=Scalar("checkpoint.pt"))
    assert written.weights == str(saved)
    assert WhisperConfig(**SIZES, weights=Scalar("openai:tiny.en")).weights == "openai:tiny.en"
    assert dict(written.pretrained()).keys() == written.build().state_dict().keys()
