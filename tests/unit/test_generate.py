"""Answers: a run loaded as far as it was trained, batches equal to prompts one by one, and the blind control."""

import shutil
import weakref

import pytest
import torch

from omnikit.blind import blind_branches
from omnikit.component import Medium, Sample, Turn
from omnikit.data import branches_of
from omnikit.generate import Run
from omnikit.packing import collate, positions_of, read_items
from omnikit.sample import BadSample
from omnikit.sampling import Sampling

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
    monkeypatch.setattr("omnikit.generate.PLACES", 100)
    calls = []
    embed = wild.model.embed
    monkeypatch.setattr(wild.model, "embed", lambda batch: (calls.append(batch.ids.shape), embed(batch))[1])
    assert wild.answer(samples, max_tokens=TOKENS) == expected
    assert 1 < len(calls) < len(samples) and all(rows == 1 or rows * (length + TOKENS) <= 100 for rows, length in calls)
    assert wild.answer([]) == []


def test_what_follows_the_stop_is_not_said(loaded, monkeypatch):
    tokenizer, stop = loaded.layouter.tokenizer, loaded.layouter.stop
    red, blue = (tokenizer.encode(word, add_special_tokens=False).ids[0] for word in ("red", "blue"))
    steps = iter([[red, stop], [blue, red], [stop, red], [red, blue]])
    monkeypatch.setattr(Run, "_written", lambda *_: steps)
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
    sample = Sample("q", (Turn("user", (("depth", Medium("a.png")),)), Turn("assistant", ())))
    with pytest.raises(ValueError, match=r"the recipe has no modality 'depth'; modalities: "):
        loaded.answer([sample])


def test_branches_of_the_blind_are_those_of_the_recipe(loaded):
    blind, seeing = blind_branches(loaded.recipe), branches_of(loaded.recipe)
    assert blind.keys() == seeing.keys()
    for name, branch in blind.items():
        assert (branch.input, branch.projector) == (seeing[name].input, seeing[name].projector)
        example = loaded.recipe.encoders[loaded.recipe.modalities[name].encoder].example()
        assert branch.reader.grids(None, branch.input) == [example.grid]


# ------------------------------------------------------------------------------------------------- drawn, and measured


def test_one_that_cannot_be_asked_costs_no_other_its_answer(wild, tmp_path):
    samples = samples_of(wild.recipe, "image", "text", "audio")
    expected = wild.answer(samples, max_tokens=TOKENS)
    (tmp_path / "a.png").write_bytes(b"no picture")
    bad = Sample("bad", (Turn("user", (("image", Medium(str(tmp_path / "a.png"))),)), Turn("assistant", ())))
    found = dict(wild.answers([samples[0], bad, *samples[1:]], max_tokens=TOKENS))
    assert isinstance(found[1], BadSample) and "a.png" in str(found[1])
    assert [found[0], found[2], found[3]] == expected
    with pytest.raises(BadSample, match=r"^sample bad: image: .*a\.png"):
        wild.answer([*samples, bad])


def test_a_prompt_that_has_no_room_in_the_context_is_told(wild):
    [sample] = samples_of(wild.recipe, "text")
    length = len(wild.layouter(sample, answer=False).ids)
    wild.context = length + 2
    assert wild.answer([sample], max_tokens=2)
    told = f"its prompt has more than the {length - 1} positions that a context of {length + 2} leaves it"
    with pytest.raises(BadSample, match=told):
        wild.answer([sample], max_tokens=3)
    wild.context = 2 * length
    [whole] = wild.answer([sample], max_tokens=10_000)
    assert len(whole.split()) == length, "an answer ends where the context does"


def test_a_neighbour_whose_context_ends_changes_no_answer(wild_of):
    """Rotary positions of this type change, for a whole batch, with its largest position."""
    dynamic = {"rope_type": "dynamic", "factor": 64.0, "rope_theta": 10_000.0}
    run = wild_of(rope_parameters=dynamic, max_position_embeddings=64)
    short, long = (Sample(x, (Turn("user", (("text", x),)), Turn("assistant", ()))) for x in ("r?" * 4, "r?" * 13))
    alone = [run.answer([one], max_tokens=54)[0].split() for one in (short, long)]
    assert [len(one) for one in alone] == [64 - len(run.layouter(one, answer=False).ids) for one in (short, long)]
    assert [one.split() for one in run.answer([short, long], max_tokens=54)] == alone


def test_what_is_drawn_follows_from_the_seed_and_the_sample_alone(wild, monkeypatch):
    samples = samples_of(wild.recipe, "video", "text", "image", "mixed", "audio")
    warm = Sampling(temperature=30.0, seed=3)
    drawn = wild.answer(samples, max_tokens=TOKENS, sampling=warm)
    assert drawn == wild.answer(samples, max_tokens=TOKENS, sampling=warm)
    assert drawn[::-1] == wild.answer(samples[::-1], max_tokens=TOKENS, sampling=warm)
    assert drawn[2:3] == wild.answer(samples[2:3], max_tokens=TOKENS, sampling=warm)
    others = wild.answer(samples, max_tokens=TOKENS, sampling=warm._replace(seed=4))
    assert all(one != other for one, other in zip(drawn, others, strict=True))
    greedy = wild.answer(samples, max_tokens=TOKENS)
    assert drawn != greedy
    assert greedy == wild.answer(samples, max_tokens=TOKENS, sampling=warm._replace(top_k=1))
    assert greedy == wild.answer(samples, max_tokens=TOKENS, sampling=warm._replace(top_p=1e-9))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"temperature": 0.0}, "temperature 0: is not above 0"),
        ({"temperature": float("nan")}, "temperature nan: is not above 0"),
        ({"top_k": -1}, "top_k -1: is below 0"),
        ({"top_p": 0.0}, "top_p 0: is not a probability"),
        ({"top_p": 1.5}, "top_p 1.5: is not a probability"),
    ],
)
def test_values_that_mean_nothing_are_refused(wild, wrong, told):
    with pytest.raises(ValueError, match=told):
        wild.answer(samples_of(wild.recipe, "text"), sampling=Sampling(**wrong))


def test_probabilities_that_are_no_numbers_are_told(wild):
    with pytest.raises(ValueError, match=r"at temperature 1e-40 the probabilities are no numbers; take a higher one"):
        wild.answer(samples_of(wild.recipe, "text"), sampling=Sampling(temperature=1e-40))


def likelihood(run, sample, text):
    """The plain way: the whole conversation through the model, the answer's tokens looked up."""
    whole = sample._replace(turns=(*sample.turns[:-1], Turn("assistant", (("text", text),))))
    layout = run.layouter(whole)
    batch = collate([(layout,)], read_items((layout,), run.layouter.branches), len(layout.ids))
    hidden = run.model.backbone.hidden(run.model.embed(batch), batch.segments, positions_of(batch.segments))
    shares = run.model.backbone.head(hidden[0]).double().log_softmax(-1)
    begin = len(run.layouter(whole, answer=False).ids)
    end = len(layout.ids) - layout.ids[::-1].index(run.layouter.stop) - 1
    return sum(float(shares[at - 1, layout.ids[at]]) for at in range(begin, end))


@torch.inference_mode()
@pytest.mark.parametrize("places", [100, 16_384])
def test_likelihoods_are_those_of_the_answer_s_tokens(wild, monkeypatch, places):
    monkeypatch.setattr("omnikit.generate.PLACES", places)
    samples = samples_of(wild.recipe, "image", "text", "video", "audio")
    earlier = samples[0]._replace(turns=(*samples[1].turns, *samples[0].turns))  # an answer before counts for nothing
    samples.append(earlier)
    choices = [["A", "B", "C"], ["red", "blue or green"], ["it is black"], ["A", "A B"], ["A", "B"]]
    found = wild.likelihoods(samples, choices)
    assert [len(row) for row in found] == [3, 2, 1, 2, 2]
    for sample, texts, row in zip(samples, choices, found, strict=True):
        assert row == pytest.approx([likelihood(wild, sample, text) for text in texts], rel=1e-4)
    assert len({one for row in found for one in row}) == 10


def test_of_the_likelihoods_hidden_states_one_batch_at_a_time_is_held(wild, monkeypatch):
    monkeypatch.setattr("omnikit.generate.PLACES", 1)
    inner, held, most = wild._hidden, [], []

    def hidden(layouts, items):
        found = inner(layouts, items)
        held.append(weakref.ref(found.untyped_storage()))
        most.append(sum(storage() is not None for storage in held))
        return found

    monkeypatch.setattr(wild, "_hidden", hidden)
    wild.likelihoods(samples_of(wild.recipe, "image", "text", "video", "audio"), [["A", "B"]] * 4)
    assert len(most) == 4 and max(most) <= 2, "the last one may go as the next comes"


def test_letters_cost_one_pass(wild, monkeypatch):
    embed, rows = wild.model.embed, []
    monkeypatch.setattr(wild.model, "embed", lambda batch: (rows.append(len(batch.ids)), embed(batch))[1])
    samples = samples_of(wild.recipe, "image", "text")
    wild.likelihoods(samples, [["A", "B", "C", "D"]] * 2)
    assert rows == [2]
    with pytest.raises(ValueError, match="the choice '' has no token"):
        wild.likelihoods(samples[:1], [["A", ""]])
