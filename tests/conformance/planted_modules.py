"""The modules of the faulty components."""

import random

import torch
from omnikit_good_backbone.module import GoodBackbone
from omnikit_good_projector.module import GoodProjector
from torch import nn
from torch.nn import functional as F

# ------------------------------------------------------------------------------------------------------------ encoders


class Stack(nn.Module):
    """Good: patches of numbers through a linear map, two blocks, and another linear map."""

    def __init__(self, patch, width):
        super().__init__()
        self.patch, self.width = patch, width
        self.lift = nn.Linear(patch, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.mix = nn.Linear(width, width)

    def forward(self, items):
        return self.mix(self.through(self.lift(self.patches(items))))

    def patches(self, items):
        return torch.cat([value for value, _ in items]).unflatten(0, (-1, self.patch)).to(self.lift.weight.dtype)

    def through(self, x):
        for block in self.blocks:
            x = x + F.gelu(block(x))
        return x


class Deep(Stack):
    def __init__(self, patch, width, depth):
        super().__init__(patch, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))


class Drops(Stack):
    def forward(self, items):
        rows = super().forward(items).split([grid[0] for _, grid in items])
        return torch.cat([row[:-1] for row in rows])


class Wide(Stack):
    def __init__(self, patch, width):
        super().__init__(patch, width)
        self.width = 2 * width


class Centred(Stack):
    def patches(self, items):
        found = super().patches(items)
        return found - found.mean()


class CentredBehindZeros(Centred):
    """As many begin: a last layer of zeros, of which nothing comes yet."""

    def __init__(self, patch, width):
        super().__init__(patch, width)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)


class Sorted(Stack):
    def forward(self, items):
        return super().forward(sorted(items, key=lambda item: -len(item.value)))


class Idle(Stack):
    def __init__(self, patch, width):
        super().__init__(patch, width)
        self.pooling_head = nn.Linear(width, width)


class SkipsSilence(Stack):
    def forward(self, items):
        rows = super().forward(items)
        return rows if any(value.any() for value, _ in items) else rows.detach()


class Diced(Stack):
    def patches(self, items):
        return super().patches(items) + (random.random() if self.training else 0)


class OneByOne(Stack):
    def forward(self, items):
        return torch.cat([super(OneByOne, self).forward([item]) for item in items])


class Float32Only(Stack):
    def patches(self, items):
        return super().patches(items).float()


class NoAutocast(Stack):
    def through(self, x):
        rows = self.lift.weight.new_zeros(x.shape)
        rows[torch.arange(len(x))] = x
        return super().through(rows)


class FromWeights(Stack):
    def __init__(self, patch, width):
        super().__init__(patch, width)
        self.register_buffer("norm", self.lift.weight.detach().norm())

    def patches(self, items):
        return super().patches(items) / self.norm.to(self.lift.weight.dtype)


class Asks(Stack):
    """As drop paths are laid out: numbers asked of a tensor."""

    def __init__(self, patch, width):
        super().__init__(patch, width)
        self.gains = torch.linspace(1, 2, 3).tolist()


class Drawn(Stack):
    def __init__(self, patch, width):
        super().__init__(patch, width)
        self.offset = torch.randn(patch)

    def patches(self, items):
        return super().patches(items) + self.offset.to(self.lift.weight.dtype)


class UntoldTie(Stack):
    def __init__(self, patch, width):
        super().__init__(patch, width)
        self.last = nn.Linear(width, width)
        self.last.weight = self.mix.weight

    def forward(self, items):
        return self.last(super().forward(items))


class FalseTie(Stack):
    def tied(self):
        yield "mix.bias", "blocks.0.bias"


class Meddling(Stack):
    def through(self, x):
        return super().through(x) + F.linear(x, self.blocks[0].weight)


# ---------------------------------------------------------------------------------------------------------- projectors


class Generous(GoodProjector):
    def forward(self, features, grids):
        items = features.split([t * h * w for t, h, w in grids])
        return torch.cat([self.rounded_up(item, grid) for item, grid in zip(items, grids, strict=True)])

    def rounded_up(self, item, grid):
        tokens = super().forward(item, [grid])
        return torch.cat([tokens, tokens[:1]]) if grid[0] % self.rate else tokens


# ----------------------------------------------------------------------------------------------------------- backbones


class Decoder(GoodBackbone):
    pass


class Narrow(Decoder):
    def __init__(self, width, *sizes):
        super().__init__(width, *sizes)
        self.width = width // 2


class OneDocument(Decoder):
    def hidden(self, embeds, segments, positions):
        return super().hidden(embeds, (segments > 0).long(), positions)


class SeesPadding(Decoder):
    def hidden(self, embeds, segments, positions):
        same = (segments[:, :, None] == segments[:, None, :]) | (segments[:, None, :] == 0)
        return self._run(embeds, positions, same.tril(), [None] * len(self.blocks))[0]


class SeesAhead(Decoder):
    def hidden(self, embeds, segments, positions):
        same = segments[:, :, None] == segments[:, None, :]
        return self._run(embeds, positions, same, [None] * len(self.blocks))[0]


class Restarts(Decoder):
    def extend(self, embeds, mask, cache):
        return super().extend(embeds, mask[:, -embeds.shape[1] :], None)


class Miscounts(Decoder):
    def extend(self, embeds, mask, cache):
        return super().extend(embeds, torch.ones_like(mask), cache)
