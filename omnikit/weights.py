"""Tensors by name out of a Hugging Face folder or hub id. No pickle is ever loaded."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["PICKLES", "fetched", "json_in", "tensors_in"]

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
SHOWN = 3


def tensors_in(weights: str) -> "Iterator[tuple[str, torch.Tensor]]":
    """(name, memory-mapped tensor) pairs of a folder or hub id[@revision]; a tensor is read when it is first used.

    Of the several sets of weights that a folder may hold (shards with their index, one file, copies in other
    precisions), one is taken: the shards that `model.safetensors.index.json` names, else `model.safetensors`, else
    every .safetensors file there is. Of a hub id only those files are fetched. A file that is missing, broken or a
    pickle is a ValueError that names it.
    """
    is_local = Path(weights).is_dir()
    folder = Path(weights) if is_local else fetched(weights, [INDEX])
    names = _indexed(folder, weights) if (folder / INDEX).is_file() else [WHOLE]
    folder = folder if is_local else fetched(weights, names)
    if names == [WHOLE] and not (folder / WHOLE).is_file():
        folder = folder if is_local else fetched(weights, ["*.safetensors"])
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        raise ValueError(f"weights: {weights} {_without(folder)}")
    owners: dict[str, str] = {}
    for name in names:
        for tensor_name, tensor in _tensors(folder / name, weights):
            if tensor_name in owners:
                raise ValueError(
                    f"weights: {weights} holds {tensor_name} in both {owners[tensor_name]} and {name}; keep one set of "
                    "files, or add the index that says which"
                )
            owners[tensor_name] = name
            yield tensor_name, tensor


def fetched(weights: str, files: Sequence[str]) -> Path:
    """The folder in which these files of a folder or hub id[@revision] are; files that it has not are not there."""
    if Path(weights).is_dir():
        return Path(weights)
    if Path(weights).is_file():
        raise ValueError(f"weights: {weights} is a file; give the folder that it is in")
    from huggingface_hub import snapshot_download

    name, _, revision = weights.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(files)))
    except Exception as error:  # also its client's own, where a line breaks half-way
        raise ValueError(
            f"weights: {weights} is neither a folder here nor a hub id that can be reached "
            f"({type(error).__name__}); give the path of a Hugging Face folder, or connect to the hub"
        ) from error


def json_in(weights: str, name: str) -> dict[str, Any]:
    """The object that a JSON file of a folder or hub id[@revision] holds; empty where there is no such file."""
    file = fetched(weights, [name]) / name
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"weights: {file} is broken JSON ({error}); get it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"weights: {file} is no JSON object; get it again")
    return found


def _indexed(folder: Path, weights: str) -> list[str]:
    """The files that the index names."""
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        # An index comes from strangers: it names files beside it, and nothing else.
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise ValueError("it names no .safetensors files beside it")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"weights: {weights} holds a broken {INDEX} ({reason}); get it again") from error
    return sorted(names)


def _tensors(file: Path, weights: str) -> "Iterator[tuple[str, torch.Tensor]]":
    from safetensors import SafetensorError, safe_open

    try:
        if not file.is_file():
            raise FileNotFoundError("it is not there")
        opened = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"weights: {weights} holds a broken .safetensors file: {file.name} {_broken(file, error)}"
        ) from error
    with opened as tensors:
        for name in tensors.keys():
            yield name, tensors.get_tensor(name)


def _broken(file: Path, error: Exception) -> str:
    """What is wrong with a file that is no safetensors, and what would be right."""
    if not file.is_file():
        return f"is named by {INDEX} and missing; get it as well"
    with file.open("rb") as opened:
        begins = opened.read(64)
    if begins.startswith((b"PK\x03\x04", b"\x80")):
        return "is a pickle under another name, and no pickle is loaded; save it by transformers' save_pretrained"
    if begins.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs; get the file itself by `git lfs pull`"
    return f"cannot be read ({' '.join(str(error).split())[:200]}), {file.stat().st_size} bytes long; get it again"


def _without(folder: Path) -> str:
    """What is wrong with a folder that holds no safetensors, and what would be right."""
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    told = "holds no .safetensors file; "
    if not pickles:
        return f"{told}give the folder that has them"
    listed = ", ".join(pickles[:SHOWN])
    return (
        f"{told}convert it first (no pickle is loaded): {listed} was written by torch.save; "
        "transformers' from_pretrained(old).save_pretrained(new) writes safetensors"
    )
