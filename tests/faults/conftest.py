"""What the fault tests share."""

import sys
from pathlib import Path

import pytest

from omnikit.recipe import dump_recipe

sys.path.insert(0, str(Path(__file__).parent))

from harness import FULL, Launcher, Zygote


@pytest.fixture(scope="session")
def count():
    """count(few, many): the first in `make faults`, the second in `make faults-full`."""
    return lambda few, many: many if FULL else few


@pytest.fixture(scope="session")
def ranks(tmp_path_factory, own_cache):
    """Ranks that start at once (`Zygote`)."""
    zygote = Zygote(tmp_path_factory.mktemp("ranks"))
    yield zygote
    zygote.close()


@pytest.fixture
def launch(tmp_path):
    """launch(*arguments, faults=...) -> a Launcher; what is left of it at the test's end is killed."""
    made = []

    def start(*arguments, **named):
        made.append(Launcher(tmp_path, arguments, **named))
        return made[-1]

    yield start
    for launcher in made:
        launcher.kill()


@pytest.fixture(scope="session")
def toy(recipe_of, parts, tmp_path_factory):
    """toy(name, stages=..., run=..., ...) -> the path of a recipe file."""
    folder = tmp_path_factory.mktemp("recipes")

    def make(name, stages, run=None, **tables):
        path = folder / f"{name}.yaml"
        path.write_text(dump_recipe(recipe_of(stages, run={"save": 2, "keep": 2, "seed": 7, **(run or {})}, **tables)))
        return path

    return make
