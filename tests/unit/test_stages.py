"""Rules to optimizer groups, random and pretrained starts, `init`, gradients through a frozen, recomputed backbone."""

import copy
import math
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnikit.checking import check_recipe
from omnikit.component import EncoderConfig, ReaderConfig
from omnikit.data import branches_of, layouter_of
from omnikit.distributed import ALONE
from omnikit.packing import collate, read_items
from omnikit.protocols import blocks
from omnikit.recipe import Rule, Schedule
from omnikit.recipe_checks import check
from omnikit.stages import (
    apply_rules,
    build,
    components,
    initialise,
    optimizer_of,
    rate_factor,
    recompute,
    rules_by_parameter,
    trained,
    units_of,
)
from omnikit.starting import cut_up


def stages_of(parts, train, data=("image", "video", "audio"), **settings):
    return {"only": parts.stage(dict.fromkeys(data, 1), train, **settings)}


def ruled(recipe_of, parts, train, data=("image", "video", "audio"), **changes):
    """The recipe, its model, and the rule of each parameter."""
    recipe = recipe_of(stages_of(parts, train, data), **changes)
    model = build(recipe, frozenset(data) & frozenset(recipe.modalities))
    return recipe, model, rules_by_parameter((name for name, _ in model.named_parameters()), recipe, "only")


def batch_of(recipe, names, length=64):
    layouter = layouter_of(recipe)
    packs = [tuple(layouter(recipe.data[name].open()[number]) for number, name in enumerate(names))]
    items = [item for pack in packs for item in read_items(pack, branches_of(recipe))]
    return collate(packs, items, length)


# --------------------------------------------------------------------------------------------------------------- rules


def test_the_first_rule_that_fits_a_name_holds(recipe_of, parts):
    train = {
        "backbone.model.layers.0": "frozen",
        "backbone": 1e-3,
        "modalities": {"lr": 2e-3, "weight_decay": 0.1},
        "rest": 3e-3,
    }
    _, _, rules = ruled(recipe_of, parts, train)
    assert rules["backbone.model.layers.0.mlp.up_proj.weight"] == ("backbone.model.layers.0", None)
    assert rules["backbone.model.layers.1.mlp.up_proj.weight"] == ("backbone", Rule(lr=1e-3))
    assert rules["modalities.audio.projector.out.bias"] == ("modalities", Rule(lr=2e-3, weight_decay=0.1))
    assert rules["encoders.audio.conv1.weight"] == ("rest", Rule(lr=3e-3))


def test_a_prefix_ends_at_a_dot(recipe_of, parts):
    """`backbone.model.layers.1` is not `backbone.model.layers.10`."""
    train = {"backbone.model.layers.1": "frozen", "rest": 1e-3}
    _, _, rules = ruled(recipe_of, parts, train, config={"num_hidden_layers": 11})
    frozen = {name for name, matched in rules.items() if matched.rule is None}
    assert frozen and all(name.startswith("backbone.model.layers.1.") for name in frozen)
    assert rules["backbone.model.layers.10.mlp.up_proj.weight"].rule == Rule(lr=1e-3)


def faults_of(caught):
    lines = [str(error) for error in caught.value.exceptions]
    assert all("\n" not in line for line in lines)
    return lines


def test_a_parameter_without_a_rule_is_an_error(recipe_of, parts):
    with pytest.raises(ExceptionGroup) as caught:
        ruled(recipe_of, parts, {"backbone": "frozen", "modalities": 1e-3})
    [line] = faults_of(caught)
    assert line.startswith("stages.only.train: no rule for ") and "such as encoders." in line and "rest: frozen" in line


@pytest.mark.parametrize("path", ["backbone.lm_hed", "backbone.model.layers.7", "modalities.image.projector.linear_3"])
def test_a_rule_that_matches_nothing_is_an_error(recipe_of, parts, path):
    with pytest.raises(ExceptionGroup) as caught:
        ruled(recipe_of, parts, {path: 1e-3, "rest": 1e-4})
    [line] = faults_of(caught)
    assert line.startswith(f"stages.only.train.{path}: matches no parameter")


def test_every_fault_of_a_stage_is_told_at_once(recipe_of, parts):
    with pytest.raises(ExceptionGroup) as caught:
        ruled(
            recipe_of,
            parts,
            {"backbone.model.norm.bias": 1e-3, "encoders.vision.nothing": "frozen", "modalities": 1e-3},
        )
    assert len(faults_of(caught)) == 3


def test_a_rule_may_speak_of_a_component_that_the_stage_does_not_build(recipe_of, parts):
    train = {
        "encoders.audio": "frozen",
        "modalities.audio.projector": "frozen",
        "modalities.image.projector": 1e-3,
        "rest": "frozen",
    }
    recipe, _, rules = ruled(recipe_of, parts, train, data=("image",))
    assert not any("audio" in name for name in rules)
    assert recipe.stages["only"].train.keys() == train.keys()


def test_a_tied_head_has_one_name(recipe_of, parts):
    """A rule for the other name would match nothing, and says so."""
    with pytest.raises(ExceptionGroup, match="rules"):
        ruled(recipe_of, parts, {"backbone.lm_head": 1e-3, "rest": "frozen"})
    _, model, rules = ruled(
        recipe_of, parts, {"backbone.lm_head": 1e-3, "rest": "frozen"}, config={"tie_word_embeddings": False}
    )
    apply_rules(model, rules)
    assert list(trained(model)) == ["backbone.lm_head.weight"]


# ----------------------------------------------------------------------------------------------------------- optimizer


def test_frozen_components_are_in_evaluation_mode_and_trained_ones_are_not(recipe_of, parts):
    _, model, rules = ruled(
        recipe_of, parts, {"modalities.image.projector": 1e-3, "encoders.audio.conv1": 1e-3, "rest": "frozen"}
    )
    model.train()
    apply_rules(model, rules)
    modes = {path: {module.training for module in component.modules()} for path, component in components(model).items()}
    assert modes == {
        "backbone": {False},
        "encoders.vision": {False},
        "encoders.audio": {True},
        "modalities.image.projector": {True},
        "modalities.video.projector": {False},
        "modalities.audio.projector": {False},
    }


def test_only_trained_parameters_have_optimizer_state(recipe_of, parts):
    recipe, model, rules = ruled(recipe_of, parts, {"modalities": 1e-3, "rest": "frozen"})
    apply_rules(model, rules)
    optimizer = optimizer_of(model, rules)
    model(batch_of(recipe, ["image", "audio"])).total.backward()
    optimizer.step()
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[parameter] for parameter in optimizer.state} == set(trained(model))
    assert all(name.startswith("modalities.") for name in trained(model))
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("modalities."))


def test_each_group_has_its_rules_rate_and_only_matrices_decay(recipe_of, parts):
    train = {
        "backbone": {"lr": 1e-3, "weight_decay": 0.1},
        "modalities": {"lr": 2e-3, "weight_decay": 0.2},
        "rest": "frozen",
    }
    _, model, rules = ruled(recipe_of, parts, train)
    apply_rules(model, rules)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["peak"], group["weight_decay"])
        for group in optimizer_of(model, rules).param_groups
        for parameter in group["params"]
    }
    assert found.keys() == trained(model).keys()
    assert found["backbone.model.layers.0.mlp.up_proj.weight"] == (1e-3, 1e-3, 0.1)
    assert found["backbone.model.norm.weight"] == (1e-3, 1e-3, 0.0)
    assert found["modalities.video.projector.conv.weight"] == (2e-3, 2e-3, 0.2)
    assert found["modalities.image.projector.newline"] == (2e-3, 2e-3, 0.0)


# ------------------------------------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize(
    ("schedule", "step", "steps", "factor"),
    [
        (Schedule(shape="constant", warmup=0), 1, 10, 1.0),
        (Schedule(shape="constant", warmup=0), 10, 10, 1.0),
        (Schedule(shape="constant", warmup=0.5), 1, 10, 0.2),
        (Schedule(shape="constant", warmup=0.5), 5, 10, 1.0),
        (Schedule(shape="linear", warmup=0.2), 1, 10, 0.5),
        (Schedule(shape="linear", warmup=0.2), 2, 10, 1.0),
        # from here the peak rate falls by an eighth a step, and never to nothing: the last step counts too
        (Schedule(shape="linear", warmup=0.2), 3, 10, 1.0),
        (Schedule(shape="linear", warmup=0.2), 4, 10, 7 / 8),
        (Schedule(shape="linear", warmup=0.2), 10, 10, 1 / 8),
        (Schedule(shape="linear", warmup=0.2, floor=0.5), 10, 10, 0.5 + 0.5 / 8),
        (Schedule(shape="cosine", warmup=0), 1, 4, 1.0),
        (Schedule(shape="cosine", warmup=0), 3, 4, 0.5),
        (Schedule(shape="cosine", warmup=0, floor=0.2), 3, 4, 0.6),
        (Schedule(shape="cosine", warmup=0), 4, 4, 0.5 * (1 + math.cos(math.pi * 3 / 4))),
        (Schedule(shape="cosine", warmup=1.0), 4, 4, 1.0),
        (Schedule(shape="cosine"), 1, 1, 1.0),
        (Schedule(shape="linear"), 1, 1, 1.0),
    ],
)
def test_schedule_at_points_worked_by_hand(schedule, step, steps, factor):
    assert rate_factor(schedule, step, steps) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("shape", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0, 0.03, 0.5, 1])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_every_step_of_a_schedule_trains(shape, warmup, steps):
    factors = [rate_factor(Schedule(shape=shape, warmup=warmup), step, steps) for step in range(1, steps + 1)]
    assert all(0 < factor <= 1 for factor in factors) and max(factors) == 1.0


# ---------------------------------------------------------------------------------------------------------- random init


def test_random_init_of_a_component_does_not_depend_on_which_others_are_built(recipe_of):
    recipe = recipe_of()
    every = build(recipe, frozenset(recipe.modalities)).state_dict()
    for chosen in ({"audio"}, {"video"}, {"image", "audio"}, set()):
        torch.rand(7)  # nor on what was drawn before
        some = build(recipe, frozenset(chosen)).state_dict()
        assert some.keys() <= every.keys()
        assert all(torch.equal(tensor, every[name]) for name, tensor in some.items())
    image, video = (every[f"modalities.{name}.projector.linear_1.weight"] for name in ("image", "video"))
    assert not torch.equal(image, video), "nor do two components draw the same"


def test_another_seed_draws_other_weights_and_building_leaves_the_generator_alone(recipe_of):
    before = torch.random.get_rng_state()
    first, second = build(recipe_of(run={"seed": 1}), frozenset()), build(recipe_of(run={"seed": 2}), frozenset())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first.backbone.embed(torch.tensor([[1]])), second.backbone.embed(torch.tensor([[1]])))


# ----------------------------------------------------------------------------------------------------------------- init


def test_init_copies_by_name_and_lists_what_kept_its_own(recipe_of, parts):
    recipe = recipe_of(stages_of(parts, {"rest": 1e-3}))
    model = build(recipe, frozenset({"image", "video"}))
    image, video = (model.modalities[name]["projector"] for name in ("image", "video"))
    conv = video.conv.weight.clone()
    kept = initialise(model, {"modalities.video.projector": "modalities.image.projector"}, "only")
    assert kept == ["modalities.video.projector.conv.weight", "modalities.video.projector.conv.bias"]
    assert torch.equal(video.conv.weight, conv)
    for name, tensor in image.state_dict().items():
        assert torch.equal(video.state_dict()[name], tensor)
        assert video.state_dict()[name].data_ptr() != tensor.data_ptr(), "a copy, not a tie"
    features = torch.randn(32, 16)
    # both are now the same function: the convolution is the 2 x 2 mean
    torch.testing.assert_close(video(features, [(2, 4, 4)]), image(features, [(2, 4, 4)]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("target", "source", "named"),
    [
        ("modalities.image.projector", "modalities.video.projector", "conv.weight"),
        ("modalities.audio.projector", "modalities.image.projector", "newline"),
        ("encoders.audio", "encoders.vision", "tower."),
    ],
)
def test_init_without_an_equal_target_is_an_error_that_names_the_tensor(recipe_of, target, source, named):
    recipe = recipe_of()
    with pytest.raises(ValueError, match=rf"^stages\.some\.init\.{target}: has no {named}.* which {source} has;"):
        initialise(build(recipe, frozenset(recipe.modalities)), {target: source}, "some")


def test_init_of_another_shape_is_an_error(recipe_of, parts):
    modalities = copy.deepcopy(parts.modalities)
    modalities["audio"]["projector"], modalities["image"]["projector"] = "mlp", "mlp"
    encoders = copy.deepcopy(parts.encoders)
    encoders["audio"]["width"] = 8
    recipe = recipe_of(modalities=modalities, encoders=encoders)
    model = build(recipe, frozenset(recipe.modalities))
    with pytest.raises(ValueError, match=r"has no linear_1\.weight of shape \(32, 16\)"):
        initialise(model, {"modalities.audio.projector": "modalities.image.projector"}, "some")


# ------------------------------------------------------------------------------------------------------------ recompute


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_through_a_frozen_recomputed_backbone_the_projector_gets_its_whole_gradient(recipe_of, parts, precision):
    """transformers switches recomputing off in evaluation mode, just where a frozen backbone is; ours must not."""
    gradients = []
    for recomputed in (False, True):
        recipe, model, rules = ruled(
            recipe_of, parts, {"modalities.image.projector": 1e-3, "rest": "frozen"}, data=("image",)
        )
        apply_rules(model, rules)
        assert not model.backbone.training
        if recomputed:
            recompute(units_of(model))
        runs = [0] * len(model.backbone.blocks)
        for number, block in enumerate(model.backbone.blocks):
            block.mlp.register_forward_pre_hook(lambda *_, n=number, runs=runs: runs.__setitem__(n, runs[n] + 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(batch_of(recipe, ["image"] * 3)).total
        loss.backward()
        assert runs == [1 + recomputed] * 2, "a block runs again in the backward pass, just when it is recomputed"
        gradients.append({name: parameter.grad for name, parameter in trained(model).items()})
    plain, again = gradients
    assert len(plain) == 5
    for name, gradient in plain.items():
        assert gradient.any(), name
        assert torch.equal(gradient, again[name]), name


# ----------------------------------------------------------------------------------------------------------- pretrained


@pytest.fixture
def folder(tmp_path, recipe_of, parts):
    """A folder with the weights of a backbone of another seed, in two files."""
    backbone = build(recipe_of(run={"seed": 9}, config={"tie_word_embeddings": False}), frozenset()).backbone
    tensors = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:5]}, tmp_path / "model-1.safetensors")
    save_file({name: tensors[name] for name in names[5:]}, tmp_path / "model-2.safetensors")
    write_tokenizer(tmp_path)
    return tmp_path


def write_tokenizer(folder):
    from omnikit.builtin.backbone_config import byte_level

    byte_level(("<|user|>", "<|assistant|>", "<|end|>"), ()).save(str(folder / "tokenizer.json"))


@pytest.fixture
def pretrained(recipe_of, parts):
    """pretrained(folder, ...) -> the backbone of a recipe whose weights are that folder."""

    def make(folder, **config):
        backbone = copy.deepcopy(parts.backbone) | {"weights": str(folder)}
        del backbone["words"]
        backbone["config"] |= {"vocab_size": 267, "tie_word_embeddings": False, **config}
        return build(recipe_of(backbone=backbone), frozenset()).backbone

    return make


def stored(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def test_pretrained_weights_of_a_folder_are_the_models(folder, pretrained, recipe_of):
    loaded, expected = pretrained(folder).state_dict(), stored(folder)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(
        loaded["lm_head.weight"],
        build(recipe_of(config={"tie_word_embeddings": False}), frozenset()).backbone.lm_head.weight,
    )


def test_a_tied_model_takes_weights_with_and_without_its_head(folder, pretrained):
    tensors = stored(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    for file in folder.glob("*.safetensors"):
        file.unlink()
    for _ in range(2):
        save_file(tensors, folder / "model.safetensors")
        model = pretrained(folder, tie_word_embeddings=True)
        assert model.lm_head.weight is model.base.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, tensors["model.embed_tokens.weight"])
        tensors.pop("lm_head.weight", None)


def test_weights_of_an_untied_head_are_refused_by_a_tied_model(folder, pretrained):
    with pytest.raises(
        ValueError, match=r"^backbone\.weights: lm_head\.weight is not model\.embed_tokens\.weight in .* ties them"
    ):
        pretrained(folder, tie_word_embeddings=True)


def change(folder, function):
    file = folder / "model-1.safetensors"
    tensors = load_file(file)
    function(tensors)
    save_file(tensors, file)


def test_a_missing_tensor_is_named(folder, pretrained):
    change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(
        ValueError, match=r"^backbone\.weights: .* lacks 1 tensors, such as lm_head\.weight; check preset$"
    ):
        pretrained(folder)


def test_an_unexpected_tensor_is_named(folder, pretrained):
    change(folder, lambda tensors: tensors.update({"model.extra.weight": torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"^backbone\.weights: .* holds model\.extra\.weight, which the model has not"):
        pretrained(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder, pretrained):
    change(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(5, 32)}))
    with pytest.raises(ValueError, match=r"lm_head\.weight is \(5, 32\) in .* and \(267, 32\) in the recipe"):
        pretrained(folder)


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_pickle_is_loaded(tmp_path, pretrained):
    write_tokenizer(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"lm_head.weight": Canary(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=r"holds no \.safetensors file; convert it first \(no pickle is loaded\)"):
        pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()
    # nor one that calls itself safetensors
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"^backbone\.weights: .* holds a broken \.safetensors file"):
        pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def changed(recipe, table, name, **update):
    """The recipe with one entry of a table changed."""
    entries = dict(getattr(recipe, table))
    entries[name] = entries[name].model_copy(update=update)
    return recipe.model_copy(update={table: entries})


def test_weights_of_a_type_that_loads_none_are_an_error(recipe_of):
    recipe = recipe_of()
    plain = type(recipe.encoders["vision"])
    bare = type("Bare", (plain,), {"type": "bare", "pretrained": EncoderConfig.pretrained, "__module__": __name__})
    entry = bare.model_construct(**dict(recipe.encoders["vision"])).model_copy(update={"weights": "some/weights"})
    recipe = recipe.model_copy(update={"encoders": {**recipe.encoders, "vision": entry}})
    with pytest.raises(ValueError, match=r"^encoders\.vision\.weights: type bare loads no weights; remove it$"):
        build(recipe, frozenset({"image"}))


def test_a_reader_without_sizes_has_no_row_in_the_table_of_tokens(recipe_of):
    class Bare(ReaderConfig):
        type = "bare"

    found = check_recipe(changed(recipe_of(), "modalities", "image", reader=Bare()))
    assert found["tokens"]["image"] == {} and found["tokens"]["audio"] and found["warnings"] == []


def test_components_are_recomputed_as_the_recipe_says(recipe_of, parts):
    ran = {}
    for chosen in (False, ["encoders.vision"], ["backbone", "encoders.vision"], True):
        recipe = recipe_of({"one": parts.stage({"image": 1}, {"rest": 1e-3})}, run={"recompute": chosen})
        model = build(recipe, frozenset({"image"}))
        cut_up(model, recipe, ALONE)
        times = dict.fromkeys(("backbone", "encoders.vision"), 0)
        for path in times:
            [*_, block] = blocks(components(model)[path])
            block.mlp.register_forward_pre_hook(
                lambda *_, path=path, times=times: times.update({path: times[path] + 1})
            )
        model(batch_of(recipe, ["image"] * 2)).total.backward()
        ran[str(chosen)] = tuple(times.values())
    assert [*ran.values()] == [(1, 1), (1, 2), (2, 2), (2, 2)], ran


def test_a_component_that_is_not_there_cannot_be_recomputed(recipe_of, parts):
    recipe = recipe_of({"one": parts.stage({"image": 1}, {"rest": 1e-3})}, run={"recompute": ["encoder.vision"]})
    [(at, told)] = [found for found in check(recipe) if found[0][0] == "run"]
    assert at == ("run", "recompute")
    assert told.startswith("'encoder.vision' is the path of no component; did you mean `encoders.vision`?")
