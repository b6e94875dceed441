"""An exported model behind transformers' interface. Copied into every export as `modeling_omnikit.py`.

Letters: B prompts of T positions, S positions with those in the cache, H backbone width, V vocabulary.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from omnikit.building import parameters_on_meta
from omnikit.component import Item, count
from omnikit.export.configuration import OmnikitConfig
from omnikit.export.parts import Parts, parts_of
from omnikit.model import OmniModel
from omnikit.packing import Batch, Media, positions_of


class OmnikitForCausalLM(PreTrainedModel, GenerationMixin):
    """Text out of text and media. Parameters have the names that they have in a run.

    Media come as the processor gives them: `mm_token_type_ids` says of each position whether a medium's token goes
    there (0: no; k: of the k-th modality), and each modality NAME that there is has `NAME_values`, what its encoder
    eats of each medium, and `NAME_grids`.
    """

    config_class = OmnikitConfig
    main_input_name = "input_ids"

    embed, encode, example = OmniModel.embed, OmniModel.encode, OmniModel.example

    def __init__(self, config: OmnikitConfig) -> None:
        super().__init__(config)
        made = _built(parts_of(config.components))
        # Its parts become this model's own, so that no name changes.
        self.branches, self.configs, self.stored = made.branches, made.configs, made.stored
        self.backbone, self.encoders, self.modalities = made.backbone, made.encoders, made.modalities
        self._tied_weights_keys = dict(config.ties)
        self.computed = list(self.named_non_persistent_buffers())
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Nothing is drawn: parameters come from files. Buffers that are in none, which transformers empties when it
        loads a model, get back what they were built with."""
        for name, value in self.computed:
            self.get_buffer(name).copy_(value)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Int[Tensor, "B S"] | None = None,
        mm_token_type_ids: Int[Tensor, "B T"] | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        past_key_values: Any = None,  # noqa: ANN401  (the backbone's own)
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **media: Any,  # noqa: ANN401  (and what else transformers hands over, which is not looked at)
    ) -> CausalLMOutputWithPast:
        """Logits `B T V`, of the last `logits_to_keep` positions if that is not 0; `labels` of -100 are not learned.

        Left out, `attention_mask` is 1 everywhere. With a cache the numbers are those of generation in omnikit,
        without one those of its training: they differ in last bits.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embedded(input_ids, mm_token_type_ids, media)
        rows, length = inputs_embeds.shape[:2]
        if attention_mask is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            attention_mask = torch.ones(rows, past + length, dtype=torch.long, device=inputs_embeds.device)
        if use_cache or past_key_values is not None:
            hidden, past_key_values = self.backbone.extend(inputs_embeds, attention_mask, past_key_values)
        else:
            segments = attention_mask.long()
            hidden = self.backbone.hidden(inputs_embeds, segments, positions_of(segments))
        logits = self.backbone.head(hidden[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=logits.shape[-1])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def embedded(
        self, ids: Int[Tensor, "B T"], kinds: Int[Tensor, "B T"] | None, given: dict[str, Any]
    ) -> Float[Tensor, "B T H"]:
        """Embeddings of the tokens, with every medium's in their places."""
        media: dict[str, Media] = {}
        for number, (name, branch) in enumerate(self.branches.items(), 1):
            if (values := given.get(f"{name}_values")) is None:
                continue
            grids = [(t, h, w) for t, h, w in given[f"{name}_grids"].tolist()]
            items = [Item(value.to(ids.device), grid) for value, grid in zip(values, grids, strict=True)]
            owners = [(f"{name} {i}", count(branch.projector.shrink(grid))) for i, grid in enumerate(grids)]
            media[name] = Media(items, (kinds.flatten() == number).nonzero().flatten(), owners)
        if not media:
            return self.backbone.embed(ids)
        none = ids.new_empty(0)
        return self.embed(Batch(ids, torch.ones_like(ids), none, none, none, [], media))

    @torch.no_grad()
    def generate(self, inputs: Int[Tensor, "B T"] | None = None, **kwargs: Any) -> Any:  # noqa: ANN401
        """As transformers' own. Media are encoded once, before it begins."""
        names = {f"{name}_{what}" for name in self.branches for what in ("values", "grids")}
        given = {name: kwargs.pop(name) for name in names & kwargs.keys()}
        kinds = kwargs.pop("mm_token_type_ids", None)
        if given:
            ids = kwargs["input_ids"] if inputs is None else inputs
            kwargs["inputs_embeds"] = self.embedded(ids.to(self.device), kinds.to(self.device), given)
        return super().generate(inputs, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the backbone makes its own


def _built(parts: Parts) -> OmniModel:
    modalities = frozenset(parts.modalities)
    if torch.empty(0).device.type != "meta":
        return OmniModel(parts, modalities)
    # transformers fills parameters from files; buffers are to have values.
    with torch.device("cpu"), parameters_on_meta():
        return OmniModel(parts, modalities)
