"""Answers: a run loaded as far as it was trained, batches equal to prompts one by one, and the blind control."""

import shutil

import pytest
import torch

from omnikit.component import Sample, Turn
from omnikit.data import branches_of
from omnikit.generate import Run
from omnikit.packing import collate, positions_of, read_items
from omnikit.sample import Layouter
from omnikit.stages import build

TOKENS = 8


@pytest.fixture(scope="module")
def trained(recipe_of, parts, watched, tmp_path_factory):
    """A run of two short stages: enough for answers that differ."""
    batch = {"length": 96, "packs": 4, "micro": 4}
    stages = {
        "language": parts.stage({"text": 1}, {"backbone": 1e-2}, steps=8, batch=batch),
        "omni": parts.stage({"image": 2, "mixed": 1, "video": 1, "audio": 1}, {"rest": 1e-2}, steps=8, batch=batch),
    }
    return watched(recipe_of(stages), tmp_path_factory.mktemp("run"), window=64)


@pytest.fixture
def loaded(trained, registry):
    return Run.load(trained.run.path, registry)


class Numbers:
    """A tokenizer whose texts are the numbers of their tokens, so that no two answers look alike."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture
def wild(recipe_of):
    """A run that was never trained, of weights so large that it says something else to everyone."""
    recipe = recipe_of(config={"tie_word_embeddings": False})
    model = build(recipe, frozenset(recipe.modalities))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    run = Run(recipe, model)
    run.layouter = Layouter(recipe.backbone.chat, Numbers(recipe.backbone.tokenizer()), branches_of(recipe))
    return run


def samples_of(recipe, *names):
    return [recipe.data[name].open()[number] for number, name in enumerate(names)]


def one_by_one(run, sample, layouter):
    """The answer with everything computed anew for each token, as training computes it."""
    layout = layouter(sample, answer=False)
    items = read_items((layout,), layouter.branches)
    embeds = run.model.embed(collate([(layout,)], items, len(layout.ids)))
    written = []
    while len(written) < TOKENS and layouter.stop not in written:
        segments = torch.ones(embeds.shape[:2], dtype=torch.long)
        hidden = run.model.backbone.hidden(embeds, segments, positions_of(segments))
        token = run.model.backbone.head(hidden[:, -1]).argmax(-1)
        written.append(int(token))
        embeds = torch.cat([embeds, run.model.backbone.embed(token[:, None])], 1)
    return layouter.tokenizer.decode([token for token in written if token != layouter.stop])


@torch.inference_mode()
def test_a_batch_answers_as_its_prompts_do_one_by_one_in_the_order_asked(wild):
    samples = samples_of(wild.recipe, "video", "text", "image", "mixed", "audio", "image", "text", "mixed")
    expected = [one_by_one(wild, sample, wild.layouter) for sample in samples]
    assert len(set(expected)) == len(samples), "answers that are alike would prove nothing"
    assert wild.answer(samples, max_tokens=TOKENS) == expected


def test_batches_change_no_answer(wild, monkeypatch):
    samples = samples_of(wild.recipe, "video", "text", "image", "mixed", "audio")
    expected = wild.answer(samples, max_tokens=TOKENS)
    monkeypatch.setattr("omnikit.generate.BATCH", 2)
    assert wild.answer(samples, max_tokens=TOKENS) == expected
    assert wild.answer([]) == []


def test_what_follows_the_stop_is_not_said(loaded, monkeypatch):
    tokenizer, stop = loaded.layouter.tokenizer, loaded.layouter.stop
    red, blue = (tokenizer.encode(word, add_special_tokens=False).ids[0] for word in ("red", "blue"))
    steps = iter([[red, stop], [blue, red], [stop, red], [red, blue]])
    monkeypatch.setattr(Run, "_greedy", lambda *_: steps)
    assert loaded.answer(samples_of(loaded.recipe, "text", "text")) == ["red blue", ""]
    assert next(steps) == [red, blue], "nothing is computed once all have stopped"


@pytest.mark.parametrize("most", [1, 3])
def test_it_writes_no_more_than_it_may(wild, monkeypatch, most):
    head, calls = wild.model.backbone.head, []
    monkeypatch.setattr(wild.model.backbone, "head", lambda hidden: (calls.append(len(hidden)), head(hidden))[1])
    wild.answer(samples_of(wild.recipe, "text", "image"), max_tokens=most)
    assert calls == [2] * most


@torch.inference_mode()
def test_the_blind_control_sees_the_example_and_never_the_medium(wild, monkeypatch):
    source = wild.recipe.data["mixed"].open()
    samples = [source[number] for number in range(6)]
    assert len(set(wild.answer(samples, max_tokens=TOKENS))) == 6
    [expected] = set(wild.answer(samples, blind=True, max_tokens=TOKENS))  # all is alike to who is blind

    from omnikit_siglip import SquareConfig
    from omnikit_whisper import WaveformConfig

    for reader in (SquareConfig, WaveformConfig):
        monkeypatch.setattr(reader, "read", None)
        monkeypatch.setattr(reader, "grids", None)
    assert wild.answer(samples[:1], blind=True, max_tokens=TOKENS) == [expected]


def test_a_run_is_loaded_with_the_newest_tensors_of_every_stage(trained, loaded, tensors_of):
    language, omni = (tensors_of(trained.run.latest(name).folder) for name in ("language", "omni"))
    found = loaded.model.state_dict()
    assert omni.keys() == found.keys() - {"backbone.lm_head.weight"} and language.keys() < omni.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in omni.items())
    assert not loaded.model.training and not any(module.training for module in loaded.model.modules())


def test_a_run_that_was_cut_off_answers_as_far_as_it_was_trained(trained, registry, tmp_path, tensors_of):
    copied = tmp_path / "run"
    shutil.copytree(trained.run.path, copied)
    shutil.rmtree(copied / "omni")
    run = Run.load(copied, registry)
    found = run.model.state_dict()
    assert all(
        torch.equal(found[name], tensor) for name, tensor in tensors_of(trained.run.latest("language").folder).items()
    )
    assert isinstance(run.answer(samples_of(run.recipe, "image"), max_tokens=2)[0], str)
    shutil.rmtree(copied / "language")
    with pytest.raises(ValueError, match="has no checkpoint yet; let `omnikit train` reach its first one"):
        Run.load(copied, registry)


def test_a_folder_that_is_no_run_is_told(tmp_path, registry):
    with pytest.raises(
        ValueError, match=r"holds no run \(no recipe\.yaml\); give the folder that `omnikit train` wrote"
    ):
        Run.load(tmp_path, registry)


def test_a_question_with_a_modality_that_the_run_has_not_is_told(loaded):
    from omnikit.component import Medium

    sample = Sample("q", (Turn("user", (("depth", Medium("a.png")),)), Turn("assistant", ())))
    with pytest.raises(ValueError, match=r"the recipe has no modality 'depth'; modalities: "):
        loaded.answer([sample])


def test_branches_of_the_blind_are_those_of_the_recipe(loaded):
    from omnikit.generate import _blind_branches

    blind, seeing = _blind_branches(loaded.recipe), branches_of(loaded.recipe)
    assert blind.keys() == seeing.keys()
    for name, branch in blind.items():
        assert (branch.input, branch.projector) == (seeing[name].input, seeing[name].projector)
        example = loaded.recipe.encoders[loaded.recipe.modalities[name].encoder].example()
        assert branch.reader.grids(None, branch.input) == [example.grid]
