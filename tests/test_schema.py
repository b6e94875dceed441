"""The JSON schema that editors use: it is current, and the shipped recipes keep to it."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from omnikit.recipe import json_schema, load_recipe
from omnikit.registry import Registry

RECIPES = Path(__file__).parents[1] / "recipes"
SCHEMA = RECIPES / "omnikit.schema.json"
OURS = {"omnikit", "omnikit-siglip", "omnikit-video", "omnikit-whisper", "omnikit-conv-gmlp"}
SHIPPED = sorted(path.name for path in RECIPES.glob("*.yaml"))


def test_the_committed_schema_is_current():
    # Whatever else is installed here, the committed file speaks of this repository's components.
    ours = Registry(tuple(plugin for plugin in Registry.load().plugins if plugin.distribution in OURS))
    current = json.dumps(json_schema(ours), indent=1) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == current, "recipes/omnikit.schema.json is stale: run `make schema`"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_keeps_to_the_schema(name):
    text = (RECIPES / name).read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=./omnikit.schema.json\n"), "editors find the schema by this"
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_loads(name, registry):
    assert load_recipe(RECIPES / name, registry).stages


@pytest.mark.parametrize("name", ["baichuan_omni.yaml", "tiny_omni.yaml"])
def test_the_tiny_recipe_has_the_stages_and_the_shared_encoder_of_the_full_one(name, registry):
    recipe = load_recipe(RECIPES / name, registry)
    stages = "image_caption image_vqa image_full video_images video_mixed audio omni sft".split()
    assert list(recipe.stages)[-8:] == stages
    assert recipe.modalities["image"].encoder == recipe.modalities["video"].encoder


def test_the_schema_refuses_a_misspelt_key():
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    recipe = yaml.safe_load((RECIPES / SHIPPED[0]).read_text(encoding="utf-8"))
    recipe["run"]["sede"] = 1
    assert not validator.is_valid(recipe)
