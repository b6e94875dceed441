"""recipes/tiny_omni.yaml itself, on little data: each of its stages moves what its rules train and nothing else."""

from pathlib import Path

import pytest

from omnikit.recipe import Registry, load_recipe
from omnikit.sampledata import make_sample_data

RECIPE = Path(__file__).parents[1] / "recipes" / "tiny_omni.yaml"
STAGES = ("language", "image_caption", "image_vqa", "image_full", "video_images", "video_mixed", "audio", "omni", "sft")
STEPS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "sample"
    make_sample_data(folder, size=40)
    return folder


@pytest.fixture(scope="module")
def recipe(data):
    """The recipe, its data replaced by as few as do, with two steps a stage and nothing that decays."""
    registry = Registry.load()
    written = load_recipe(RECIPE, registry)
    sets = ["run.save=1000"]
    for table, sources in (
        ("data", written.data),
        ("heldout", {name: entry.data for name, entry in written.heldout.items()}),
    ):
        for name, source in sources.items():
            below = Path(source.path).relative_to(RECIPE.parents[1] / "data" / "sample")
            sets.append(f"{table}.{name}{'' if table == 'data' else '.data'}.path={data / below}")
    for name, stage in written.stages.items():
        sets.append(f"stages.{name}.steps={STEPS}")
        decaying = [path for path, rule in stage.train.items() if rule != "frozen" and rule.weight_decay]
        sets += [f"stages.{name}.train.{path}.weight_decay=0" for path in decaying]
    return load_recipe(RECIPE, registry, sets)


@pytest.fixture(scope="module")
def finished(recipe, watched, tmp_path_factory):
    return watched(recipe, tmp_path_factory.mktemp("run"), window=48)


def test_it_has_the_stages_of_the_paper_after_one_of_its_own(recipe):
    assert tuple(recipe.stages) == STAGES
    video = recipe.modalities["video"], recipe.modalities["image"]
    assert video[0].encoder == video[1].encoder, "image and video share one encoder"
    assert recipe.stages["video_images"].init == {"modalities.video.projector": "modalities.image.projector"}
    for name in ("video_images", "video_mixed"):
        images = [
            share for source, share in recipe.stages[name].data.items() if "image" in recipe.data[source].modalities
        ]
        assert images and all(share.as_ == {"image": "video"} for share in images), "stills pass the video branch"


def test_its_data_is_what_the_sample_data_holds(recipe):
    for source in (*recipe.data.values(), *(entry.data for entry in recipe.heldout.values())):
        assert source.missing() is None
        held = {name for sample in source.open() for turn in sample.turns for name, _ in turn.content} - {"text"}
        assert held == set(source.modalities)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_moves_what_its_rules_train_and_nothing_else(finished, tensors_of, name):
    finished.check_stage(name, tensors_of(finished.run.latest(name).folder))


def test_every_stage_was_given_every_modality_of_its_mixture(recipe, finished):
    from omnikit.recipe import built

    for name in STAGES:
        seen = {group for line in finished.records if line["stage"] == name for group in line["losses"]}
        assert {part for group in seen for part in group.split("+")} - {"text"} == set(built(recipe, name))
