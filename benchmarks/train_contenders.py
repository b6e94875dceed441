"""One contender of `benchmarks/train.py`, a few steps in a process of its own.

    python benchmarks/train_contenders.py omnikit|trainer|trl full|align|text --data FOLDER --out FOLDER --steps 6

Prints one line of JSON: `ends`, the second at which each step ended; `tokens`, the real ones of each; `places`, with
padding; `labels`, `losses`; `peak` and `imports`, MB of resident memory.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from train_data import BATCH, CHAT, CONFIG, SIDE, Question, read, recipe_of

from omnikit.registry import Registry

COLUMNS = ("image", "prompt", "completion")
IMAGE, PAD = "<image>", "<|pad|>"


class Enough(Exception):
    """All steps were made."""


class Seen:
    """What the steps were."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.told: dict[str, list[float]] = {"ends": [], "tokens": [], "places": [], "labels": [], "losses": []}

    def add(self, tokens: int, places: int, labels: int, loss: float) -> bool:
        """Remember a step that just ended; whether it was the last."""
        row = (time.perf_counter(), tokens, places, labels, loss)
        for values, value in zip(self.told.values(), row, strict=True):
            values.append(value)
        return len(self.told["ends"]) == self.steps


def peak() -> float:
    """MB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


# ------------------------------------------------------------------------------------------------------------ omnikit


class Watching:
    """A display that counts steps, and ends the run after the last: what is measured holds no checkpoint."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    def indexing(self, *_: object) -> None: ...

    def caching(self, *_: object) -> None: ...

    def stage(self, *_: object) -> None: ...

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def step(self, record: Mapping[str, Any]) -> None:
        if self.seen.add(record["tokens"], record["places"], record["labels"], record["loss"]):
            raise Enough


def omnikit(setting: str, folder: Path, seen: Seen, seed: int, out: Path, sets: list[str]) -> None:
    """A recipe through `omnikit.train.train`, on the ranks that a launcher made, or on one."""
    from omnikit.distributed import joined
    from omnikit.train import train

    recipe = recipe_of(folder, Registry.load(), setting, seed, sets)
    with joined() as world:
        train(recipe, out, Watching(seen), world)


# -------------------------------------------------------------------------------------------------------------- peers


def model_of(setting: str, image_id: int, pad_id: int) -> "torch.nn.Module":
    """transformers' LLaVA of the same sizes: SigLIP's tower, 2 x 2 features as one, an MLP, and llama."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    class Pooled(LlavaMultiModalProjector):
        def forward(self, image_features: torch.Tensor) -> torch.Tensor:
            side = SIDE // 16
            grid = image_features.unflatten(1, (side // 2, 2, side // 2, 2)).mean((2, 4))
            return super().forward(grid.flatten(1, 2))

    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = SiglipVisionConfig(**sizes, image_size=SIDE, patch_size=16, vision_use_head=False)
    text = LlamaConfig(**{key: value for key, value in CONFIG.items() if key != "model_type"}, pad_token_id=pad_id)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.multi_modal_projector = Pooled(config)
    if setting == "align":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    return model


def processor_of(folder: Path) -> Any:
    """transformers' processor over the recipe's own tokenizer: the same texts have the same ids."""
    from tokenizers import Tokenizer
    from transformers import LlavaProcessor, PreTrainedTokenizerFast, SiglipImageProcessor

    told = recipe_of(folder, Registry.load(), "full", 0).backbone.tokenizer().to_str()
    own = Tokenizer.from_str(told)
    own.encode_special_tokens = False
    marks = [CHAT["prefix"]["user"], CHAT["prefix"]["assistant"], CHAT["stop"]]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token=PAD, eos_token=CHAT["stop"])
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks, IMAGE]})
    pictures = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    # Two patches each way are one token.
    return LlavaProcessor(pictures, tokenizer, patch_size=32, vision_feature_select_strategy="full", image_token=IMAGE)


def texts(question: Question) -> tuple[str, str]:
    """What stands before the answer, and the answer."""
    prefix, suffix = CHAT["prefix"], CHAT["suffix"]
    before = f"{prefix['user']}{IMAGE}{question.prompt}{suffix['user']}{prefix['assistant']}"
    return before, question.answer + suffix["assistant"]


def arguments(kind: Any, setting: str, seed: int, out: Path, **more: Any) -> Any:
    """What both trainers are told alike: bfloat16 by autocast over float32 weights, nothing saved, nothing reported."""
    return kind(
        output_dir=str(out),
        per_device_train_batch_size=BATCH,
        max_steps=1000,
        learning_rate=1e-3 if setting == "align" else 1e-4,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=True,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        **more,
    )


def watched(trainer: Any, seen: Seen) -> Any:
    """The trainer, whose batches are counted as they are collated and whose steps as they end."""
    from transformers import TrainerCallback

    batches: list[tuple[int, int, int]] = []
    collate = trainer.data_collator

    def counted(rows: Any) -> Any:
        batch = collate(rows)
        labels = int((batch["labels"] != -100).sum())
        batches.append((int(batch["attention_mask"].sum()), batch["attention_mask"].numel(), labels))
        return batch

    class Count(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if seen.add(*batches[state.global_step - 1], float("nan")):
                raise Enough

    trainer.data_collator = counted
    trainer.add_callback(Count())
    return trainer


def trainer(setting: str, folder: Path, seen: Seen, seed: int, out: Path, sets: list[str]) -> None:
    """transformers' Trainer with the padded collator that its examples have."""
    from PIL import Image
    from transformers import Trainer, TrainingArguments

    processor = processor_of(folder)

    def collate(rows: list[Question]) -> Any:
        pairs = [texts(row) for row in rows]
        pictures = [Image.open(row.image).convert("RGB") for row in rows]
        batch = processor(text=["".join(pair) for pair in pairs], images=pictures, padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, (_, answer) in enumerate(pairs):
            learned = len(processor.tokenizer(answer)["input_ids"])
            labels[row, : int(batch["attention_mask"][row].sum()) - learned] = -100
        batch["labels"] = labels
        return batch

    tokenizer = processor.tokenizer
    tokenizer.padding_side = "right"
    model = model_of(setting, processor.image_token_id, tokenizer.pad_token_id)
    made = arguments(TrainingArguments, setting, seed, out)
    watched(Trainer(model, made, collate, train_dataset=read(folder)), seen).train()


def trl(setting: str, folder: Path, seen: Seen, seed: int, out: Path, sets: list[str]) -> None:
    """TRL's SFTTrainer on prompts and completions with a picture, loss on completions, its own collator."""
    from datasets import Dataset
    from datasets import Image as Picture
    from trl import SFTConfig, SFTTrainer

    processor = processor_of(folder)
    rows = [dict(zip(COLUMNS, (question.image, *texts(question)), strict=True)) for question in read(folder)]
    data = Dataset.from_list(rows).cast_column("image", Picture(mode="RGB"))
    model = model_of(setting, processor.image_token_id, processor.tokenizer.pad_token_id)
    made = arguments(SFTConfig, setting, seed, out, max_length=None, completion_only_loss=True)
    watched(SFTTrainer(model, args=made, train_dataset=data, processing_class=processor), seen).train()


CONTENDERS = {"omnikit": omnikit, "trainer": trainer, "trl": trl}


def main() -> None:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=CONTENDERS)
    parser.add_argument("setting", choices=("full", "align", "text"))
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the run")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="for omnikit's recipe")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seen = Seen(options.steps)
    imports = peak()
    try:
        CONTENDERS[options.who](options.setting, options.data, seen, options.seed, options.out, options.set)
    except Enough:
        pass
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({**seen.told, "peak": peak(), "imports": imports}), flush=True)
    # Threads that read ahead, and other ranks, are of no concern any more.
    os._exit(0)


if __name__ == "__main__":
    main()
