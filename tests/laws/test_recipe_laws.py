"""Laws of recipes: a dump reloads to an equal recipe, and whatever the text, a recipe or a RecipeError comes of it."""

import copy
import re
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnikit.component import (
    BackboneConfig,
    Chat,
    EncoderConfig,
    Mel,
    Pixels,
    ProjectorConfig,
    ReaderConfig,
    RecipePath,
    SourceConfig,
)
from omnikit.recipe import RecipeError, dump_recipe, load_recipe
from omnikit.registry import Registry
from omnikit.strictyaml import read_text, write


class Views(ReaderConfig):
    type: ClassVar[str] = "views"
    makes: ClassVar[Any] = Pixels


class Wave(ReaderConfig):
    type: ClassVar[str] = "wave"
    makes: ClassVar[Any] = Mel
    rate: float = 1.0


class Vit(EncoderConfig):
    type: ClassVar[str] = "vit"
    presets: ClassVar[Any] = {"small": {"width": 16, "input_scale": (0.5, 2)}}
    preset: str | None = None
    width: int
    input_scale: tuple[float, int] = (1.0, 1)

    @property
    def input(self):
        return Pixels(size=28, patch=14)


class Ear(EncoderConfig):
    type: ClassVar[str] = "ear"

    @property
    def input(self):
        return Mel()


class Mlp(ProjectorConfig):
    type: ClassVar[str] = "mlp"
    note: str = ""
    loose: int | float | str | bool | None = None


class Llm(BackboneConfig):
    type: ClassVar[str] = "llm"
    chat: Chat


class Rows(SourceConfig):
    type: ClassVar[str] = "rows"
    path: RecipePath


INSTALLED = Registry.load()
REGISTRY = Registry.of(Views, Wave, Vit, Ear, Mlp, Llm, Rows)
SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.yaml"))

names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name != "text")
# What YAML or the reader may take for something else, beside arbitrary text without control characters.
texts = st.sampled_from(
    [
        "off",
        "yes",
        "null",
        "~",
        "",
        "1e-3",
        "012",
        "0x1f",
        "1_0",
        "1:30",
        "2024-01-01",
        "true",
        "=",
        "<<",
        "*a",
        "&a",
        "!t",
    ]
) | st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t"), max_size=40)
rates = st.floats(1e-12, 1e3)


@st.composite
def recipes(draw):
    """A recipe as a plain mapping, of which every part is drawn and all parts agree."""
    encoders = draw(st.dictionaries(names, st.sampled_from(["vit", "ear"]), max_size=3))
    modalities, used = {}, draw(st.lists(names, unique=True, min_size=len(encoders), max_size=len(encoders)))
    for modality, (encoder, type) in zip(used, encoders.items(), strict=True):
        wave = st.sampled_from(["wave", {"type": "wave"}]) | st.builds(
            lambda rate: {"type": "wave", "rate": rate}, rates
        )
        options = st.fixed_dictionaries(
            {"type": st.just("mlp")}, optional={"note": texts, "loose": texts | rates | st.booleans()}
        )
        modalities[modality] = {
            "reader": "views" if type == "vit" else draw(wave),
            "encoder": encoder,
            "projector": draw(st.just("mlp") | options),
        }
    configs = {
        name: draw(
            st.sampled_from([{"type": "vit", "preset": "small"}, {"type": "vit", "width": 3, "weights": "org/name"}])
        )
        if type == "vit"
        else "ear"
        for name, type in encoders.items()
    }
    held = draw(st.lists(st.sampled_from(used), unique=True)) if used else []
    data = {
        name: {"type": "rows", "path": f"p/{name}", "modalities": held} for name in draw(st.sets(names, min_size=1))
    }
    affixes = draw(st.dictionaries(texts, texts, max_size=3))
    return {
        "backbone": {"type": "llm", "chat": {"prefix": affixes, "suffix": {}, "stop": draw(texts)}},
        "encoders": configs,
        "modalities": modalities,
        "data": data,
        "heldout": draw(
            st.dictionaries(names, st.just({"data": {"type": "rows", "path": "h"}, "metric": "wer"}), max_size=2)
        ),
        "stages": {
            name: draw(stages(list(data), held)) for name in draw(st.lists(names, unique=True, min_size=1, max_size=3))
        },
        "run": draw(
            st.fixed_dictionaries({}, optional={"seed": st.integers(0, 2**63 - 1), "precision": st.just("fp32")})
        ),
    }


@st.composite
def stages(draw, sources, modalities):
    packs = draw(st.integers(1, 64))
    share = rates | st.builds(lambda rate: {"share": rate, "as": {name: name for name in modalities}}, rates)
    rule = rates | st.builds(lambda lr, decay: {"lr": lr, "weight_decay": decay}, rates, st.floats(0, 1))
    train = {
        "backbone.head": draw(rule | st.just("frozen")),
        "backbone": draw(rule),
        "rest": draw(rule | st.just("frozen")),
    }
    optional = {
        "schedule": st.fixed_dictionaries(
            {"shape": st.sampled_from(["constant", "linear"])}, optional={"floor": st.floats(0, 1)}
        ),
        "clip": rates,
    }
    return {
        "steps": draw(st.integers(1, 10**9)),
        "batch": {"length": draw(st.integers(1, 10**6)), "packs": packs, "micro": draw(st.sampled_from([1, packs]))},
        "data": draw(st.dictionaries(st.sampled_from(sources), share, min_size=1)),
        "train": {path: train[path] for path in train if path == "backbone" or draw(st.booleans())},
        **draw(st.fixed_dictionaries({}, optional=optional)),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


def load(folder, text, *sets, registry=REGISTRY):
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "r.yaml", registry, sets)


LAWS = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


@LAWS
@given(recipes())
def test_a_dump_reloads_to_an_equal_recipe(folder, recipe):
    first = load(folder, write(recipe))
    (folder / "elsewhere").mkdir(exist_ok=True)
    assert load(folder / "elsewhere", dump_recipe(first)) == first


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@LAWS
@given(values)
def test_what_is_written_is_read(value):
    assert read_text(write({"key": value}), "r.yaml", Path()) == {"key": value}


def test_every_shipped_recipe_reloads_to_itself(folder):
    assert SHIPPED
    for path in SHIPPED:
        recipe = load_recipe(path, INSTALLED)
        assert load(folder, dump_recipe(recipe), registry=INSTALLED) == recipe, path


# -------------------------------------------------------------------------------------------------- texts of strangers

TEXT = """\
backbone: {type: llm, chat: {prefix: {user: "<u>"}, suffix: {user: "\\n"}, stop: "</s>"}}
encoders:
  vision: {type: vit, preset: small}
  sound: ear
modalities:
  image: {reader: views, encoder: vision, projector: mlp}
  audio: {reader: {type: wave, rate: 2.0}, encoder: sound, projector: {type: mlp, note: hello}}
data:
  captions: {type: rows, path: a.jsonl, modalities: [image]}
  asr: {type: rows, path: b.jsonl, modalities: [audio]}
heldout:
  speech: {data: {type: rows, path: c.jsonl, modalities: [audio]}, metric: wer, target: 0.1}
stages:
  align:
    steps: 10
    batch: {length: 64, packs: 4, micro: 2}
    data: {captions: 1}
    train: {modalities.image.projector: 1e-3, rest: frozen}
  omni:
    steps: 20
    batch: {length: 64, packs: 4, micro: 1}
    data: {captions: {share: 1, as: {image: image}}, asr: 2.5}
    train: {backbone.head: frozen, modalities.audio: {lr: 2e-5, weight_decay: 0.1}, rest: 1e-5}
    init: {modalities.audio.projector: modalities.image.projector}
    schedule: {shape: linear, warmup: 0.1}
run: {seed: 3}
"""
HOSTILE = [
    *"{}[],:&*!|>'\"%@`#?-~\n\t\0",
    *(
        "- ",
        "? ",
        ": ",
        "<<: ",
        "&a ",
        "*a",
        "!!python/object:os.system ",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "\\x00",
        '"\\ud800"',
    ),
    *(
        "null",
        "true",
        "off",
        ".nan",
        "-.inf",
        "1e999",
        "9" * 400,
        "-1",
        "0",
        "''",
        "[]",
        "{}",
        "[[]]",
        "{a: {b: [c]}}",
        "é",
        "\u2028",
    ),
    *(
        "type",
        "extends",
        "before",
        "rest",
        "frozen",
        "text",
        "_target_: os.system",
        "${oc.env:HOME}",
        "os.system",
        "r.yaml",
    ),
]


def tokens(text):
    return re.findall(r"[\w./-]+|\s+|.", text)


@st.composite
def mutations(draw, text):
    """The text with one to four of its tokens removed, replaced, swapped, doubled, or led by something."""
    parts = tokens(text)
    for _ in range(draw(st.integers(1, 4))):
        at, other = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        hostile = st.sampled_from(HOSTILE) | st.text(max_size=6)
        match draw(st.integers(0, 4)):
            case 0:
                parts[at] = ""
            case 1:
                parts[at] = draw(hostile)
            case 2:
                parts[at], parts[other] = parts[other], parts[at]
            case 3:
                parts[at:at] = parts[min(at, other) : max(at, other)]
            case _:
                parts[at] = draw(hostile) + parts[at]
    return "".join(parts)


def only_recipe_errors(folder, text, *sets, registry=REGISTRY):
    before = time.process_time()
    try:
        recipe = load(folder, text.encode(errors="replace").decode(), *sets, registry=registry)
        assert load(folder, dump_recipe(recipe), registry=registry) == recipe
    except RecipeError as error:
        for message in error.messages:
            assert message.startswith((str(folder), "--set")) and len(message.splitlines()) == 1, message
            assert "pydantic" not in message and "https:" not in message, message
    assert time.process_time() - before < 5


@settings(LAWS, max_examples=250)
@given(mutations(TEXT))
def test_mutated_recipes_load_or_raise_recipe_errors(folder, text):
    only_recipe_errors(folder, text)


@settings(LAWS, max_examples=200)
@given(st.data())
def test_mutated_shipped_recipes_load_or_raise_recipe_errors(folder, data):
    path = data.draw(st.sampled_from(SHIPPED))
    only_recipe_errors(folder, data.draw(mutations(path.read_text())), registry=INSTALLED)


def paths(tree, above=()):
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


PATHS = list(paths(read_text(TEXT, "r.yaml", Path())))
WORDS = sorted(
    {key for path in PATHS for key in path} | {"mlp", "vit", "image", "frozen", "modalities.image", "encoders.vision"}
)


@st.composite
def changed_trees(draw):
    """The recipe with one to three of its nodes removed, renamed, replaced or moved: valid YAML, mostly no recipe."""
    tree = yaml.safe_load(TEXT.replace("1e-", "1.0e-").replace("2e-", "2.0e-"))
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from(PATHS))
        node = tree
        for part in above:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or key not in node:
            continue
        match draw(st.integers(0, 3)):
            case 0:
                del node[key]
            case 1:
                node[draw(st.sampled_from(WORDS) | texts)] = node.pop(key)
            case 2:
                node[key] = draw(st.sampled_from(WORDS) | values)
            case _:
                node[key] = copy.deepcopy(tree.get(draw(st.sampled_from(list(tree))) if tree else None))
    return tree


@settings(LAWS, max_examples=250)
@given(changed_trees())
def test_changed_recipes_load_or_raise_recipe_errors(folder, tree):
    only_recipe_errors(folder, write(tree))


@settings(LAWS, max_examples=200)
@given(
    st.sampled_from(PATHS), st.sampled_from(HOSTILE + WORDS) | values.map(lambda value: write(value).strip()), st.data()
)
def test_any_set_loads_or_raises_recipe_errors(folder, path, value, data):
    below = data.draw(st.sampled_from(["", "", ".", ".x", ".lr", ".type", ".share", "x", "..", ".rest"]))
    only_recipe_errors(folder, TEXT, f"{'.'.join(path)}{below}={value}")
