"""The documents say what is so: keys, commands, paths and examples are those of the code."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from omnikit.cli import app
from omnikit.component import BackboneConfig, Chat, SourceConfig
from omnikit.recipe import load_recipe
from omnikit.recipe_schema import Batch, Held, Modality, Recipe, Rule, Run, Schedule, Share, Stage
from omnikit.registry import Registry
from omnikit.strictyaml import read_text
from omnikit.train import train

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """(what follows the language, text) of the fenced blocks in these languages."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(rest.strip(), text) for language, rest, text in found if language in languages]


# ------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "model", [Recipe, Modality, Stage, Batch, Share, Rule, Schedule, Run, Held, Chat, BackboneConfig, SourceConfig]
)
def test_every_key_of_a_recipe_is_explained(model):
    page = text_of("docs/recipe.md")
    keys = [field.alias or name for name, field in model.model_fields.items()]
    missing = [key for key in keys if f"`{key}`" not in page]
    assert not missing, f"docs/recipe.md does not name {missing} of {model.__name__}"


def test_every_key_that_merging_knows_is_explained():
    page = text_of("docs/recipe.md")
    assert all(f"`{key}`" in page for key in ("extends", "before", "rest", "frozen", "null"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_yaml_examples_are_yaml_as_omnikit_reads_it(page, tmp_path):
    for rest, text in blocks(page, "yaml"):
        read_text(text, page.name, tmp_path)
        assert rest in ("", "complete")


def test_complete_recipes_load(tmp_path):
    complete = [text for rest, text in blocks(ROOT / "docs/recipe.md", "yaml") if rest == "complete"]
    assert complete
    for text in complete:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        load_recipe(path, Registry.load())


def test_the_example_of_extends_loads(tmp_path):
    (example,) = [text for _, text in blocks(ROOT / "docs/recipe.md", "yaml") if text.startswith("extends:")]
    path = tmp_path / "recipe.yaml"
    path.write_text(example.replace("tiny_omni.yaml", str(ROOT / "recipes/tiny_omni.yaml")), encoding="utf-8")
    recipe = load_recipe(path, Registry.load())
    stages = list(recipe.stages)
    assert stages[stages.index("omni") - 1] == "more_speech"


# -------------------------------------------------------------------------------------------------------- command line


def commands(group: click.Group, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, (*path, name))
        if not hasattr(command, "commands") or command.invoke_without_command:
            found[(*path, name)] = command
    return found


COMMANDS = commands(typer.main.get_command(app))


def options_of(command: click.Command) -> list[str]:
    return [word for parameter in command.params for word in parameter.opts if word.startswith("-")]


@pytest.mark.parametrize("path", list(COMMANDS), ids=" ".join)
def test_every_command_and_option_is_in_the_readme(path):
    name = re.escape(" ".join(("omnikit", *path)))
    rows = re.findall(rf"^\| `{name}(?: [A-Z-][^|]*)?` \|[^|]*\|([^|]*)\|$", text_of("README.md"), re.MULTILINE)
    assert len(rows) == 1, f"the README's table of commands has no row `omnikit {' '.join(path)}`"
    named = set(re.findall(r"`(-[\w-]+)`", rows[0]))
    assert named == set(options_of(COMMANDS[path])), f"options of omnikit {' '.join(path)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_documents_use_commands_and_options_that_exist(page):
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in blocks(page, "sh", "console") for line in block.splitlines()]
    lines += re.findall(r"`(omnikit [^`\n]*)`", text)
    for line in lines:
        found = re.search(r"(?:^|[ (])omnikit ((?:[\w-]+ ?)+)", line.removeprefix("$ "))
        if found is None:
            continue
        words = found[1].split()
        path = max((path for path in COMMANDS if list(path) == words[: len(path)]), key=len, default=None)
        assert path is not None, f"{page.name}: {line}: no such command"
        rest = line[found.end(1) :].split(")")[0] if "<(" in line else line[found.end(1) :]
        used = [word for word in shlex.split(rest, comments=True) if re.fullmatch(r"--?[a-z][\w-]*", word)]
        known = [*options_of(COMMANDS[path]), "--help"]
        known += ["--image", "--video", "--audio", "--pulse"] if path == ("chat",) else []  # a run's modalities
        assert set(used) <= set(known), f"{page.name}: {line}: knows {known}"


# -------------------------------------------------------------------------------------------------------------- README


def tree() -> list[str]:
    """The paths of the README's annotated tree."""
    (block,) = [text for _, text in blocks(ROOT / "README.md", "text") if text.startswith("omnikit/")]
    paths, folder = [], ""
    for line in block.splitlines():
        name, _, remark = line.strip().partition(" ")
        assert remark.strip(), f"{name} has no remark"
        inside = line.startswith("  ")
        folder = folder if inside else name
        paths.append(folder + name if inside else name)
    return paths


def test_the_tree_names_what_exists():
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_the_tree_names_every_module_and_folder():
    core = {f"omnikit/{path.name}" for path in (ROOT / "omnikit").glob("*.py")} - {"omnikit/__init__.py"}
    core |= {f"omnikit/{path.parent.name}/" for path in (ROOT / "omnikit").glob("*/__init__.py")}
    plugins = {f"plugins/{path.parent.name}/" for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert sorted((core | plugins) - set(tree())) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_the_text_exist(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    pattern = r"`((?:omnikit|plugins|recipes|tests|docs|changelog)/[\w./-]*)(?:::\w+)?`"
    assert [path for path in re.findall(pattern, text) if not (ROOT / path).exists()] == []


def test_the_python_example_runs(recipe_of, parts, world, quiet, tmp_path, capsys):
    stages = {name: parts.stages[name] for name in ("language", "image")}
    table = {"image": parts.modalities["image"]}
    train(recipe_of(stages, modalities=table, encoders={"vision": parts.encoders["vision"]}), tmp_path / "run", quiet)
    (example,) = [text for _, text in blocks(ROOT / "README.md", "python")]
    example, runs = example.replace("runs/tiny_omni", str(tmp_path / "run")), "runs/tiny_omni" in example
    example, pictures = re.subn(r"data/sample/[\w/]*\.png", str(world / "0.png"), example)
    assert runs and pictures == 1
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert capsys.readouterr().out and names["chat"].positions > 20
