"""SigLIP's vision tower as transformers has it, called on all views of all items at once.

Letters: L features of all items end to end, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel


class SiglipEncoder(nn.Module):
    """One feature per patch, from the last layer after the final norm."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        image_size: int,
        patch_size: int,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.width = width
        self.tower = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=mlp_width,
                image_size=image_size,
                patch_size=patch_size,
                layer_norm_eps=layer_norm_eps,
                vision_use_head=False,
                attn_implementation="sdpa",
            )
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self.tower.encoder.layers

    def forward(self, items: Sequence[Any]) -> Float[Tensor, "L D"]:
        """Features of all views end to end, row by row; an item's value is float (views, 3, size, size)."""
        pixels = torch.cat([item.value for item in items])
        return self.tower(pixel_values=pixels).last_hidden_state.flatten(0, 1)
