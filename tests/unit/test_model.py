"""OmniModel: tokens land in their places, and every module runs once per forward, whatever the batch holds."""

from itertools import combinations

import pytest
import torch

from omnikit.component import count
from omnikit.data import branches_of, layouter_of
from omnikit.packing import collate, positions_of, read_items
from omnikit.stages import build

LENGTH = 64
SUBSETS = [set(chosen) for size in range(4) for chosen in combinations(["audio", "image", "video"], size)]


@pytest.fixture(scope="module")
def recipe(recipe_of):
    return recipe_of()


@pytest.fixture
def model(recipe):
    return build(recipe, frozenset(recipe.modalities))


@pytest.fixture(scope="module")
def batch_of(recipe):
    """batch_of([["image", "text"], ["video"]]) -> a batch whose rows hold a sample of each of these data sets."""
    layouter = layouter_of(recipe)

    def make(rows, length=LENGTH):
        numbers = iter(range(8))
        packs = [tuple(layouter(recipe.data[name].open()[next(numbers)]) for name in row) for row in rows]
        items = [item for pack in packs for item in read_items(pack, branches_of(recipe))]
        return collate(packs, items, length)

    return make


def calls_of(model):
    """{path: [number of items of each call]} of every encoder and projector, filled as the model runs."""
    calls = {}
    for name, encoder in model.encoders.items():
        calls[f"encoders.{name}"] = []
        encoder.register_forward_pre_hook(lambda _, args, n=f"encoders.{name}": calls[n].append(len(args[0])))
    for name, branch in model.modalities.items():
        path = f"modalities.{name}.projector"
        calls[path] = []
        branch["projector"].register_forward_pre_hook(lambda _, args, n=path: calls[n].append(len(args[1])))
    return calls


def test_parameters_are_named_by_recipe_paths(model):
    paths = (
        "backbone.",
        "encoders.vision.",
        "encoders.audio.",
        *(f"modalities.{m}.projector." for m in ("image", "video", "audio")),
    )
    names = dict(model.named_parameters())
    assert all(name.startswith(paths) for name in names)
    assert all(any(name.startswith(path) for name in names) for path in paths)


# ------------------------------------------------------------------------------------------------------------- places


def test_each_mediums_tokens_land_in_their_places_and_nothing_else_moves(recipe, model, batch_of):
    rows = [["mixed", "text", "video"], ["image", "audio", "mixed"]]
    batch = batch_of(rows)
    with torch.no_grad():
        embeds = model.embed(batch).flatten(0, 1)
        expected = model.backbone.embed(batch.ids).flatten(0, 1)
        # Row by row, sample by sample, each medium encoded alone
        layouter, numbers, seen = layouter_of(recipe), iter(range(8)), 0
        for row, names in enumerate(rows):
            column = 0
            for name in names:
                layout = layouter(recipe.data[name].open()[next(numbers)])
                for place, item in zip(layout.places, read_items((layout,), branches_of(recipe)), strict=True):
                    encoder = model.encoders[recipe.modalities[place.modality].encoder]
                    tokens = model.modalities[place.modality]["projector"](encoder([item]), [item.grid])
                    begin = row * LENGTH + column + place.start
                    expected[begin : begin + place.tokens] = tokens
                    seen += place.tokens
                column += len(layout.ids)
    assert seen == sum(len(media.places) for media in batch.media.values()) > 40
    # another number of items in a call rounds otherwise
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-5)


def test_an_answer_depends_on_its_own_medium_alone(model, batch_of):
    batch = batch_of([["image", "image"]])
    with torch.no_grad():
        before = model(batch)
        batch.media["image"].items[1] = (
            batch.media["image"].items[1]._replace(value=batch.media["image"].items[1].value * -3)
        )
        hidden = [
            model.backbone.hidden(model.embed(b), b.segments, positions_of(b.segments))
            for b in (batch, batch_of([["image", "image"]]))
        ]
        after = model(batch)
    first = batch.segments[0] == 1
    torch.testing.assert_close(hidden[0][0, first], hidden[1][0, first], rtol=0, atol=1e-6)
    assert not torch.allclose(before.total, after.total)


# ---------------------------------------------------------------------------------------------- every module, each time


@pytest.mark.parametrize("present", SUBSETS, ids=lambda chosen: "+".join(sorted(chosen)) or "none")
def test_every_module_runs_exactly_once_whatever_the_batch_holds(model, batch_of, present):
    calls = calls_of(model)
    batch = batch_of([["text", *sorted(present)], ["text"]])
    assert set(batch.media) == present
    loss = model(batch)
    loss.total.backward()
    assert {path: len(made) for path, made in calls.items()} == dict.fromkeys(calls, 1)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert parameter.grad.isfinite().all()
    for modality in ("audio", "image", "video"):
        moved = any(p.grad.any() for p in model.modalities[modality].parameters())
        assert moved == (modality in present), f"{modality}: its projector's gradient is zero just where it is absent"
    for encoder, feeds in {"vision": {"image", "video"}, "audio": {"audio"}}.items():
        assert any(p.grad.any() for p in model.encoders[encoder].parameters()) == bool(feeds & present)


def test_an_absent_modality_changes_neither_loss_nor_gradients(recipe, model, batch_of):
    batch = batch_of([["text", "text"], ["image"]])
    without = build(recipe, frozenset({"image"}))
    losses = [one(batch) for one in (model, without)]
    for loss in losses:
        loss.total.backward()
    assert torch.equal(losses[0].total, losses[1].total)
    gradients = [dict(one.named_parameters()) for one in (model, without)]
    assert gradients[1].keys() < gradients[0].keys()
    for name, parameter in gradients[1].items():
        # the encoder ran on one item more
        torch.testing.assert_close(parameter.grad, gradients[0][name].grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_in_the_example_does_not_reach_the_loss(model, batch_of, bad):
    batch = batch_of([["text", "image"]])
    expected = model(batch).total
    with torch.no_grad():
        model.modalities["audio"]["projector"].out.bias.fill_(bad)
    loss = model(batch).total
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_media_of_modalities_that_share_an_encoder_share_its_call(model, batch_of):
    calls = calls_of(model)
    model(batch_of([["image", "video", "image"], ["video"]], length=128))
    assert calls["encoders.vision"] == [4]
    assert calls["modalities.image.projector"] == [2] and calls["modalities.video.projector"] == [2]
    assert calls["encoders.audio"] == [1]  # its example


def test_what_is_not_built_is_not_run_and_a_dropped_modality_takes_its_encoder_along(recipe):
    model = build(recipe, frozenset({"image", "audio"}))
    assert set(model.encoders) == {"vision", "audio"} and set(model.modalities) == {"image", "audio"}
    model.drop(["audio"])
    assert set(model.encoders) == {"vision"} and set(model.modalities) == {"image"} and set(model.configs) == {"vision"}
    both = build(recipe, frozenset({"image", "video"}))
    both.drop(["video"])
    assert set(both.encoders) == {"vision"}, "the image still needs it"


def test_text_alone_needs_no_encoder(recipe, batch_of):
    model = build(recipe, frozenset())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"backbone"}
    assert model(batch_of([["text"]])).total.isfinite()


# ------------------------------------------------------------------------------------------------------------- errors


class Less(torch.nn.Module):
    """A module whose output lacks the last row."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.width = inner, getattr(inner, "width", None)

    def forward(self, *args):
        return self.inner(*args)[:-1]


def test_a_projector_that_gives_another_number_of_tokens_is_named_with_samples_places_and_grids(model, batch_of):
    model.modalities["video"]["projector"] = Less(model.modalities["video"]["projector"])
    with pytest.raises(ValueError, match=r"^modalities\.video\.projector: gave 35 tokens for 36 places;") as caught:
        model(batch_of([["text", "video"], ["video"]]))
    text = str(caught.value)
    assert "v1 (grid (3, 4, 4), 18 places)" in text and "v2 (grid (3, 4, 4), 18 places)" in text and "shrink()" in text
    assert "\n" not in text


def test_an_encoder_that_gives_another_number_of_features_is_named(model, batch_of):
    model.encoders["vision"] = Less(model.encoders["vision"])
    with pytest.raises(ValueError, match=r"^encoders\.vision: gave 63 features for items of 64;"):
        model(batch_of([["image"], ["video"]]))


def test_runs_under_bf16_autocast(model, batch_of):
    batch = batch_of([["text", "image"], ["video"], ["mixed"]])
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch)
    assert loss.total.dtype == torch.float32
    torch.testing.assert_close(loss.total, exact.total, rtol=0.03, atol=0)  # bf16 has 8 bits
    loss.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_counts_are_shrinks(recipe, batch_of):
    """Law 2: the tokens of a place are what the Configs count, without a module."""
    batch = batch_of([["mixed", "video"]])
    for name, media in batch.media.items():
        projector = recipe.modalities[name].projector
        assert [places for _, places in media.owners] == [count(projector.shrink(item.grid)) for item in media.items]


def test_a_name_that_torch_has_taken_is_refused_by_its_path(recipe_of):
    recipe = recipe_of()
    renamed = recipe.model_copy(update={"modalities": {"train": recipe.modalities["image"]}})
    with pytest.raises(ValueError, match=r"^modalities\.train: .*give it another name$"):
        build(renamed, frozenset({"train"}))
