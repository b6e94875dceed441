"""A run written as a Hugging Face folder.

    DIR/README.md                    the model card: how to use it, recipe, data, figures of the run's report
        config.json, generation_config.json, model.safetensors (or shards of 5 GB and their index)
        tokenizer.json, tokenizer_config.json, processor_config.json
        modeling_omnikit.py, ...     the code that the model needs, of omnikit and its plugins
        recipe.yaml                  the recipe, by which omnikit itself uses the folder as a run

Nothing in it is a pickle, and nothing names a folder of this machine.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from omnikit.checkpoint import Checkpoint, RunFolder, flat_tensors
from omnikit.export.card import card
from omnikit.export.packaging import AUTO_MAP, components, configured, origins, packaged, weights_of
from omnikit.recipe import Recipe, built, load_recipe
from omnikit.registry import Registry
from omnikit.stages import build
from omnikit.starting import ancestors, inherit
from omnikit.strictyaml import write

SHARD = "5GB"
ANSWER = 64
"""Tokens of an answer at most, unless `generate` is told otherwise: as many as `Run.answer` gives it."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export(
    run: Path, folder: Path, registry: Registry, stage: str | None = None, dtype: Literal["fp32", "bf16"] = "fp32"
) -> dict[str, Any]:
    """Write the run, as its last stage (or `stage`) has left it, into a new or empty `folder`; what was written.

    A run that is not finished, a folder that holds something and a component that cannot be exported are ValueErrors.
    The folder is there whole or not at all.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: is not empty; give a new folder")
    recipe, checkpoints = _trained(run, registry, stage)
    sources, tree = packaged(recipe, registry), configured(recipe)
    tokenizer = recipe.backbone.tokenizer()

    reached = frozenset().union(*(built(recipe, one.stage) for one in checkpoints if one.step))
    unreached = [name for name in recipe.modalities if name not in reached]

    model = build(recipe, frozenset(recipe.modalities))
    inherit(model, checkpoints)
    tensors, ties = flat_tensors(model)
    with torch.no_grad():
        vocabulary = model.backbone.head(torch.zeros(1, model.backbone.width)).shape[-1]

    written = folder.with_name(f".{folder.name}.exporting")
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir(parents=True)
    try:
        stop = _write_tokenizer(written, tokenizer, recipe.backbone.chat.stop)
        _write_json(
            written / "config.json",
            {
                "architectures": ["OmnikitForCausalLM"],
                "auto_map": AUTO_MAP,
                "model_type": "omnikit",
                "dtype": str(DTYPES[dtype]).removeprefix("torch."),
                "transformers_version": transformers.__version__,
                "vocab_size": vocabulary,
                "hidden_size": model.backbone.width,
                "ties": ties,
                "components": tree,
            },
        )
        answering = {"do_sample": False, "max_new_tokens": ANSWER, "eos_token_id": stop, "pad_token_id": stop}
        _write_json(written / "generation_config.json", answering)
        processor = {"processor_class": "OmnikitProcessor", "auto_map": AUTO_MAP, "components": tree}
        _write_json(written / "processor_config.json", processor)
        for name, text in sources.files().items():
            (written / name).write_text(text, encoding="utf-8")
        text = write(portable(recipe))
        (written / "recipe.yaml").write_text(text, encoding="utf-8")
        copied = origins(recipe, registry)
        page = card(run, recipe, checkpoints, text, copied, sources.requirements, unreached, dtype)
        (written / "README.md").write_text(page, encoding="utf-8")
        _write_weights(written, tensors, DTYPES[dtype])
        files = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
        written.replace(folder)
    except (SafetensorError, OSError) as error:
        needed = sum(tensor.numel() for tensor in tensors.values()) * DTYPES[dtype].itemsize
        raise ValueError(f"{folder}: cannot be written ({error}); make room ({needed:,} bytes)") from error
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return {
        "folder": str(folder),
        "stage": checkpoints[0].stage,
        "step": checkpoints[0].step,
        "dtype": dtype,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "modalities": list(recipe.modalities),
        "unreached": unreached,
        "requirements": sorted(sources.requirements),
        "files": files,
    }


def _trained(run: Path, registry: Registry, stage: str | None) -> tuple[Recipe, list[Checkpoint]]:
    """A run's recipe, and its checkpoints, newest first, up to the end of a stage."""
    path = run / "recipe.yaml"
    if not path.is_file():
        raise ValueError(f"{run}: holds no run (no recipe.yaml); give the folder that `omnikit train` wrote")
    if (run / "config.json").is_file():
        raise ValueError(f"{run}: is an exported folder already; give the folder that `omnikit train` wrote")
    recipe, made = load_recipe(path, registry), RunFolder(run)
    stages = list(recipe.stages)
    if stage is not None and stage not in stages:
        raise ValueError(f"--stage {stage}: the run has no such stage; stages: {', '.join(stages)}")
    reached = [one for name in stages if (one := made.latest(name)) is not None]
    if not reached:
        raise ValueError(f"{run}: has no checkpoint yet; let `omnikit train` reach its first one")
    if stage is None:
        last = reached[-1]
        steps = last.state()["steps"]
        if last.stage != stages[-1] or last.step < steps:
            raise ValueError(
                f"{run}: is not finished: {last.stage} stands at step {last.step} of {steps}, and the last stage is "
                f"{stages[-1]}; let `omnikit train` go on, or export what there is: --stage {last.stage}"
            )
    elif all(one.stage != stage for one in reached):
        raise ValueError(f"--stage {stage}: has no checkpoint yet; the run has come to {reached[-1].stage}")
    later = stages[stages.index(stage) + 1 :] if stage else []
    return recipe, ancestors(recipe, later[0] if later else None, made)


def portable(recipe: Recipe) -> dict[str, Any]:
    """The recipe as data for another machine: of absolute paths the last part, and no weights but the folder's own."""
    tree = recipe.model_dump(mode="json", by_alias=True)
    for path, component in components(recipe):
        entry = tree
        for key in path.split("."):
            entry = entry[key]
        for name in weights_of(component):
            # The backbone's are named all the same: its tokenizer is read from there.
            entry[name] = "./" if path == "backbone" and entry[name] is not None else None
    return {key: _without_folders(value, key in ("data", "heldout")) for key, value in tree.items()}


def _without_folders(node: Any, is_data: bool) -> Any:  # noqa: ANN401
    """Of data every absolute path is cut; elsewhere it is one if it is there: "/no_think" is a text of the chat."""
    if isinstance(node, dict):
        return {key: _without_folders(value, is_data) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_folders(value, is_data) for value in node]
    if not isinstance(node, str) or not os.path.isabs(node) or not (is_data or os.path.exists(node)):
        return node
    return os.path.basename(os.path.normpath(node)) or node


def _write_tokenizer(folder: Path, tokenizer: Any, stop: str) -> int:  # noqa: ANN401  (it ships no types)
    """Write it as transformers' own; the id of the token that ends an answer."""
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()),
        eos_token=stop,
        pad_token=stop,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    whole.save_pretrained(folder)
    return int(whole.eos_token_id)


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    def typed(tensor: Tensor) -> torch.dtype:
        return dtype if tensor.is_floating_point() else tensor.dtype

    planned = {name: torch.empty_like(one, dtype=typed(one), device="meta") for name, one in tensors.items()}
    plan = split_torch_state_dict_into_shards(
        planned, filename_pattern="model{suffix}.safetensors", max_shard_size=SHARD
    )
    for file, names in plan.filename_to_tensors.items():
        shard = {name: tensors[name].detach().to(typed(tensors[name])).contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod((folder / "config.json").stat().st_mode)  # it was for nobody else to read
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
