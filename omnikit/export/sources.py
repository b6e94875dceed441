"""The source code that a model needs, copied out of packages into files that lie beside each other.

transformers loads a model's own code from files of one folder that import each other by `from .name import ...`. So
each module becomes one file (`omnikit.media.films` becomes `omnikit__media__films.py`), of which those definitions are
kept that are reached from what is asked for; what a component answers for training alone is left out before that.
Only text is looked at: nothing is imported that was not, and nothing is run.
"""

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from omnikit.component import Component

UNUSED = frozenset({"presets", "tiny", "cost", "sizes", "pretrained", "specimens"})
"""What a component has for recipes, plans, tests and the start of training, and no model needs that is trained."""
HIDDEN = {
    "__file__": "reads a file of its package; keep what is in it as Python",
    "__import__": "imports what only running it tells; write an import",
    "import_module": "imports what only running it tells; write an import",
}
"""Names by which code reaches for what its text does not show."""
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Name = tuple[str, str]
"""A module, and a name that it defines."""


class NotCopied(ValueError):
    """Code that cannot be copied: *module:line: why; what would be right*."""


@dataclass
class _Module:
    """One module, and what is needed of it."""

    name: str
    lines: list[str]
    tree: ast.Module
    kept: set[ast.stmt] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    bound: dict[str, list[ast.stmt]] = field(default_factory=dict)
    """The statements of the module itself that give a name its value."""

    def __post_init__(self) -> None:
        for statement in self.tree.body:
            for name in _bound(statement):
                self.bound.setdefault(name, []).append(statement)

    def refused(self, node: ast.AST, reason: str) -> NotCopied:
        return NotCopied(f"{self.name}:{getattr(node, 'lineno', 1)}: {reason}")


class Sources:
    """Modules of `own` packages as files of one folder.

    `files` names the files of certain modules, and `instead` the text that stands for another; `require` asks for a
    name and all that it needs.
    """

    def __init__(self, own: frozenset[str], files: Mapping[str, str], instead: Mapping[str, str]) -> None:
        self.own, self.named, self.instead = own, files, instead
        self.modules: dict[str, _Module] = {}
        self.requirements: set[str] = set()
        """The packages, as they are called where they are installed from, that the code imports."""

    def require(self, module: str, name: str) -> None:
        """Keep this name of a module, and what it needs. A `NotCopied` says what stands in the way."""
        waiting: list[Name] = [(module, name)]
        while waiting:
            module, name = waiting.pop()
            found = self._module(module)
            if name in found.names:
                continue
            found.names.add(name)
            if name not in found.bound:
                raise NotCopied(f"{module}: defines no {name}; import it from the module that defines it")
            # What a module does when it is imported, such as to register a function, it does in the copy too.
            acts = [one for one in found.tree.body if _acts(one)] if not found.kept else []
            for statement in (*found.bound[name], *acts):
                if isinstance(statement, ast.Import | ast.ImportFrom):
                    found.kept.add(statement)
                    waiting += self._imported(found, statement, name)
                elif statement not in found.kept:
                    found.kept.add(statement)
                    waiting += self._needs(found, statement)

    def files(self) -> dict[str, str]:
        """The text of every file by its name."""
        return {f"{self._file(name)}.py": self._text(module) for name, module in sorted(self.modules.items())}

    def _file(self, module: str) -> str:
        return self.named.get(module, module.replace(".", "__"))

    def _module(self, name: str) -> _Module:
        if name not in self.modules:
            text = self.instead.get(name) or text_of(name)
            found = _Module(name, text.splitlines(), ast.parse(text))
            if "*" in found.bound:
                raise found.refused(found.bound["*"][0], "imports what its text does not name; write the names for `*`")
            self.modules[name] = found
        return self.modules[name]

    def _needs(self, module: _Module, statement: ast.stmt) -> Iterator[Name]:
        """The names of own modules that a statement speaks of."""
        unused = set(_unused(module.name, statement))
        optional = set(_optional(statement))
        for node in _walk(statement, unused):
            if node in optional:
                continue
            name = getattr(node, "id", getattr(node, "attr", None))
            if name in HIDDEN:
                raise module.refused(node, HIDDEN[name])
            if isinstance(node, ast.Name):
                if node.id in module.bound:
                    yield module.name, node.id
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    yield from self._imported(module, node, alias.asname or alias.name)
            elif isinstance(node, ast.AnnAssign):  # a field's annotation, which pydantic reads, may be quoted
                for name in re.findall(r"\w+", " ".join(_quoted(node.annotation))):
                    if name in module.bound:
                        yield module.name, name

    def _imported(self, module: _Module, node: ast.Import | ast.ImportFrom, name: str) -> Iterator[Name]:
        """The name of an own module that an import gives `name`; a package from elsewhere is noted."""
        alias = next(one for one in node.names if name in (one.asname or one.name, one.name.partition(".")[0]))
        source = _source(module.name, node) if isinstance(node, ast.ImportFrom) else alias.name
        if source.partition(".")[0] in self.own:
            if isinstance(node, ast.Import):
                raise module.refused(node, f"imports {source} whole; write `from {source} import NAME, ...`")
            if alias.name not in self._module(source).bound and _exists(f"{source}.{alias.name}"):
                wanted = f"from {source}.{alias.name} import NAME, ..."
                raise module.refused(node, f"imports the module {source}.{alias.name} whole; write `{wanted}`")
            yield source, alias.name
        elif source in ("importlib.resources", "pkgutil"):
            raise module.refused(node, f"reads files of its package by {source}; keep what is in them as Python")
        elif source.partition(".")[0] not in sys.stdlib_module_names:
            try:
                self.requirements.add(_public(source.partition(".")[0]))
            except NotCopied as error:
                raise module.refused(node, str(error)) from None

    def _text(self, module: _Module) -> str:
        """The module's text, less what is not kept."""
        blocks = [f"# Copied from {module.name} by omnikit: what this model needs of it."]
        previous: ast.stmt | None = None
        for statement in module.tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                if statement in module.kept:
                    gap = _gap(module.lines, statement.lineno)
                    blocks.append(gap + self._import(module, statement, module.names))
            elif statement in module.kept or (_is_text(statement) and (previous is None or previous in module.kept)):
                blocks.append(self._block(module, statement))
            previous = statement
        return "\n".join(blocks) + "\n"

    def _block(self, module: _Module, statement: ast.stmt) -> str:
        """A statement's own lines, with the comments above it, its imports rewritten and what is unused left out."""
        first, last = _first_line(statement), statement.end_lineno or statement.lineno
        while first > 1 and module.lines[first - 2].startswith("#"):
            first -= 1
        lines: dict[int, str] = {number: module.lines[number - 1] for number in range(first, last + 1)}
        unused = set(_unused(module.name, statement))
        for member in unused:
            begin, end = _first_line(member), member.end_lineno or member.lineno
            while begin > first and lines.get(begin - 1, "").lstrip().startswith("#"):
                begin -= 1
            for number in range(begin, end + 1):
                del lines[number]
        for node in _walk(statement, unused):
            if isinstance(node, ast.Import | ast.ImportFrom):
                indent = " " * node.col_offset
                lines[node.lineno] = indent + self._import(module, node)
                for number in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1):
                    del lines[number]
        text = "\n".join(line.rstrip() for _, line in sorted(lines.items()))
        return _gap(module.lines, first) + re.sub(r"\n{3,}(?= )", "\n\n", text).strip("\n")

    def _import(self, module: _Module, node: ast.Import | ast.ImportFrom, names: set[str] | None = None) -> str:
        """The import as it is written in the folder, of `names` only."""
        aliases = [
            alias for alias in node.names if names is None or (alias.asname or alias.name.partition(".")[0]) in names
        ]
        if isinstance(node, ast.ImportFrom):
            source = _source(module.name, node)
            if source.partition(".")[0] in self.own:
                return ast.unparse(ast.ImportFrom(self._file(source), aliases, 1))
            return ast.unparse(ast.ImportFrom(source, aliases, 0))
        return ast.unparse(ast.Import(aliases))


def text_of(module: str) -> str:
    """The source code of a module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise NotCopied(f"{module}: is no file of Python; write in Python what is to be exported")
    return Path(spec.origin).read_text(encoding="utf-8")


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # what it would be in is no package
        return False


@cache
def _public(package: str) -> str:
    """The name under which others can install what is imported by this one."""
    names = packages_distributions().get(package, [])
    for name in names:
        try:
            local = distribution(name).read_text("direct_url.json")
        except PackageNotFoundError:
            continue
        if local is None or "dir_info" not in json.loads(local):
            return name
    told = f"which is installed here from a folder of its own ({names[0]})" if names else "which no package brings"
    raise NotCopied(f"imports {package}, {told}: others could not install it; put what is needed into the plugin")


def _source(module: str, node: ast.ImportFrom) -> str:
    """The full name of the module that is imported from."""
    if not node.level:
        return node.module or ""
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    package = module if is_package else module.rpartition(".")[0]
    return importlib.util.resolve_name("." * node.level + (node.module or ""), package)


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a statement of a module gives a value."""
    if isinstance(node, Definition):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or (alias.name.partition(".")[0] if isinstance(node, ast.Import) else alias.name)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Tuple | ast.List | ast.Starred) or not (
        isinstance(node, ast.expr) or _is_for_types(node)
    ):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def _acts(statement: ast.stmt) -> bool:
    """Whether a statement does something beyond giving names their values."""
    if isinstance(statement, Definition | ast.Import | ast.ImportFrom | ast.Pass) or _is_text(statement):
        return False
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return not all(isinstance(target, ast.Name | ast.Tuple) for target in targets)
    return not _is_for_types(statement)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_for_types(statement: ast.AST) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _first_line(statement: ast.stmt) -> int:
    decorators = statement.decorator_list if isinstance(statement, Definition) else []
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _gap(lines: list[str], first: int) -> str:
    """As many empty lines as there are above a line."""
    above = 0
    while above < min(first - 1, 2) and not lines[first - 2 - above].strip():
        above += 1
    return "\n" * above


def _quoted(annotation: ast.expr) -> Iterator[str]:
    return (
        node.value for node in ast.walk(annotation) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _walk(node: ast.AST, without: set[ast.stmt]) -> Iterator[ast.AST]:
    """The node and all below it, but for these statements and for imports that are for annotations alone."""
    yield node
    for child in ast.iter_child_nodes(node):
        if child in without or _is_for_types(child):
            continue
        yield from _walk(child, without)


def _optional(statement: ast.stmt) -> Iterator[ast.AST]:
    """Imports from elsewhere that a statement can do without, since it catches their failing."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(one.type or node) for one in node.handlers):
            yield from (one for one in node.body if isinstance(one, ast.Import | ast.ImportFrom))


def _unused(module: str, statement: ast.stmt) -> Iterator[ast.stmt]:
    """The members of a component's class that are `UNUSED`, unless another member speaks of them."""
    found = getattr(sys.modules.get(module), statement.name, None) if isinstance(statement, ast.ClassDef) else None
    if not isinstance(statement, ast.ClassDef) or not isinstance(found, type) or not issubclass(found, Component):
        return
    members = {name: member for member in statement.body for name in _bound(member) if name in UNUSED}
    rest = [member for member in statement.body if member not in members.values()]
    spoken = {node.attr for member in rest for node in ast.walk(member) if isinstance(node, ast.Attribute)}
    yield from (member for name, member in members.items() if name not in spoken)
