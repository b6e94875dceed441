"""c_abstractor against what Honeybee's released code is made of: timm's RegNet stages and torch's pooling."""

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn

from omnikit.builtin.projector_configs import CAbstractorConfig

torch.set_num_threads(1)
NAMES = {"conv1": "conv_1", "conv2": "conv_2", "conv3": "conv_3", "fc1": "squeeze", "fc2": "excite"}


def ours(stage, name):
    """Our name of a tensor of a RegStage: b1.conv1.bn.weight is 0.norm_1.weight."""
    block, part, *rest = name.split(".")
    if part == "se":
        return ".".join((f"{stage}.{int(block[1:]) - 1}", NAMES[rest[0]], rest[1]))
    kind = NAMES[part] if rest[0] == "conv" else NAMES[part].replace("conv", "norm")
    return f"{stage}.{int(block[1:]) - 1}.{kind}.{rest[1]}"


@pytest.mark.parametrize(
    ("width", "depth", "h", "w", "side"), [(1024, 3, 24, 24, 12), (1152, 1, 27, 27, 13), (32, 2, 9, 7, 4)]
)
def test_equals_timms_stages_around_adaptive_pooling(width, depth, h, w, side):
    torch.manual_seed(0)
    stages = {
        name: RegStage(depth, width, width, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d).eval()
        for name in ("before", "after")
    }
    readout = nn.Sequential(nn.Linear(width, 48), nn.SiLU(), nn.Linear(48, 48))
    with torch.no_grad():  # norms away from 1 and 0
        for stage in stages.values():
            for name, parameter in stage.named_parameters():
                if ".bn." in name:
                    parameter.add_(torch.randn_like(parameter) / 4)
    given = {ours(name, key): tensor for name, stage in stages.items() for key, tensor in stage.state_dict().items()}
    given |= {
        f"linear_{i}.{k}": t for i, layer in ((1, readout[0]), (2, readout[2])) for k, t in layer.state_dict().items()
    }
    module = CAbstractorConfig(depth=depth, side=side, newline=False).build(width, 48)
    shapes = module.state_dict()
    module.load_state_dict({name: tensor.view(shapes[name].shape) for name, tensor in given.items()})

    views = torch.randn(2, width, h, w)
    with torch.no_grad():
        pooled = nn.functional.adaptive_avg_pool2d(stages["before"](views), side)
        expected = readout(stages["after"](pooled).permute(0, 2, 3, 1)).flatten(0, 2)
        tokens = module(views.permute(0, 2, 3, 1).flatten(0, 2), [(2, h, w)])
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)
