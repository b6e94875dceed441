"""What an exported model is asked, as its tensors. Copied into every export as `processing_omnikit.py`."""

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from os import PathLike
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import BatchFeature, ProcessorMixin

from omnikit.component import Medium, Sample, Turn
from omnikit.export.parts import parts_of
from omnikit.packing import read_items
from omnikit.reading import Reading
from omnikit.sample import Branch, Layout, Layouter

Message = Mapping[str, Any]


class OmnikitProcessor(ProcessorMixin):
    """Chat messages, or a text and media, to what the model's `forward` and `generate` take.

    A medium is a path, the bytes of a file, a PIL image, or `{"path": ..., "start": ..., "end": ...}` for some seconds
    of a file. Nothing is fetched from the net.
    """

    def __init__(self, tokenizer: Any, components: dict[str, Any] | None = None) -> None:  # noqa: ANN401
        super().__init__(tokenizer)
        self.components = components or {}
        parts = parts_of(self.components)
        # Of its own, since what stands in a text is text: it never becomes a special token.
        inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        inner.encode_special_tokens = True
        reading = Reading(parts.limits)
        branches = {
            name: Branch(modality.reader, parts.encoders[modality.encoder].input, modality.projector, reading)
            for name, modality in parts.modalities.items()
        }
        self._layouter = Layouter(parts.backbone.chat, inner, branches)

    def __call__(self, text: str | Sequence[str] = "", **media: Any) -> BatchFeature:  # noqa: ANN401
        """The prompt of a question, or of each of several.

        Media go before the text, by the names of the model's modalities (`image=...` or `images=...`): one or a list
        of them for a text, a list with an entry for each of several texts.
        """
        media.pop("return_tensors", None)  # always torch's
        media = {name if name in self._layouter.branches else name.removesuffix("s"): x for name, x in media.items()}
        if unknown := media.keys() - self._layouter.branches.keys():
            known = ", ".join(self._layouter.branches)
            raise ValueError(f"{', '.join(sorted(unknown))}: the model has no such modality; modalities: {known}")
        texts = [text] if isinstance(text, str) else list(text)
        each = {name: [given] if isinstance(text, str) else given for name, given in media.items()}
        if wrong := [name for name, given in each.items() if len(given) != len(texts)]:
            raise ValueError(f"{wrong[0]}: has {len(each[wrong[0]])} entries for {len(texts)} texts; give one for each")
        asked = []
        for number, one in enumerate(texts):
            content = [
                {"type": name, name: medium}
                for name in self._layouter.branches
                for medium in _listed(each.get(name, [None] * len(texts))[number])
            ]
            asked.append([{"role": "user", "content": [*content, *([{"type": "text", "text": one}] if one else [])]}])
        return self.apply_chat_template(asked, add_generation_prompt=True)

    def apply_chat_template(
        self,
        conversation: Sequence[Message] | Sequence[Sequence[Message]],
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """A conversation, or several, as tensors, padded at the left.

        A message is `{"role", "content"}`; its content a text, or a list of `{"type": "text", "text": ...}` and, for
        each modality NAME, `{"type": NAME, NAME: medium}`.
        """
        if not tokenize or not return_dict or return_tensors != "pt":
            raise ValueError("a medium has no text: leave tokenize, return_dict and return_tensors as they are")
        if not len(conversation):
            raise ValueError("there is no message; give at least one")
        several = [conversation] if isinstance(conversation[0], Mapping) else conversation
        layouts = []
        for number, messages in enumerate(several):
            turns = [_turn(message) for message in messages]
            turns += [Turn("assistant", ())] if add_generation_prompt else []
            sample = Sample(f"{number}", tuple(turns))
            layouts.append(self._layouter(sample, answer=not add_generation_prompt))
        return self._collated(layouts)

    def _collated(self, layouts: list[Layout]) -> BatchFeature:
        length = max(len(layout.ids) for layout in layouts)
        kinds = {name: number for number, name in enumerate(self._layouter.branches, 1)}
        padding = self.tokenizer.pad_token_id or 0
        rows: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "mm_token_type_ids": []}
        media: dict[str, list[Any]] = {}
        for layout in layouts:
            left = length - len(layout.ids)
            kind = [0] * length
            for place in layout.places:
                kind[left + place.start : left + place.start + place.tokens] = [kinds[place.modality]] * place.tokens
            rows["input_ids"].append([padding] * left + layout.ids)
            rows["attention_mask"].append([0] * left + [1] * len(layout.ids))
            rows["mm_token_type_ids"].append(kind)
            for place, item in zip(layout.places, read_items((layout,), self._layouter.branches), strict=True):
                media.setdefault(f"{place.modality}_values", []).append(item.value)
                media.setdefault(f"{place.modality}_grids", []).append(item.grid)
        tensors = {name: torch.tensor(values) for name, values in rows.items()}
        tensors |= {name: torch.tensor(values) for name, values in media.items() if name.endswith("_grids")}
        return BatchFeature({**media, **tensors})

    @property
    def model_input_names(self) -> list[str]:
        """What the model may be given."""
        media = [f"{name}_{what}" for name in self._layouter.branches for what in ("values", "grids")]
        return ["input_ids", "attention_mask", "mm_token_type_ids", *media]

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds."""
        auto_map = {"AutoProcessor": "processing_omnikit.OmnikitProcessor"}
        return {"components": self.components, "processor_class": type(self).__name__, "auto_map": auto_map}


def _turn(message: Message) -> Turn:
    content = message.get("content")
    if "role" not in message or not isinstance(content, str | list | tuple):
        raise ValueError(f"a message is {dict(message)}; write {{'role': ..., 'content': a text or a list}}")
    if isinstance(content, str):
        return Turn(message["role"], (("text", content),))
    return Turn(message["role"], tuple(_entry(entry) for entry in content))


def _entry(entry: Mapping[str, Any]) -> tuple[str, str | Medium]:
    kind = entry.get("type")
    if kind == "text":
        return "text", entry["text"]
    given = entry.get(kind, entry if "path" in entry else None)
    if given is None:
        raise ValueError(f"a message holds {dict(entry)}; write {{'type': NAME, NAME: medium}}, or with 'path'")
    return str(kind), _medium(given)


def _medium(given: Any) -> Medium:  # noqa: ANN401
    if isinstance(given, Mapping):
        return Medium(str(given["path"]), given.get("start"), given.get("end"))
    if isinstance(given, bytes):
        return Medium(given)
    if isinstance(given, str | PathLike):
        return Medium(str(given))
    if hasattr(given, "save"):  # a PIL image
        file = BytesIO()
        given.save(file, "PNG")
        return Medium(file.getvalue())
    raise ValueError(f"a medium is a path, bytes or a PIL image, not a {type(given).__name__}")


def _listed(given: Any) -> Iterator[Any]:  # noqa: ANN401
    if given is not None:
        yield from given if isinstance(given, list | tuple) else [given]
