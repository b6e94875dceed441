"""What `omnikit plugins new` writes: the templates of a kind, with names filled in."""

import keyword
import tempfile
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from omnikit.registry import NAME, Registry

END = ".template"
"""Templates are no Python yet: the ending keeps tools from taking them for it."""


def write_package(name: str, kind: str, out: Path) -> Path:
    """Writes the package into the folder `omnikit-<name>` of `out` and returns it; all of it, or nothing."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError(
            f"omnikit plugins new: {name[:60]!r} is no name; recipes use words of a-z, 0-9 and _, such as my_{kind}"
        )
    registry = Registry.load()
    if name in registry.types(kind):
        raise ValueError(f"omnikit plugins new: there is a {kind} called {name}; choose another name")
    if name in (plugin.name for plugin in registry.plugins):
        raise ValueError(f"omnikit plugins new: there is a plugin called {name}; choose another name")
    folder = out / f"omnikit-{name.replace('_', '-')}"
    if folder.exists():
        raise ValueError(f"omnikit plugins new: {folder} is there already; choose another name, or --out elsewhere")
    words = {
        "name": name,
        "kind": kind,
        "package": folder.name,
        "module": f"omnikit_{name}",
        "title": "".join(part.capitalize() for part in name.split("_")),
    }
    templates = files("omnikit.cli").joinpath("templates")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".omnikit-new-") as beside:
        whole = Path(beside, folder.name)
        for part in ("package", kind):
            _write(templates.joinpath(part), whole, words)
        whole.rename(folder)
    return folder


def _write(templates: Traversable, folder: Path, words: dict[str, str]) -> None:
    folder.mkdir(exist_ok=True)
    for entry in templates.iterdir():
        # The folder `module` of a template is the package's own.
        target = folder / (words["module"] if entry.name == "module" else entry.name.removesuffix(END))
        if entry.is_dir():
            _write(entry, target, words)
        elif entry.name.endswith(END):
            target.write_text(Template(entry.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
