"""SigLIP's vision tower as transformers has it, called on all views of all items at once.

Letters: L features of all items end to end, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from omnikit.kernels import attention_for, cast_once


class SiglipEncoder(nn.Module):
    """One feature per patch, from the last layer that is built, after the final norm or without it."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        image_size: int,
        patch_size: int,
        layer_norm_eps: float,
        gelu: str = "tanh",
        post_norm: bool = True,
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
                hidden_act={"tanh": "gelu_pytorch_tanh", "erf": "gelu"}[gelu],
                vision_use_head=False,
                attn_implementation="sdpa",
            )
        )
        cast_once(self.tower)
        if not post_norm:
            self.tower.post_layernorm = nn.Identity()
        # transformers starts positions at 1 / sqrt(width), a tenth of what the patches are: from scratch a model then
        # sees what is in a picture long before it sees where (`docs/log.md`).
        positions = self.tower.embeddings.position_embedding.weight
        with torch.no_grad():
            positions.copy_(sincos_positions(image_size // patch_size, width))

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        return self.tower.encoder.layers

    def forward(self, items: Sequence[Any]) -> Float[Tensor, "L D"]:
        """Features of all views end to end, row by row; an item's value is float (views, 3, size, size)."""
        pixels = torch.cat([item.value for item in items])
        self.tower.config._attn_implementation = attention_for(pixels.device)  # its layers look at every call
        return self.tower(pixel_values=pixels).last_hidden_state.flatten(0, 1)


def sincos_positions(side: int, width: int) -> Float[Tensor, "P D"]:
    """Sines and cosines of the column in the first half of the channels, of the row in the second (P = side * side).

    As vision transformers without learned positions have them (arXiv 2205.01580, big_vision's `sincos2d`).
    """
    channels = torch.arange(width // 2)
    rates = 100.0 ** (-(channels // 2) / max(width // 4, 1))
    angles = torch.arange(side)[:, None] * rates
    waves = torch.where(channels % 2 == 0, angles.sin(), angles.cos())
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, 0)
    positions = torch.cat([columns, rows], dim=1)
    return torch.nn.functional.pad(positions, (0, width - positions.shape[1]))
