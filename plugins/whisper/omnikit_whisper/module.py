"""Whisper's encoder for sounds of any length, made of transformers' own layers.

transformers' WhisperEncoder takes windows of 3000 frames only. This one takes any length up to that and computes
next to no padding: all windows share one sequence for the convolutions, and rows as long as the longest window for
attention. Splitting them into several calls by length would do too, but then ranks of a sharded model would run
the layers different numbers of times, and hang.

Letters: L features of all items end to end, N those of all windows (more, where windows are padded), D the width,
R rows of T places. `_frames` differ from item to item (jaxtyping checks no name that begins so).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer, sinusoids

from omnikit.kernels import attention_for, cast_once


class WhisperEncoder(nn.Module):
    """Features of log-mel frames. Parameters are named as in transformers.

    Positions are sinusoids, which no rule trains: a buffer, yet one that belongs to the weights: those of
    tiny.en lie up to 0.0005 beside ours, which would move its features by up to 0.006.
    """

    def __init__(
        self, *, width: int, layers: int, heads: int, mlp_width: int, mel_bins: int, window_frames: int
    ) -> None:
        super().__init__()
        self.width = width
        self.window_frames = window_frames
        config = WhisperConfig(
            d_model=width,
            encoder_attention_heads=heads,
            encoder_ffn_dim=mlp_width,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            attn_implementation="sdpa",
        )
        self.config = config
        self.conv1 = nn.Conv1d(mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.layers = nn.ModuleList(WhisperEncoderLayer(config) for _ in range(layers))
        cast_once(self.layers)
        self.layer_norm = nn.LayerNorm(width)
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(features_of(window_frames), width))

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated layers."""
        return self.layers

    def forward(
        self, items: Sequence[tuple[Float[Tensor, "bins _frames"], tuple[int, int, int]]]
    ) -> Float[Tensor, "L D"]:
        """The first t features of each item of grid (t, 1, 1), its windows in order, all items end to end."""
        windows = [value.split(self.window_frames, dim=1) for value, _ in items]
        lengths = [[features_of(window.shape[1]) for window in item] for item in windows]
        features = self._embedded([window for item in windows for window in item])

        places, segments = _rows([length for item in lengths for length in item])
        places, mask = places.to(features.device), _mask(segments, features)
        self.config._attn_implementation = attention_for(features.device)  # transformers' layers look at every call
        rows = features.new_zeros(segments.numel(), self.width).index_copy(0, places, features)
        rows = rows.unflatten(0, segments.shape)
        for layer in self.layers:
            rows = layer(rows, mask)

        per_item = places.split([sum(item) for item in lengths])
        real = torch.cat([item[:t] for item, (_, (t, _, _)) in zip(per_item, items, strict=True)])
        return self.layer_norm(rows.flatten(0, 1).index_select(0, real))

    def _embedded(self, windows: Sequence[Float[Tensor, "bins _frames"]]) -> Float[Tensor, "N D"]:
        """The windows through both convolutions, with their positions."""
        # The norms' type: float32 under autocast, where frozen convolutions may be held in 16 bits; bf16 where all is.
        dtype, device = self.layer_norm.weight.dtype, windows[0].device
        frames = [window.shape[1] for window in windows]
        # One sequence of slots. A slot's length is even, so that conv2's stride meets every window alike; at least one
        # frame at its end is empty, so that no kernel of 3 reaches from one window into the next.
        slots = [2 * (count // 2 + 1) for count in frames]
        mel = torch.cat([F.pad(w, (0, slot - w.shape[1])) for w, slot in zip(windows, slots, strict=True)], dim=1)
        is_real = torch.cat([torch.arange(slot) < count for count, slot in zip(frames, slots, strict=True)])
        hidden = F.gelu(self.conv1(mel[None].to(dtype))) * is_real.to(device)  # zeros, as conv2's own padding would be
        hidden = F.gelu(self.conv2(hidden))
        kept = is_real[::2].nonzero().flatten().to(device)  # found on the CPU, so that the device need not wait
        positions = torch.cat([self.positions[: features_of(count)] for count in frames])
        return hidden[0].T.index_select(0, kept) + positions.to(dtype)


def features_of(frames: int) -> int:
    """How many features the second convolution makes of a window: every other frame, from the first on."""
    return (frames - 1) // 2 + 1


def _rows(lengths: Sequence[int]) -> tuple[Int[Tensor, " N"], Int[Tensor, "R T"]]:
    """Windows packed into rows as long as the longest: the place of every feature, and each place's window.

    Windows count from 1; 0 is an empty place. First fit, longest first.
    """
    longest = max(lengths)
    filled: list[int] = []
    starts = [0] * len(lengths)
    for window in sorted(range(len(lengths)), key=lambda window: -lengths[window]):
        row = next((row for row, used in enumerate(filled) if used + lengths[window] <= longest), len(filled))
        if row == len(filled):
            filled.append(0)
        starts[window] = row * longest + filled[row]
        filled[row] += lengths[window]
    places = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    owners = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
    segments = torch.zeros(len(filled) * longest, dtype=torch.long).index_copy(0, places, owners)
    return places, segments.view(len(filled), longest)


def _mask(segments: Int[Tensor, "R T"], like: Tensor) -> Float[Tensor, "R 1 T T"] | None:
    """0 where places are of one window, else the lowest number. None, the fastest, where a window fills each row.

    Dense, R T T numbers in all, since T is a window at most: 4.5 MB a row of 1500 in bf16, for all heads and layers.
    """
    if torch.equal(segments, segments[:, :1].expand_as(segments)):
        return None
    segments = segments.to(like.device)
    same = segments[:, None, :, None] == segments[:, None, None, :]
    dtype = torch.get_autocast_dtype(like.device.type) if torch.is_autocast_enabled(like.device.type) else like.dtype
    return torch.zeros(same.shape, dtype=dtype, device=like.device).masked_fill(~same, torch.finfo(dtype).min)
