"""The encoder `whisper` against transformers' WhisperEncoder, at float32."""

from typing import Any

import pytest
import torch
import transformers
from omnikit_whisper import WhisperConfig, omnikit_components
from omnikit_whisper.module import WhisperEncoder, _rows
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.whisper.modeling_whisper import WhisperEncoder as TheirEncoder

from omnikit.component import Item

torch.set_num_threads(1)
ROUNDING = 1e-5
"""Of features near 1: other shapes sum in another order."""


def config(**changed: Any) -> WhisperConfig:
    return WhisperConfig(
        **{"width": 32, "layers": 2, "heads": 4, "mlp_width": 48, "mel_bins": 80, "window": 2} | changed
    )


def theirs(ours: WhisperConfig, **changed: Any) -> transformers.WhisperConfig:
    return transformers.WhisperConfig(
        d_model=ours.width,
        encoder_layers=ours.layers,
        encoder_attention_heads=ours.heads,
        encoder_ffn_dim=ours.mlp_width,
        num_mel_bins=ours.mel_bins,
        **changed,
    )


@pytest.fixture
def module() -> WhisperEncoder:
    torch.manual_seed(0)
    return config().build().eval()


def sounds(*frames: int) -> list[Item]:
    """Noise, each item with the grid that it would have in a ragged reader."""
    input = config().input
    return [Item(torch.randn(80, count), (input.features(count), 1, 1)) for count in frames]


def of_transformers(module: WhisperEncoder, mel: torch.Tensor) -> torch.Tensor:
    """(windows, features, width) of transformers' encoder with the same weights, for windows of an even length."""
    encoder = TheirEncoder(theirs(config(), max_source_positions=mel.shape[-1] // 2)).eval()
    positions = encoder.state_dict()["embed_positions.weight"]  # its own, so that ours are tested too
    encoder.load_state_dict(dict(module.named_parameters()) | {"embed_positions.weight": positions})
    return encoder(mel).last_hidden_state


@torch.no_grad()
def test_full_windows_equal_transformers(module: WhisperEncoder) -> None:
    long, short = torch.randn(80, 600), torch.randn(80, 200)
    expected = of_transformers(module, torch.stack([*long.split(200, dim=1), short]))
    features = module([Item(long, (230, 1, 1)), Item(short, (7, 1, 1))])
    assert features.shape == (237, 32)
    torch.testing.assert_close(features[:230], expected[:3].flatten(0, 1)[:230], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(features[230:], expected[3, :7], rtol=0, atol=ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("frames", [2, 58, 200])
def test_ragged_equals_transformers_of_that_length(module: WhisperEncoder, frames: int) -> None:
    (item, *neighbours) = sounds(frames, 131, 450, 3)
    (expected,) = of_transformers(module, item.value[None])
    features = module([*neighbours[:2], item, *neighbours[2:]])
    start = sum(t for _, (t, _, _) in neighbours[:2])
    torch.testing.assert_close(features[start : start + frames // 2], expected, rtol=0, atol=ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 57, 199])
def test_an_odd_number_of_frames_runs_unpadded(module: WhisperEncoder, frames: int) -> None:
    (item,) = sounds(frames)
    hidden = F.gelu(module.conv2(F.gelu(module.conv1(item.value[None])))).mT
    assert hidden.shape[1] == item.grid[0] == (frames + 1) // 2
    hidden = hidden + module.positions[: hidden.shape[1]]
    for layer in module.layers:
        hidden = layer(hidden, None)
    torch.testing.assert_close(module([item]), module.layer_norm(hidden)[0], rtol=0, atol=ROUNDING)


@torch.no_grad()
def test_items_never_influence_each_other(module: WhisperEncoder) -> None:
    items = sounds(57, 3, 200, 333, 80, 1, 2, 601)
    loud = [Item(1000 * value, grid) for value, grid in sounds(57, 90, 400)]
    call = [loud[0], *items[:4], loud[1], *items[4:], loud[2]]
    parts = module(call).split([t for _, (t, _, _) in call])
    for item, part in zip(items, [*parts[1:5], *parts[6:10]], strict=True):
        torch.testing.assert_close(part, module([item]), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("frames", [(57, 3, 450, 200, 80, 1), (200, 200, 600)])
def test_no_gradient_crosses_a_window(
    module: WhisperEncoder, frames: tuple[int, ...], attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnikit_whisper.module.attention_for", lambda device: attention)
    items = sounds(*frames)
    for item in items:
        item.value.requires_grad_(True)
    features = module(items)
    first = 0
    for item in items:
        for start in range(0, item.value.shape[1], 200):
            end = min(start + 200, item.value.shape[1])
            length = (end - start + 1) // 2
            weight = torch.randn(length, 32)  # an even sum of features is 0 after a norm
            wanted = [other.value for other in items]
            reached = torch.autograd.grad((features[first : first + length] * weight).sum(), wanted, retain_graph=True)
            for other, gradient in zip(items, reached, strict=True):
                own = torch.zeros(gradient.shape[1], dtype=torch.bool)
                own[start:end] = other is item
                assert not gradient[:, ~own].any(), "exactly zero: not a bit of another window is seen"
                assert gradient[:, own].any(dim=0).all(), "every frame of a window counts"
            first += length
    assert first == len(features)


@torch.no_grad()
def test_windows_of_one_item_are_joined_in_order(module: WhisperEncoder) -> None:
    (item,) = sounds(450)
    windows = [Item(window, (-(-window.shape[1] // 2), 1, 1)) for window in item.value.split(200, dim=1)]
    torch.testing.assert_close(module([item]), module(windows), rtol=0, atol=ROUNDING)


def test_rows_are_shared_and_no_place_is_taken_twice() -> None:
    lengths = [25, 100, 50, 25, 50, 70]
    places, segments = _rows(lengths)
    assert segments.shape == (4, 100)  # 100 | 70 25 | 50 50 | 25: six padded windows would be 600 places
    assert len(set(places.tolist())) == sum(lengths)
    for window, place in enumerate(places.split(lengths), 1):
        assert segments.flatten()[place].tolist() == [window] * len(place)
        assert place[0] // 100 == place[-1] // 100
    assert (segments > 0).sum() == sum(lengths)


def test_parameters_are_transformers_without_positions() -> None:
    for preset in WhisperConfig.presets:
        ours = WhisperConfig(preset=preset)
        with torch.device("meta"):
            module, reference = ours.build(), TheirEncoder(theirs(ours))
        shapes = {name: parameter.shape for name, parameter in reference.named_parameters()}
        positions = shapes.pop("embed_positions.weight")
        assert {name: parameter.shape for name, parameter in module.named_parameters()} == shapes
        assert {name: buffer.shape for name, buffer in module.named_buffers()} == {"positions": positions}
        assert module.state_dict().keys() == {*shapes, "positions"}  # a part of the weights, though nothing trains it
        assert len(module.blocks) == ours.layers
        if preset == "large-v3":
            assert sum(parameter.numel() for parameter in module.parameters()) == 635_048_960


def test_gradients_reach_every_parameter(module: WhisperEncoder) -> None:
    module(sounds(57, 200)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_nothing_is_dropped_in_training(module: WhisperEncoder) -> None:
    items = sounds(57, 200)
    torch.testing.assert_close(module.train()(items), module.eval()(items), rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [(200, 200), (57, 333)])
def test_autocast_and_bf16_weights(module: WhisperEncoder, frames: tuple[int, ...]) -> None:
    items = sounds(*frames)
    expected = module(items)
    with torch.autocast("cpu", torch.bfloat16):
        assert (module(items) - expected).abs().max() < 0.1  # 8 bits of mantissa, through 2 layers
    for parameter in module.parameters():  # as sharding casts them: parameters, but no buffer
        parameter.data = parameter.data.bfloat16()
    lower = module(items)
    assert lower.dtype == torch.bfloat16
    assert (lower - expected).abs().max() < 0.2


@torch.no_grad()
def test_windows_of_one_length_need_no_mask(module: WhisperEncoder) -> None:
    masks = []
    module.layers[0].register_forward_pre_hook(lambda _, inputs: masks.append(inputs[1]))
    module(sounds(400, 200))
    module(sounds(400, 198))
    assert masks[0] is None  # flash attention takes no mask
    assert masks[1].shape == (3, 1, 100, 100)


@pytest.mark.parametrize("padding", ["full", "ragged"])
def test_the_example_makes_its_grid(padding: str) -> None:
    ours = config(padding=padding)
    value, grid = ours.example()
    assert ours.build()([Item(torch.from_numpy(value), grid)]).shape == (25, 32)
    assert value.shape == (80, 200 if padding == "full" else 50)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="multiple of heads"):
        config(heads=5)


def test_padding_and_window_reach_the_reader() -> None:
    assert config().input.padded
    assert not config(padding="ragged").input.padded
    assert config(window=30).input.window_frames == 3000
    assert config(mel_bins=128).input.bins == 128


def test_the_hook_offers_reader_and_encoder() -> None:
    assert [(component.kind, component.type) for component in omnikit_components()] == [
        ("reader", "waveform"),
        ("encoder", "whisper"),
    ]


def test_tiny_keeps_bins_window_and_padding() -> None:
    large = WhisperConfig(preset="large-v3", padding="ragged", window=12.5, weights="openai/whisper-large-v3")
    tiny = large.tiny()
    assert tiny.input == large.input
    assert (tiny.preset, tiny.weights) == (None, None)
    assert sum(parameter.numel() for parameter in tiny.build().parameters()) < 2_000_000
    assert WhisperConfig.model_validate({k: v for k, v in tiny.model_dump().items() if k != "type"}) == tiny


@torch.no_grad()
@pytest.mark.parametrize("padding", ["full", "ragged"])
@pytest.mark.parametrize("frames", [1, 57, 199, 200, 237, 450, 601])
def test_cost_is_what_torch_counts(padding: str, frames: int) -> None:
    ours = config(padding=padding, width=64, mlp_width=256)
    held = -(-frames // 200) * 200 if padding == "full" else frames
    item = Item(torch.randn(80, held), (ours.input.features(frames), 1, 1))
    with FlopCounterMode(display=False) as counter:
        ours.build()([item])
    assert ours.cost(item.grid) == pytest.approx(counter.get_total_flops(), rel=0.03 if frames > 1 else 0.3)
