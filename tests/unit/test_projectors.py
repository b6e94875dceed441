"""mlp and pool_mlp: the paper's counts, the pooling written out, and items that do not see each other."""

import pytest
import torch
from torch.nn import functional as F

from omnikit.builtin.projector_configs import Mlp, PoolMlp
from omnikit.component import Grid, count

torch.set_num_threads(1)
D_IN, D_OUT = 6, 10
GRIDS: list[Grid] = [(2, 5, 4), (1, 2, 7), (3, 5, 4), (1, 3, 3)]


def built(config, seed=0):
    torch.manual_seed(seed)
    return config.build(D_IN, D_OUT)


def features_of(grids, seed=1):
    return torch.randn(sum(map(count, grids)), D_IN, generator=torch.Generator().manual_seed(seed))


def reference(module, views):
    """Pooled by torch's own avg_pool2d, view by view and row by row."""
    tokens = []
    for view in views:
        for row in F.avg_pool2d(view.permute(2, 0, 1), 2).permute(1, 2, 0):
            tokens += list(module.linear_2(F.gelu(module.linear_1(row))))
            if module.newline is not None:
                tokens.append(module.newline)
    return torch.stack(tokens)


@pytest.mark.parametrize("newline", [True, False])
def test_pool_mlp_is_the_mean_of_four_and_a_token_per_line(newline):
    module, features = built(PoolMlp(newline=newline)), features_of(GRIDS)
    items = [item.view(*grid, D_IN) for item, grid in zip(features.split([*map(count, GRIDS)]), GRIDS, strict=True)]
    expected = torch.cat([reference(module, item) for item in items])
    torch.testing.assert_close(module(features, GRIDS), expected, rtol=0, atol=1e-6)  # float32 rounding


def test_a_view_of_27_x_27_makes_the_182_tokens_of_the_paper():
    assert PoolMlp().shrink((1, 27, 27)) == (1, 13, 14)
    assert count(PoolMlp().shrink((3, 27, 27))) == 546  # two tiles and the whole
    assert PoolMlp(newline=False).shrink((2, 27, 27)) == (2, 13, 13)
    assert Mlp().shrink((1, 27, 27)) == (1, 27, 27)


@pytest.mark.parametrize("config", [Mlp(), PoolMlp(), PoolMlp(newline=False)])
def test_tokens_are_what_shrink_counts_and_items_do_not_see_each_other(config):
    module, features = built(config), features_of(GRIDS)
    tokens = module(features, GRIDS).split([count(config.shrink(grid)) for grid in GRIDS])
    for item, grid, together in zip(features.split([*map(count, GRIDS)]), GRIDS, tokens, strict=True):
        alone = module(item, [grid])
        assert alone.shape == together.shape
        torch.testing.assert_close(alone, together, rtol=0, atol=1e-6)  # another batch size rounds otherwise


@pytest.mark.parametrize("config", [Mlp(), PoolMlp()])
def test_every_parameter_gets_a_gradient(config):
    module = built(config)
    module(features_of(GRIDS), GRIDS).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_newline_is_a_parameter_only_where_it_is_used():
    assert "newline" in built(PoolMlp()).state_dict()
    assert "newline" not in built(PoolMlp(newline=False)).state_dict()


@pytest.mark.parametrize("config", [Mlp(), PoolMlp()])
def test_runs_under_bf16_autocast(config):
    module, features = built(config), features_of(GRIDS)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = module(features, GRIDS)
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), module(features, GRIDS), rtol=0.05, atol=0.05)  # bf16 has 8 bits


def test_a_grid_too_small_to_pool_names_what_to_do():
    with pytest.raises(ValueError, match=r"pool_mlp: grid \(1, 1, 4\) holds no 2 x 2 features; give larger views"):
        PoolMlp().shrink((1, 1, 4))
