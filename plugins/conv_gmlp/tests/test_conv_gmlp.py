"""Conv-GMLP against the structure of the successor's released code, written out per item."""

import math

import pytest
import torch
from omnikit_conv_gmlp import ConvGMLPConfig, omnikit_components
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)
D_IN, D_OUT = 6, 10


def reference(module: nn.Module, item: torch.Tensor, n: int) -> torch.Tensor:
    """One item as the successor does it: pad to a multiple of n, bridge everything, then mask to floor(t / n)."""
    t, d = item.shape
    padded = F.pad(item, (0, 0, 0, -t % n))[None]
    gate = F.conv1d(padded.transpose(1, 2), module.gate.weight, stride=n).transpose(1, 2)
    value = F.conv1d(padded.transpose(1, 2), module.value.weight, stride=n).transpose(1, 2)
    branch = F.linear(F.silu(gate) * value, module.mix.weight)
    residual = padded.reshape(1, math.ceil(t / n), n * d)
    hidden = F.layer_norm(branch + residual, (n * d,), module.norm.weight, module.norm.bias)
    return F.linear(hidden, module.out.weight, module.out.bias)[0, : t // n]


def build(rate: int) -> nn.Module:
    torch.manual_seed(0)
    module = ConvGMLPConfig(rate=rate).build(D_IN, D_OUT)
    for parameter in module.norm.parameters():  # away from 1 and 0, or the affine part would go untested
        nn.init.normal_(parameter)
    return module


def grids_of(*lengths: int) -> list[tuple[int, int, int]]:
    return [(length, 1, 1) for length in lengths]


@pytest.mark.parametrize("rate", [2, 4, 8])
def test_equals_padding_and_dropping_item_by_item(rate: int) -> None:
    module, lengths = build(rate), (rate, 3 * rate + 1, 50, 2 * rate - 1)
    features = torch.randn(sum(lengths), D_IN)
    expected = torch.cat([reference(module, item, rate) for item in features.split(lengths)])
    tokens = module(features, grids_of(*lengths))
    assert len(tokens) == sum(length // rate for length in lengths)
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)  # float32 rounding of sums of 48


@pytest.mark.parametrize(("rate", "weights"), [(2, 19_660_800), (4, 78_643_200), (8, 314_572_800)])
def test_parameters_without_the_output_map_are_3_n2_d2_and_the_norm(rate: int, weights: int) -> None:
    d = 1280
    with torch.device("meta"):
        module = ConvGMLPConfig(rate=rate).build(d, 3584)
    assert weights == 3 * rate**2 * d**2  # the paper's 19.7 M, 78.6 M and 314.6 M
    inside = [p.numel() for name, p in module.named_parameters() if not name.startswith("out.")]
    assert sum(inside) == weights + 2 * rate * d
    assert sum(p.numel() for p in module.out.parameters()) == rate * d * 3584 + 3584


@pytest.mark.parametrize("rate", [2, 4, 8])
@pytest.mark.parametrize("frames", [8, 51, 1500])
def test_cost_is_what_torch_counts(rate: int, frames: int) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        ConvGMLPConfig(rate=rate).build(64, 96)(torch.empty(frames, 64), grids_of(frames))
    assert ConvGMLPConfig(rate=rate).cost((frames, 1, 1), 64, 96) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_tiny_is_small_at_every_rate() -> None:
    for rate in (2, 4, 8):
        tiny = ConvGMLPConfig(rate=rate).tiny()
        assert tiny.rate == rate and sum(p.numel() for p in tiny.build(64, 64).parameters()) < 2_000_000


def test_items_never_influence_each_other() -> None:
    module, features = build(4), torch.randn(23, D_IN)
    alone = module(features[:9], grids_of(9))
    beside = module(torch.cat([features[:9], 100 * features[9:]]), grids_of(9, 14))
    torch.testing.assert_close(beside[:2], alone, rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    module = build(4)
    module(torch.randn(13, D_IN), grids_of(5, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("grids", [[], grids_of(0), grids_of(3)])
def test_no_whole_window_gives_no_token(grids: list[tuple[int, int, int]]) -> None:
    tokens = build(4)(torch.randn(sum(t for t, _, _ in grids), D_IN), grids)
    assert tokens.shape == (0, D_OUT)


@pytest.mark.parametrize("autocast", [True, False])
def test_runs_in_bfloat16(autocast: bool) -> None:
    module, features = build(4), torch.randn(24, D_IN)
    exact = module(features, grids_of(24))
    dtype = torch.float32 if autocast else torch.bfloat16
    module = module.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens = module(features.to(dtype), grids_of(24))
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), exact, rtol=0, atol=0.1)  # 8 bits of mantissa
    tokens.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(("rate", "tokens"), [(2, 750), (4, 375), (8, 187)])
def test_tokens_of_thirty_seconds(rate: int, tokens: int) -> None:
    assert ConvGMLPConfig(rate=rate).shrink((1500, 1, 1)) == (tokens, 1, 1)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ((3, 1, 1), r"conv_gmlp: grid \(3, 1, 1\) is less than one token; give at least 4 features, or less rate"),
        ((4, 27, 27), r"conv_gmlp: grid \(4, 27, 27\) is not a sequence; it takes \(t, 1, 1\)"),
    ],
)
def test_a_grid_that_gives_no_token_is_refused(grid: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvGMLPConfig().shrink(grid)


def test_the_hook_offers_the_config_under_its_name() -> None:
    assert {component.type: component for component in omnikit_components()} == {"conv_gmlp": ConvGMLPConfig}
