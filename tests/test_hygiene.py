"""What the repository must not hold: paths of a machine, hosts of registries, pickles, import paths, long files, and
imports that plugins may not make."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ME = Path(__file__).relative_to(ROOT).as_posix()


def tracked():
    """Every file that git has or would take, by its path in the repository, this one left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = {name: ROOT / name for name in listed.split("\0") if name and name != ME and (ROOT / name).is_file()}
    assert "pyproject.toml" in found
    return found


def hits(pattern, names=r".*"):
    """`file:line: text` of every line that the pattern finds."""
    found = []
    for name, path in tracked().items():
        if re.fullmatch(names, name):
            lines = path.read_bytes().decode(errors="replace").splitlines()
            found += [f"{name}:{n}: {line[:120]}" for n, line in enumerate(lines, 1) if re.search(pattern, line)]
    return found


MACHINE = (
    r"(?<![\w.:/])/(home|root|Users|tmp|work|workspace|opt|mnt|data|srv)/\w|/usr/(?!bin/env)|file:///|\b[A-Z]:\\\w"
)
REGISTRY = r"(?i)pypi\.|pythonhosted|download\.pytorch|index-url|find-links|trusted-host"
PICKLE = r"pickle\.(load|Unpickler)|torch\.load\((?!.*weights_only=True)|joblib|\bdill\b|allow_pickle\s*=\s*True"
YAML = r"yaml\.(unsafe_load|full_load|load)\("
IMPORT_PATH = r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+"


def test_no_path_of_a_machine():
    assert hits(MACHINE) == []


def test_no_host_of_a_registry():
    assert hits(REGISTRY) == []


def test_pins_are_a_name_and_a_version_each():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    names = [pin.split("==")[0].lower() for pin in pins]
    assert len(set(names)) == len(names) and {"torch", "transformers", "setuptools", "pytest", "ruff"} <= set(names)
    others = (ROOT / "integrations/lmms_eval/requirements.txt").read_text().splitlines()
    others = [line for line in others if not line.startswith("#")]
    assert others and all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in others)
    names += [pin.split("==")[0].lower() for pin in others]
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton", "omnikit"))]


def test_no_pickle_is_loaded():
    assert hits(PICKLE, r".*\.py") == []
    assert hits(YAML, r"(omnikit|plugins/\w+/omnikit_).*\.py") == []


@pytest.mark.parametrize(
    ("pattern", "planted", "good"),
    [
        (MACHINE, 'open("/home/me/a")', 'Path("a") / "home/me"'),
        (MACHINE, "#!/usr/local/bin/python", "#!/usr/bin/env bash"),
        (REGISTRY, "pip install --extra-index-url x", "pip install --no-deps x"),
        (PICKLE, "torch.load(path)", "torch.load(path, weights_only=True)"),
        (PICKLE, "pickle.loads(data)", "pickle.dumps(data)"),
        (YAML, "yaml.load(text, Loader=Loader)", "yaml.parse(text)"),
        (IMPORT_PATH, "omnikit.builtin.Mlp", "pool_mlp"),
    ],
)
def test_the_patterns_find_what_is_planted(pattern, planted, good):
    assert re.search(pattern, planted) and not re.search(pattern, good)


def test_no_import_path_in_a_recipe():
    recipes = {name: path for name, path in tracked().items() if re.fullmatch(r"recipes/.*\.ya?ml", name)}
    assert {"recipes/tiny_omni.yaml", "recipes/baichuan_omni.yaml"} <= set(recipes)

    def words(node):
        if isinstance(node, dict):
            for key, value in node.items():
                # Weights are names of the hub or folders, presets are names of sizes (tiny.en); init and the keys of
                # train are paths of the recipe.
                yield from () if key in ("weights", "preset", "init", "path", "extends") else words(value)
        elif isinstance(node, list):
            for value in node:
                yield from words(value)
        elif isinstance(node, str):
            yield node

    for name, path in recipes.items():
        found = [word for word in words(yaml.safe_load(path.read_text())) if re.fullmatch(IMPORT_PATH, word)]
        assert not found, f"{name}: {found}"
    assert not hits(r"_target_|_component_|_partial_", r"recipes/.*\.ya?ml")


def test_files_stay_short():
    code = {
        name: path
        for name, path in tracked().items()
        if re.fullmatch(r"(omnikit|plugins)/.*\.py", name) and "/tests/" not in name
    }
    assert len(code) > 40
    long = {name: lines for name, path in code.items() if (lines := len(path.read_text().splitlines())) >= 400}
    assert not long, f"a file that outgrows 300 lines asks for a second idea: {long}"


# ------------------------------------------------------------------------------------------------------------- plugins

PLUGINS = sorted(path for path in (ROOT / "plugins").glob("*/omnikit_*/*.py"))
MAY = {"omnikit.component", "omnikit.kernels", "omnikit.media", "omnikit.resizing", "omnikit.testing"}


def imports(tree, *, at_run_time=False):
    """The modules that a syntax tree imports; with `at_run_time` without those for annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if at_run_time and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "plugins import by full names"
            yield from (
                [f"omnikit.{alias.name}" for alias in node.names] if node.module == "omnikit" else [node.module]
            )
        else:
            yield from imports(node, at_run_time=at_run_time)


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_plugin_imports_of_omnikit_what_it_may(path):
    tree, own = ast.parse(path.read_text()), path.parent.name
    core = {name for name in imports(tree) if name == "omnikit" or name.startswith("omnikit.")}
    assert core <= MAY, f"{path}: imports {core - MAY}"
    others = {name for name in imports(tree) if name.startswith("omnikit_") and name.split(".")[0] != own}
    assert not others, f"{path}: imports another plugin"
    if path.name in ("module.py", "reader.py"):
        # An export copies these two, and they must run there.
        kept = {name for name in imports(tree, at_run_time=True) if name.startswith("omnikit")}
        core = {"omnikit.kernels", "omnikit.media", "omnikit.resizing"}
        assert kept <= {*core, *(f"{own}.{name}" for name in ("module", "reader"))}, f"{path}: {kept}"
    if path.name == "__init__.py":
        top = {name.split(".")[0] for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
               for name in imports(ast.Module([node], []))}  # fmt: skip
        assert not top & {"torch", "transformers"}, f"{path}: imports torch before it is asked to build"


def test_the_walk_over_imports_sees_what_is_planted():
    planted = "def f():\n    from omnikit.model import OmniModel\nif TYPE_CHECKING:\n    from omnikit import train\n"
    assert list(imports(ast.parse(planted))) == ["omnikit.model", "omnikit.train"]
    assert list(imports(ast.parse(planted), at_run_time=True)) == ["omnikit.model"]
    assert len(PLUGINS) >= 8
