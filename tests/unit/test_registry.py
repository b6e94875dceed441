"""What is installed: the hook, broken plugins, duplicates, and what an unknown name is told."""

import itertools
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest

import omnikit
from omnikit.component import EncoderConfig, Pixels, ProjectorConfig, ReaderConfig
from omnikit.registry import Registry

NUMBERS = itertools.count()


class Siglip(EncoderConfig):
    type: ClassVar[str] = "siglip"


class Mlp(ProjectorConfig):
    type: ClassVar[str] = "mlp"


class PoolMlp(ProjectorConfig):
    type: ClassVar[str] = "pool_mlp"


GOOD = """
from omnikit.component import ProjectorConfig, hookimpl

class {name}(ProjectorConfig):
    type = "{type}"

@hookimpl
def omnikit_components():
    return [{name}]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with one entry point where Python finds it: install(package, entry point's name, source)."""

    def put(package, name, source):
        module = f"omnikit_trial_{next(NUMBERS)}"
        folder = tmp_path / package
        info = folder / f"{package.replace('-', '_')}-1.5.dist-info"
        info.mkdir(parents=True)
        (folder / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[omnikit]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(str(folder))

    return put


def plugin(registry, name):
    return [found for found in registry.plugins if found.name == name]


def test_an_installed_plugin_is_found(install):
    install("omnikit-good", "good", GOOD.format(name="Good", type="good_mlp"))
    registry = Registry.load()
    [found] = plugin(registry, "good")
    assert (found.distribution, found.version, found.broken) == ("omnikit-good", "1.5", None)
    assert registry.get("projector", "good_mlp") is found.components[0]


def test_the_built_in_components_come_through_the_same_hook():
    [builtin] = plugin(Registry.load(), "builtin")
    assert (builtin.distribution, builtin.version) == ("omnikit", omnikit.__version__)
    assert builtin.broken is None and builtin.components


BROKEN = {
    "import fails": (
        "import no_such_module_anywhere",
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "exits at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "syntax": ("def (", "SyntaxError"),
    "no hook": ("x = 1", "no hook"),
    "misspelt hook": (
        "from omnikit.component import hookimpl\n@hookimpl\ndef omnikit_componets(): return []",
        "unknown hook 'omnikit_componets'",
    ),
    "an argument too many": (
        "from omnikit.component import hookimpl\n@hookimpl\ndef omnikit_components(registry): return []",
        "'registry'",
    ),
    "hook raises": (
        "from omnikit.component import *\n@hookimpl\ndef omnikit_components():\n    raise OSError('two\\nlines')",
        "OSError: two lines",
    ),
    "returns one class": (
        "from omnikit.component import *\nclass P(ProjectorConfig):\n    type = 'p'\n"
        "@hookimpl\ndef omnikit_components(): return P",
        "TypeError",
    ),
    "no Config": (
        "from omnikit.component import hookimpl\n@hookimpl\ndef omnikit_components(): return [int]",
        "no subclass",
    ),
    "an instance": (
        "from omnikit.component import *\nclass P(ProjectorConfig):\n    type = 'p'\n"
        "@hookimpl\ndef omnikit_components(): return [P()]",
        "no subclass",
    ),
    "a base": (
        "from omnikit.component import *\n@hookimpl\ndef omnikit_components(): return [ProjectorConfig]",
        "ProjectorConfig.type is None",
    ),
    "a type with a dot": (GOOD.format(name="P", type="my.mlp"), "'my.mlp'"),
    "a reader that says not what it makes": (
        "from omnikit.component import *\nclass R(ReaderConfig):\n    type = 'r'\n"
        "@hookimpl\ndef omnikit_components(): return [R]",
        "R.makes",
    ),
    "the same type twice": (
        "from omnikit.component import *\nclass P(ProjectorConfig):\n    type = 'p'\n"
        "@hookimpl\ndef omnikit_components(): return [P, P]",
        "two components of kind projector and type 'p'",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_recorded_and_the_others_load(install, source, reason):
    install("omnikit-bad", "bad", source)
    install("omnikit-good", "good", GOOD.format(name="Good", type="good_mlp"))
    registry = Registry.load()
    [bad] = plugin(registry, "bad")
    assert reason in bad.broken and "\n" not in bad.broken and bad.components == ()
    assert registry.get("projector", "good_mlp").type == "good_mlp"
    with pytest.raises(ValueError, match="broken plugins, which may bring it: bad: ") as caught:
        registry.get("projector", "bad_mlp")
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_plugin_name_are_both_refused_by_name(install):
    install("omnikit-one", "same", GOOD.format(name="One", type="one"))
    install("omnikit-two", "same", GOOD.format(name="Two", type="two"))
    install("omnikit-good", "good", GOOD.format(name="Good", type="good_mlp"))
    registry = Registry.load()
    reasons = {found.broken for found in plugin(registry, "same")}
    assert reasons == {
        "two packages register the plugin name 'same': omnikit-one 1.5 and omnikit-two 1.5; uninstall one"
    }
    assert registry.get("projector", "good_mlp")
    with pytest.raises(ValueError, match=r"omnikit-one 1\.5 and omnikit-two 1\.5"):
        registry.get("projector", "one")


def test_the_name_builtin_is_taken(install):
    install("omnikit-evil", "builtin", GOOD.format(name="Evil", type="evil"))
    registry = Registry.load()
    assert "omnikit-evil must register under another" in plugin(registry, "builtin")[1].broken


def test_two_plugins_with_one_component_make_that_name_unusable_and_name_both(install):
    install("omnikit-one", "one", GOOD.format(name="One", type="same_mlp"))
    install("omnikit-two", "two", GOOD.format(name="Two", type="same_mlp"))
    registry = Registry.load()
    said = (
        "two plugins bring the projector 'same_mlp': one (package omnikit-one 1.5) and two (package omnikit-two 1.5); "
        "uninstall one"
    )
    with pytest.raises(ValueError) as caught:
        registry.get("projector", "same_mlp")
    assert str(caught.value) == said and registry.clashes == (said,)
    assert "same_mlp" not in registry.types("projector")


def test_an_unknown_name_is_told_the_nearest_and_all():
    registry = Registry.of(Siglip, Mlp, PoolMlp)
    with pytest.raises(ValueError) as caught:
        registry.get("projector", "pool_mpl")
    assert str(caught.value) == "no projector is called 'pool_mpl'; did you mean `pool_mlp`? known: mlp, pool_mlp"
    with pytest.raises(ValueError, match="it is the name of a component of kind encoder"):
        registry.get("projector", "siglip")
    with pytest.raises(ValueError, match="never import paths"):
        registry.get("projector", "torch.nn.Linear")
    with pytest.raises(ValueError, match="known: none"):
        registry.get("source", "jsonl")


def test_a_long_name_is_cut_and_costs_nothing():
    with pytest.raises(ValueError) as caught:
        Registry.of(Mlp).get("projector", "mlp" * 100_000)
    assert len(str(caught.value)) < 200


def test_registries_are_values():
    assert Registry.of(Mlp) == Registry.of(Mlp) != Registry.of(PoolMlp)
    with pytest.raises(AttributeError):
        Registry.of(Mlp).plugins = ()


def test_of_refuses_what_is_no_component():
    class Unfinished(ReaderConfig):
        makes: ClassVar[type] = Pixels

    with pytest.raises(ValueError, match="type is None"):
        Registry.of(Unfinished)


def test_neither_recipes_nor_the_registry_import_torch():
    code = (
        "import sys, omnikit.recipe, omnikit.registry; omnikit.registry.Registry.of();"
        "print(*{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(omnikit.__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
