"""The `hf_causal_lm` backbone's Config: geometry, tokenizer and chat format as data."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, TypeAdapter, model_validator

from omnikit.component import BackboneConfig, Weights, tensors_in
from omnikit.weights import fetched

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from omnikit.builtin.backbone import CausalLM

PRESETS: dict[str, dict[str, Any]] = json.loads(
    files("omnikit.builtin").joinpath("backbone_presets.json").read_text(encoding="utf-8")
)

NAMED = re.compile(r"<\|[^|]+\|>")
MARKED = re.compile(r"<\|[^|]+\|>|<[^<>\s]+>")


class HFCausalLM(BackboneConfig):
    """A transformers causal language model of plain attention layers: llama, mistral, phi3, qwen2, qwen3, olmo2, ...

    `config` is transformers' own configuration of the architecture (`model_type` and what differs from its defaults);
    presets carry it for known models. With neither it is read from the config.json of `weights` when the recipe is
    loaded, and stands in the resolved recipe; `chat` must then be stated, since a folder's own template is a program.
    A `config` that is not that of `weights` (their sizes, but also rotary base or epsilon, which fit every tensor) is
    an error when the weights are loaded.

    The tokenizer is that of `tokenizer_from`, by default of `weights`. Without either it is byte-level: the 256 bytes,
    the special tokens of `chat`, and `words`, each one token where it stands whole; the model's `vocab_size` is then
    the tokenizer's.

    Presets, and what their `chat` was compared with (`text-only ids equal apply_chat_template`):

    - `smollm2-135m-instruct`, `smollm2-360m-instruct`: ids, with the real tokenizer of the 135M.
    - `qwen2.5-0.5b-instruct`, `qwen2.5-1.5b-instruct`, `qwen2.5-7b-instruct`: text, with the published template,
      tools left out.
    - `llama-3.2-1b-instruct`: text, with the published template at its own fixed date, 26 Jul 2024 (transformers puts
      today's date there); that template also strips the blanks around what is said, which nothing here does.
    - `baichuan2-7b`: the sizes of Baichuan2-7B as a plain llama, a stand-in for the paper's unnamed 7B. The original's
      weights do not load: it normalises its output weights (NormHead) and packs query, key and value in one matrix;
      nor does its tokenizer, which is no tokenizer.json. Its chat is unverified.
    """

    type: ClassVar[str] = "hf_causal_lm"
    presets = PRESETS

    preset: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    tokenizer_from: Weights | None = None
    words: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_weights(cls, data: Any) -> Any:  # noqa: ANN401  (pydantic hands over whatever the YAML held)
        if not isinstance(data, Mapping) or not isinstance(data.get("weights"), str):
            return data
        if data.get("preset") is not None or data.get("config") is not None:
            return data
        if data.get("chat") is None:
            raise ValueError(
                "chat: is missing; state it, or name a preset: the chat template of weights is a program, and not run"
            )
        from omnikit.builtin.backbone_geometry import geometry

        return {**data, "config": geometry(TypeAdapter(Weights).validate_python(data["weights"]))}

    @model_validator(mode="after")
    def _check(self) -> "HFCausalLM":
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError(
                "config: model_type is missing; name the architecture, such as llama or qwen2, or a preset"
            )
        if self.words and (self.tokenizer_from or self.weights):
            raise ValueError("words: only the byte-level tokenizer takes them; remove words, or weights")
        if "vocab_size" not in self.config and (self.tokenizer_from or self.weights):
            raise ValueError("config: vocab_size is missing; state that of the weights")
        if isinstance(stated := self.config.get("vocab_size"), int) and not (self.tokenizer_from or self.weights):
            least = self.tokenizer().get_vocab_size()
            if stated < least:
                raise ValueError(
                    f"config: vocab_size {stated} is less than the {least} tokens of the byte-level tokenizer; "
                    "leave it out"
                )
        return self

    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, with special tokens in content taken as plain text."""
        source = self.tokenizer_from or self.weights
        return _from_folder(source) if source else byte_level(self.special_tokens(), self.words)

    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that `chat` is written with, for the byte-level tokenizer.

        What has the form <|name|>; in what marks roles and ends, which is never ordinary text, also <name>.
        """
        chat = self.chat
        marks = [chat.open, *chat.prefix.values(), *chat.suffix.values(), chat.stop]
        found = [token for text in marks for token in MARKED.findall(text)]
        found += [token for text in (*chat.begin.values(), *chat.end.values()) for token in NAMED.findall(text)]
        return tuple(dict.fromkeys(found))

    def tiny(self) -> "HFCausalLM":
        """The same architecture, options and chat at a few thousand parameters, with the byte-level tokenizer."""
        from omnikit.builtin.backbone_geometry import shrunk

        return HFCausalLM(config=shrunk(self.config), chat=self.chat, words=self.words)

    def cost(self, length: int, labels: int) -> float:
        """FLOPs of the forward pass of one document: layers and attention of `length` positions, head of `labels`.

        Two for each multiply-add of every matrix; looking up embeddings, norms and activations are left out. Attention
        counts the pairs that a causal mask leaves, L (L + 1) / 2, as kernels that skip what is masked compute them;
        counters that know of no mask (torch's FlopCounterMode) count about twice that.
        """
        from omnikit.builtin.backbone import sizes_of

        weights, pair, head = sizes_of(json.dumps(self._sized()))
        return 2.0 * (weights * length + head * labels) + pair * length * (length + 1) / 2

    def context(self) -> int | None:
        """The `max_position_embeddings` of `config`, else the architecture's own.

        Less where rotary positions change with the longest document of a batch.
        """
        from omnikit.builtin.backbone import steady_reach
        from omnikit.builtin.backbone_geometry import architecture

        found = architecture(self.config)
        bound = min(getattr(found, "max_position_embeddings", None) or math.inf, steady_reach(found))
        return None if bound == math.inf else int(bound)

    def build(self) -> "CausalLM":
        """The module, with random weights."""
        from omnikit.builtin.backbone import CausalLM

        return CausalLM(self._sized())

    def pretrained(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Tensors of `weights`, whose names are the module's own; those of another configuration are a ValueError."""
        from omnikit.builtin.backbone_geometry import differences

        assert self.weights is not None
        if found := differences(self.config, self.weights):
            raise ValueError(
                f"config: is not that of {self.weights}: {', '.join(found)}; take the preset that belongs to the "
                "weights, or state chat and leave out preset and config, which is then read from there"
            )
        yield from tensors_in(self.weights)

    def _sized(self) -> dict[str, Any]:
        return {**self.config, "vocab_size": self.config.get("vocab_size") or self.tokenizer().get_vocab_size()}


@cache
def byte_level(special: tuple[str, ...], words: tuple[str, ...]) -> "Tokenizer":
    """A tokenizer of bytes and whole words that decodes every text to exactly itself.

    A space is put before each encoded piece and taken off again, so that a word is the same token at the start of a
    text as inside it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    entries = [*special, *alphabet]
    for word in words:
        written = [piece for piece, _ in pieces.pre_tokenize_str(" " + word)]
        if len(written) != 1:
            raise ValueError(f"backbone.words: {word!r} is more than one word; list its parts, here {len(written)}")
        entries += written
    vocabulary = {token: index for index, token in enumerate(entries)}
    if len(vocabulary) != len(entries):
        raise ValueError("backbone.words: a word stands twice; list each once")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.encode_special_tokens = True
    return tokenizer


@cache
def _from_folder(source: str) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        file = fetched(source, ["tokenizer.json"]) / "tokenizer.json"
    except ValueError as error:
        raise ValueError(str(error).replace("weights:", "backbone: the tokenizer of", 1)) from error
    if not file.is_file():
        raise ValueError(f"backbone: {source} has no tokenizer.json; give tokenizer_from: a folder that has one")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    return tokenizer
