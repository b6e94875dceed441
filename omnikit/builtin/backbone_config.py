"""The `hf_causal_lm` backbone's Config: geometry, tokenizer and chat format as data."""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from omnikit.component import BackboneConfig, Weights, tensors_in

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from omnikit.builtin.backbone import CausalLM

PRESETS: dict[str, dict[str, Any]] = json.loads(
    files("omnikit.builtin").joinpath("backbone_presets.json").read_text(encoding="utf-8")
)


class HFCausalLM(BackboneConfig):
    """A transformers causal language model of plain attention layers: llama, mistral, phi3, qwen2, qwen3, olmo2, ...

    `config` is transformers' own configuration of the architecture (`model_type` and what differs from its defaults);
    presets carry it for known models. The tokenizer is that of `tokenizer_from`, by default of `weights`. Without
    either it is byte-level: the 256 bytes, the special tokens of `chat`, and `words`, each one token where it stands
    whole; the model's `vocab_size` is then the tokenizer's.
    """

    type: ClassVar[str] = "hf_causal_lm"
    presets = PRESETS

    preset: str | None = None
    config: dict[str, Any]
    tokenizer_from: Weights | None = None
    words: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> "HFCausalLM":
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config: model_type is missing; name the architecture, such as llama or qwen2")
        if self.words and (self.tokenizer_from or self.weights):
            raise ValueError("words: only the byte-level tokenizer takes them; remove words, or weights")
        if "vocab_size" not in self.config and (self.tokenizer_from or self.weights):
            raise ValueError("config: vocab_size is missing; state that of the weights")
        return self

    def tokenizer(self) -> "Tokenizer":
        """The tokenizer, with special tokens in content taken as plain text."""
        source = self.tokenizer_from or self.weights
        return _from_folder(source) if source else byte_level(self.special_tokens(), self.words)

    def special_tokens(self) -> tuple[str, ...]:
        """The tokens that `chat` is written with, for the byte-level tokenizer: everything of the form <|name|>."""
        import re

        chat = self.chat
        texts = [*chat.prefix.values(), *chat.suffix.values(), chat.stop, *chat.begin.values(), *chat.end.values()]
        return tuple(dict.fromkeys(token for text in texts for token in re.findall(r"<\|[^|]+\|>", text)))

    def build(self) -> "CausalLM":
        """The module, with random weights."""
        from omnikit.builtin.backbone import CausalLM

        config = dict(self.config)
        config.setdefault("vocab_size", 0)
        if not config["vocab_size"]:
            config["vocab_size"] = self.tokenizer().get_vocab_size()
        return CausalLM(config)

    def pretrained(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Tensors of `weights`, whose names are the module's own."""
        assert self.weights is not None
        return tensors_in(self.weights)


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

    file = Path(source) / "tokenizer.json"
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        name, _, revision = source.partition("@")
        try:
            file = Path(hf_hub_download(name, "tokenizer.json", revision=revision or None))
        except (OSError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise ValueError(
                f"backbone: the tokenizer of {source} is neither in a folder here nor to be had from the hub "
                f"({type(error).__name__}); give tokenizer_from: a folder with tokenizer.json"
            ) from error
    if not file.is_file():
        raise ValueError(f"backbone: {source} has no tokenizer.json; give tokenizer_from: a folder that has one")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True
    return tokenizer
