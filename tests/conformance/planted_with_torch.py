"""An encoder whose module of Configs imports torch."""

import torch
from planted import Stacked


class Hasty(Stacked):
    gain: float = float(torch.tensor(1.0))
