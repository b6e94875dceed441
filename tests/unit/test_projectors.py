"""The projectors of the core: counts, every joining against torch's own, and items that do not see each other."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from omnikit.builtin.projector_configs import CAbstractorConfig, Concat, MeanPool, Mlp, PoolMlp, StridedConv
from omnikit.component import Grid, count

torch.set_num_threads(1)
D_IN, D_OUT = 6, 10
PICTURES: list[Grid] = [(2, 5, 4), (1, 2, 7), (3, 5, 4), (1, 3, 3)]
SOUNDS: list[Grid] = [(9, 1, 1), (50, 1, 1), (8, 1, 1)]
CASES = [
    (Mlp(), PICTURES + SOUNDS),
    (PoolMlp(), PICTURES),
    (PoolMlp(newline=False), PICTURES),
    (PoolMlp(pool="conv"), PICTURES),
    *((join(rate=rate), SOUNDS) for join in (MeanPool, Concat, StridedConv) for rate in (2, 8)),
    *((join(newline=newline), PICTURES) for join in (MeanPool, Concat, StridedConv) for newline in (True, False)),
    *((join(), PICTURES[:2] + SOUNDS + PICTURES[2:]) for join in (MeanPool, Concat, StridedConv)),
    (CAbstractorConfig(depth=2), PICTURES),
    (CAbstractorConfig(depth=1, side=2, newline=False), PICTURES),
]
cases = pytest.mark.parametrize(("config", "grids"), CASES, ids=[f"{config.type}, {config}" for config, _ in CASES])


def built(config, seed=0):
    """With every parameter away from its start, so that nothing agrees by chance."""
    torch.manual_seed(seed)
    module = config.build(D_IN, D_OUT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return module


def features_of(grids, seed=1):
    return torch.randn(sum(map(count, grids)), D_IN, generator=torch.Generator().manual_seed(seed))


def items_of(features, grids):
    return [item.view(*grid, -1) for item, grid in zip(features.split([*map(count, grids)]), grids, strict=True)]


# ----------------------------------------------------------------------------------------------- joining, against torch


def joined(module, kind, rate, item):
    """(rows of all views, tokens of a row, width) of one item, by torch's own pooling and convolutions."""
    h, w = item.shape[1:3]
    y, x = (1, rate) if (h, w) == (1, 1) else (int(rate**0.5),) * 2
    views = item.permute(1, 3, 2, 0) if (h, w) == (1, 1) else item.permute(0, 3, 1, 2)  # a sound is a view of one row
    if kind == "mean":
        made = F.avg_pool2d(views, (y, x))
    elif kind == "conv":
        weight = module.conv.weight.view(D_IN, y, x, D_IN).permute(0, 3, 1, 2)
        made = F.conv2d(views, weight, module.conv.bias, stride=(y, x))
    else:
        inside = views[:, :, : views.shape[2] // y * y, : views.shape[3] // x * x]
        parts = [inside[:, :, i::y, j::x] for i in range(y) for j in range(x)]
        made = torch.cat(parts, dim=1)
    return made.permute(0, 2, 3, 1).flatten(0, 1)


@pytest.mark.parametrize("rate", [2, 4, 8, 9])
@pytest.mark.parametrize(("join", "kind"), [(MeanPool, "mean"), (Concat, "concat"), (StridedConv, "conv")])
def test_joining_is_torchs_own_pooling_or_convolution_row_by_row(join, kind, rate):
    pictures = [(2, 7, 6), (1, 3, 4)] if rate in (4, 9) else []
    for newline in (False, True) if pictures else (False,):
        grids = pictures if newline else [*pictures, (50, 1, 1), (rate, 1, 1)]
        module, features = built(join(rate=rate, newline=newline)), features_of(grids)
        expected = []
        for item in items_of(features, grids):
            rows = module.linear_2(F.gelu(module.linear_1(joined(module, kind, rate, item))))
            ends = [module.newline.expand(len(rows), 1, -1)] if newline else []
            expected.append(torch.cat([rows, *ends], dim=1).flatten(0, 1))
        torch.testing.assert_close(module(features, grids), torch.cat(expected), rtol=0, atol=1e-5)  # float32 rounding


@pytest.mark.parametrize("newline", [True, False])
def test_pool_mlp_is_mean_pool_or_strided_conv_of_four(newline):
    features = features_of(PICTURES)
    for pool, other in (("mean", MeanPool), ("conv", StridedConv)):
        module, same = built(PoolMlp(pool=pool, newline=newline)), built(other(newline=newline), seed=5)
        same.load_state_dict(module.state_dict())
        assert torch.equal(module(features, PICTURES), same(features, PICTURES))


def test_convolutions_start_as_the_mean():
    for grids in (PICTURES, SOUNDS):
        mean, conv = built(MeanPool()), StridedConv().build(D_IN, D_OUT)
        assert conv.load_state_dict(mean.state_dict(), strict=False).missing_keys == ["conv.weight", "conv.bias"]
        features = features_of(grids)
        torch.testing.assert_close(conv(features, grids), mean(features, grids), rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (Mlp(), 729),
        (PoolMlp(), 182),
        (PoolMlp(pool="conv", newline=False), 169),
        (Concat(newline=True), 182),
        (MeanPool(rate=9), 81),
        (CAbstractorConfig(), 182),
        (CAbstractorConfig(side=12, newline=False), 144),
    ],
)
def test_tokens_of_a_view_of_27_x_27(config, tokens):
    assert count(config.shrink((1, 27, 27))) == tokens
    assert count(config.shrink((3, 27, 27))) == 3 * tokens  # two tiles and the whole: the 546 of the paper for 182


@pytest.mark.parametrize("join", [MeanPool, Concat, StridedConv])
@pytest.mark.parametrize(("rate", "tokens"), [(2, 750), (4, 375), (8, 187)])
def test_tokens_of_thirty_seconds(join, rate, tokens):
    assert join(rate=rate).shrink((1500, 1, 1)) == (tokens, 1, 1)


@cases
def test_cost_is_what_torch_counts(config, grids):
    module = built(config)
    for grid in [*grids, (grids[0][0] * 3, *grids[0][1:])]:
        with FlopCounterMode(display=False) as counter:
            module(features_of([grid]), [grid])
        assert config.cost(grid, D_IN, D_OUT) == pytest.approx(counter.get_total_flops(), rel=0.01)


# --------------------------------------------------------------------------------------------------- laws of projectors


@cases
def test_tokens_are_what_shrink_counts_and_items_do_not_see_each_other(config, grids):
    module, features = built(config), features_of(grids)
    tokens = module(features, grids).split([count(config.shrink(grid)) for grid in grids])
    for i, (item, grid, together) in enumerate(zip(features.split([*map(count, grids)]), grids, tokens, strict=True)):
        alone = module(item, [grid])
        assert alone.shape == together.shape
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-5)  # another batch size rounds otherwise
        poisoned = [
            part if j == i else torch.full_like(part, torch.nan) for j, part in enumerate(split(features, grids))
        ]
        kept = module(torch.cat(poisoned), grids).split([len(part) for part in tokens])[i]
        assert torch.equal(kept, together)


def split(features, grids):
    return features.split([*map(count, grids)])


@cases
def test_views_do_not_see_each_other(config, grids):
    for grid in grids:
        if grid[0] > 1 and grid[1:] != (1, 1):
            module, features = built(config), features_of([grid])
            whole = module(features, [grid]).chunk(grid[0])
            alone = [module(view, [(1, *grid[1:])]) for view in features.chunk(grid[0])]
            torch.testing.assert_close(whole, tuple(alone), rtol=0, atol=1e-5)


@cases
def test_every_parameter_gets_a_gradient_in_every_precision(config, grids):
    features = features_of(grids)
    exact = built(config)(features, grids).detach()
    for dtype, autocast in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False)):
        module = built(config).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            tokens = module(features.to(dtype), grids)
        assert tokens.dtype == (torch.bfloat16 if autocast else dtype)
        assert (tokens.float() - exact).norm() < 0.1 * exact.norm()  # bfloat16 has 8 bits
        tokens.float().square().sum().backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@cases
def test_built_on_meta_it_has_the_same_tensors(config, grids):
    with torch.device("meta"):
        meta = config.build(D_IN, D_OUT).state_dict()
    assert {name: t.shape for name, t in meta.items()} == {
        name: t.shape for name, t in built(config).state_dict().items()
    }


@cases
def test_tiny_has_the_same_options_and_few_parameters(config, grids):
    tiny = config.tiny()
    assert [tiny.shrink(grid) for grid in grids] == [config.shrink(grid) for grid in grids]
    assert sum(parameter.numel() for parameter in tiny.build(64, 64).parameters()) < 2_000_000


def test_newline_is_a_parameter_only_where_it_is_used():
    for config in (PoolMlp, Concat, CAbstractorConfig):
        assert "newline" in built(config(newline=True)).state_dict()
        assert "newline" not in built(config(newline=False)).state_dict()


# --------------------------------------------------------------------------------------------------------- c_abstractor


def test_c_abstractor_pools_all_of_an_uneven_view_between_its_blocks():
    module, features = built(CAbstractorConfig(depth=1, side=2)), features_of([(1, 5, 3)])
    before = module.before(features.view(1, 5, 3, D_IN))
    corner = before[:, :3, :2].mean((1, 2))  # rows 0 to 2 of 5 and columns 0 to 1 of 3: areas of two halves overlap
    pooled = F.adaptive_avg_pool2d(before.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled[:, 0, 0], corner, rtol=0, atol=1e-6)
    after = module.after(pooled)
    expected = module.linear_2(F.silu(module.linear_1(after)))[0]
    rows = module(features, [(1, 5, 3)]).view(2, 3, D_OUT)
    torch.testing.assert_close(rows[:, :2], expected, rtol=0, atol=1e-5)
    assert torch.equal(rows[:, 2], module.newline.expand(2, -1))


def test_a_block_of_c_abstractor_is_regnets():
    """Written out with convolutions and channels first; tests/parity compares with timm's."""
    module, views = built(CAbstractorConfig(depth=1)).before[0], torch.randn(3, D_IN, 5, 4)

    def norm(hidden, layer):
        scaled = (hidden - hidden.mean(1, keepdim=True)) * (hidden.var(1, keepdim=True, correction=0) + 1e-5) ** -0.5
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    def one_by_one(hidden, layer):
        return F.conv2d(hidden, layer.weight[:, :, None, None], layer.bias)

    hidden = F.silu(norm(one_by_one(views, module.conv_1), module.norm_1))
    hidden = F.silu(norm(F.conv2d(hidden, module.conv_2.weight, padding=1, groups=D_IN), module.norm_2))
    gates = one_by_one(F.silu(one_by_one(F.adaptive_avg_pool2d(hidden, 1), module.squeeze)), module.excite)
    hidden = norm(one_by_one(hidden * gates.sigmoid(), module.conv_3), module.norm_3)
    expected = F.silu(hidden + views).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(views.permute(0, 2, 3, 1)), expected, rtol=0, atol=1e-5)


def test_depth_of_c_abstractor_counts_blocks_on_either_side():
    for depth in (1, 3):
        module = CAbstractorConfig(depth=depth).build(D_IN, D_OUT)
        assert (len(module.before), len(module.after)) == (depth, depth)


# ----------------------------------------------------------------------------------------------------- bad input, table


@pytest.mark.parametrize(
    ("config", "grid", "message"),
    [
        (PoolMlp(), (1, 1, 4), "pool_mlp: grid (1, 1, 4) holds no 2 x 2 features; give larger views, or take mlp"),
        (PoolMlp(), (50, 1, 1), "pool_mlp: grid (50, 1, 1) holds no 2 x 2 features; for a sequence take mean_pool"),
        (MeanPool(rate=8), (7, 1, 1), "mean_pool: grid (7, 1, 1) is less than one token; give at least 8 features"),
        (StridedConv(rate=9), (1, 2, 3), "strided_conv: grid (1, 2, 3) holds no 3 x 3 features; give larger views"),
        (
            Concat(rate=8),
            (1, 9, 9),
            "concat: grid (1, 9, 9) is of pictures, which rate 8 cannot cut into squares; take 4",
        ),
        (
            Concat(newline=True),
            (9, 1, 1),
            "concat: grid (9, 1, 1) is a sequence, which has no rows to end; set newline",
        ),
        (CAbstractorConfig(), (3, 1, 1), "c_abstractor: grid (3, 1, 1) holds no 2 x 2 features; for a sequence take"),
        (
            CAbstractorConfig(side=5),
            (1, 4, 9),
            "c_abstractor: grid (1, 4, 9) is less than side 5; give larger views, or s",
        ),
    ],
)
def test_a_grid_of_less_than_one_token_names_what_would_do(config, grid, message):
    with pytest.raises(ValueError) as caught:
        config.shrink(grid)
    assert str(caught.value).startswith(message)


def test_the_benchmark_runs(tmp_path, capsys):
    path = Path(__file__).parents[2] / "benchmarks" / "projectors.py"
    spec = importlib.util.spec_from_file_location("benchmark_projectors", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.main(["tiny", "--repeats", "1", "--json", str(tmp_path / "table.json")])
    table = json.loads((tmp_path / "table.json").read_text())["rows"]
    tokens = {row["projector"]: row["tokens"] for row in table}
    assert tokens["mlp"] == 729 and tokens["pool_mlp"] == 182
    assert all(row["forward_ms"] > 0 and row["backward_ms"] > 0 and row["parameters"] > 0 for row in table)
    assert "| pool_mlp" in capsys.readouterr().out
