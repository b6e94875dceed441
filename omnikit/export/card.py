"""The model card of an exported folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omnikit.checkpoint import Checkpoint
from omnikit.export.packaging import components
from omnikit.recipe import Recipe

ALWAYS = ("torch", "transformers")


def card(
    run: Path,
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    text: str,
    copied: Mapping[str, str],
    requirements: Iterable[str],
    unreached: Sequence[str],
    dtype: str,
) -> str:
    """The README.md of a run's export.

    `checkpoints` are those it was made of, newest first; `text` is its recipe as it stands in the folder; `copied` are
    the packages that its code is from, with their versions, `requirements` those that it needs; `unreached` are
    modalities that no stage has trained.
    """
    name = run.resolve().name
    needed = [*ALWAYS, *sorted(set(requirements) - set(ALWAYS))]
    used = [f"| `{path}` | {type(one).type} | {_package(one)} |" for path, one in components(recipe)]
    done = {one.stage: one.step for one in reversed(checkpoints) if one.step}
    entries = {stage: entry.model_dump(mode="json") for stage, entry in recipe.stages.items()}
    stages = [
        f"| {stage} | {done.get(stage, 0):,} | {', '.join(entry['data'])} | {_rules(entry['train'])} |"
        for stage, entry in entries.items()
    ]
    data = [
        f"| {key} | {source.type} | {', '.join(('text', *source.modalities))} |" for key, source in recipe.data.items()
    ]
    example = "".join(f', {modality}="FILE"' for modality in recipe.modalities)
    return f"""---
library_name: transformers
tags:
- omnikit
- multimodal
---

# {name}

{_sentence(recipe)} Exported by omnikit from the run `{name}`, as the stage `{checkpoints[0].stage}` left it at step
{checkpoints[0].step:,}, in {dtype}. It loads without omnikit: the code in this folder is what it needs of the packages
{", ".join(f"{package} {number}" for package, number in copied.items())}, under their licences.{_warning(unreached)}

## Use

```sh
pip install {" ".join(needed)}
```

```python
from transformers import AutoModelForCausalLM, AutoProcessor

folder = "."  # this folder, or its name on the hub
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text="What is this?"{example})  # any of them, or none
answer = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(answer, skip_special_tokens=True))
```

`processor.apply_chat_template(messages, add_generation_prompt=True)` takes conversations of several turns. With omnikit
installed this folder is also a run: its commands take it where they take one.

## Components

| part | type | of |
|---|---|---|
{_lines(used)}

## Training

| stage | steps | data | what it trained |
|---|---|---|---|
{_lines(stages)}

| data | type | holds |
|---|---|---|
{_lines(data)}

## Figures

{_figures(run)}

## Recipe

```yaml
{text.strip()}
```

## Versions

{", ".join(f"{package} {version(package)}" for package in needed)}
"""


def _sentence(recipe: Recipe) -> str:
    named = list(recipe.modalities)
    listed = f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else "".join(named)
    return f"A language model that takes text, {listed}, and answers in text." if named else "A language model."


def _warning(unreached: Sequence[str]) -> str:
    parts = ", ".join(f"`modalities.{name}`" for name in unreached)
    return f"\n\nNo stage has trained {parts}: that is as it was begun with." if unreached else ""


def _rules(train: Mapping[str, Any]) -> str:
    rates = {path: rule if isinstance(rule, str | int | float) else rule["lr"] for path, rule in train.items()}
    return ", ".join(f"`{path}`: {rate}" for path, rate in rates.items())


def _figures(run: Path) -> str:
    """The held-out table of the run's report, where there is one."""
    path = run / "report.json"
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))["heldout"] if path.is_file() else {}
        rows = [
            f"| {key} | {one['samples']:,} | {one['metric']} ({one['better']} is better) | {one['score']:.1%} | "
            f"{one['chance']:.1%} | {one['blind']:.1%} |"
            for key, one in tables.items()
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        told = f"is damaged ({error}); let `omnikit train` make it again, or remove it"
        raise ValueError(f"{path}: {told}") from error
    if not rows:
        return "The run was not measured on held-out data."
    told = (
        "Of the finished run, on data that it was not trained on. *Chance* knows the question alone, *blind* is the "
        "model without its media."
    )
    head = "| held out | samples | measure | score | chance | blind |\n|---|---|---|---|---|---|"
    return f"{told}\n\n{head}\n{_lines(rows)}"


def _lines(rows: Iterable[str]) -> str:
    return "\n".join(rows)


def _package(component: object) -> str:
    return type(component).__module__.partition(".")[0]
