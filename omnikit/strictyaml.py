"""YAML, read strictly and with places, and written so that it reads back.

Recipes come from strangers and are edited by tired people. So: no tags, no anchors or aliases (billion laughs), no
merge keys, no equal keys, one document; only `true` and `false` are booleans (PyYAML makes `off` False and then
0.0); `1e-3` is a number (PyYAML: a string); nothing is a date. Built on PyYAML's events, before it would construct
anything. Every mapping knows the file and line of its keys and every string the folder that paths in it start from.
"""

import io
import math
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Place", "RecipeError", "Table", "Text", "read_file", "read_text", "write"]

MAX_BYTES = 256 * 1024  # 50 times the reference recipe; PyYAML reads about 100 KB/s
MAX_DEPTH = 40

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,4299})")  # more digits Python itself refuses
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_ODD = {sign + word: float(sign + word[1:]) for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")}
_ODD |= {word: math.nan for word in (".nan", ".NaN", ".NAN")}

_HINTS = {
    "mapping values are not allowed here": "put a value that holds `: ` in quotes, and look at the indentation",
    "that cannot start any token": "indent with spaces; put a value that starts with % @ or ` in quotes",
    "special characters are not allowed": "remove the control character",
    "expected alphabetic or numeric character": "a lone * or & has a meaning; the rule for all the rest is `rest`",
    "could not find expected ':'": "write `key: value`",
    "levels deep": "a recipe is flat",
}


class Place(NamedTuple):
    """Where something stands: `line` is 0 for what was typed on the command line."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


class RecipeError(ValueError):
    """What is wrong with a recipe: one line for each thing, all of them at once."""

    def __init__(self, messages: Iterable[str]) -> None:
        self.messages = tuple(dict.fromkeys(map(_on_one_line, messages)))
        shown = self.messages[:50]
        rest = len(self.messages) - len(shown)
        super().__init__("\n".join([*shown, f"and {rest} more"] if rest else shown))

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[tuple[str, ...]]]:
        return RecipeError, (self.messages,)


def _on_one_line(message: str) -> str:
    """The message with what is not printable escaped: it quotes strangers, who might write terminal commands."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


class Table(dict[str, Any]):
    """A mapping that knows the place of each of its keys."""

    def __init__(self, values: Any = (), places: dict[str, Place] | None = None) -> None:  # noqa: ANN401
        super().__init__(values)
        self.places: dict[str, Place] = dict(places or {})

    def put(self, key: str, value: Any, place: Place) -> None:  # noqa: ANN401
        """Set a key and its place."""
        self[key] = value
        self.places[key] = place


class Text(str):
    """A string that knows the folder of the file it was read from (`omnikit.component.Located`)."""

    folder: Path


def read_file(path: str | Path) -> Table:
    """The mapping that a YAML file holds; a RecipeError says everything that is wrong with it."""
    name, path = str(path), Path(path)
    try:
        mode = path.stat().st_mode
        with path.open("rb") if stat.S_ISREG(mode) else io.BytesIO() as file:  # opening a pipe would wait
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise RecipeError([f"{name}: cannot be read: {reason}; give the path of a recipe file"]) from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise RecipeError([f"{name}: is {what}; give a recipe file"])
    if len(data) > MAX_BYTES:
        raise RecipeError([f"{name}: is larger than {MAX_BYTES // 1024} KiB; a recipe is a short text"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError([f"{name}:{line}: is not UTF-8 ({error.reason}); save the file as UTF-8"]) from error
    value = read_text(text, name, path.parent.absolute())
    if not isinstance(value, Table):
        what = "the file is empty" if value is None else "the file holds no mapping"
        raise RecipeError([f"{name}:1: {what}; a recipe starts with `backbone: ...` or `extends: ...`"])
    return value


def read_text(text: str, name: str, folder: Path, *, lines: bool = True) -> Any:  # noqa: ANN401
    """The value that a YAML text holds. `name` and `folder` tell where it comes from."""
    reader = _Reader(name, folder, lines)
    try:
        value = reader.document(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
        line = mark.line if mark else text[: getattr(error, "position", 0)].count("\n")
        hint = next(
            (hint for words, hint in _HINTS.items() if words in str(problem)), "look at brackets and indentation"
        )
        reader.complain(line, f"not valid YAML: {' '.join(str(problem).split())}; {hint}")
    except (ValueError, OverflowError):  # PyYAML: chr() of an escape beyond Unicode
        reader.complain(0, "not valid YAML: an escape in quotes is no Unicode character; remove it")
    if reader.complaints:
        raise RecipeError(reader.complaints)
    return value


class _TooDeepError(yaml.YAMLError):
    def __init__(self, mark: Any) -> None:  # noqa: ANN401
        self.problem, self.problem_mark = f"more than {MAX_DEPTH} levels deep", mark


class _Reader:
    """One pass over PyYAML's events; what is refused is collected, so that all of it is shown."""

    def __init__(self, name: str, folder: Path, lines: bool) -> None:
        self.name, self.folder, self.lines = name, folder, lines
        self.complaints: list[str] = []

    def place(self, line: int) -> Place:
        return Place(self.name, line + 1 if self.lines else 0)

    def complain(self, line: int, message: str) -> None:
        self.complaints.append(f"{self.place(line)}: {message}")

    def document(self, events: Iterator[Any]) -> Any:  # noqa: ANN401
        value, seen = None, False
        for event in events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            mark: Any = event.start_mark
            if seen:
                self.complain(mark.line, "a second document; a recipe is one, remove the `---`")
                break
            if event.version or event.tags:
                self.complain(mark.line, "a % directive; remove it")
            value, seen = self.node(events, next(events), 1), True
        return value

    def node(self, events: Iterator[Any], event: Any, depth: int) -> Any:  # noqa: ANN401
        line = event.start_mark.line
        if depth > MAX_DEPTH:
            raise _TooDeepError(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self.complain(line, f"the alias *{str(event.anchor)[:60]}; write the value out, or use `extends`")
            return None
        if event.anchor is not None:
            self.complain(line, f"the anchor &{event.anchor[:60]}; write the value out, or use `extends`")
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
            self.complain(line, f"the tag {tag}; recipes hold plain values only, remove it")
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            values = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                values.append(self.node(events, event, depth + 1))
            return values
        return self.mapping(events, depth)

    def mapping(self, events: Iterator[Any], depth: int) -> Table:
        table = Table()
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self.node(events, event, depth + 1)
            value = self.node(events, next(events), depth + 1)
            place = self.place(event.start_mark.line)
            if not isinstance(key, str):
                self.complain(event.start_mark.line, f"the key {str(key)[:60]} is no word; put it in quotes if it is")
            elif key == "<<" and event.style is None:
                self.complain(event.start_mark.line, "the merge key <<; write the values out, or use `extends`")
            elif key in table:
                first = table.places[key].line
                self.complain(event.start_mark.line, f"the key {key[:60]!r} again (first in line {first}); remove one")
            else:
                table.put(str(key), value, place)
        return table

    def scalar(self, event: Any) -> Any:  # noqa: ANN401
        text: str = event.value
        if event.style is None and event.tag is None:
            known, value = _plain(text)
            if known:
                return value
        if bad := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"), None):
            self.complain(event.start_mark.line, f"the control character U+{ord(bad):04X}; remove it")
        located = Text(text)
        located.folder = self.folder
        return located


def _plain(text: str) -> tuple[bool, Any]:
    """(whether an unquoted scalar is more than a string, its value), as in YAML 1.2."""
    if _NULL.fullmatch(text):
        return True, None
    if _BOOL.fullmatch(text):
        return True, text[0] in "tT"
    if _INT.fullmatch(text):
        return True, int(text)
    if _FLOAT.fullmatch(text) and len(text) < 60:
        return True, float(text)
    return text in _ODD, _ODD.get(text)


# ------------------------------------------------------------------------------------------------------------- writing


class _Writer(yaml.SafeDumper):
    """Writes what `read_text` reads: a string that it would take for something else is quoted, and only that."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:  # noqa: ANN401
        if kind is not yaml.ScalarNode:
            return "tag:yaml.org,2002:" + ("map" if kind is yaml.MappingNode else "seq")
        if value == "<<" and implicit[0]:  # in quotes it is a string like any other
            return "tag:yaml.org,2002:merge"
        known, meant = _plain(value) if implicit[0] else (False, value)
        return "tag:yaml.org,2002:" + (_TAGS[type(meant)] if known else "str")


_TAGS = {type(None): "null", bool: "bool", int: "int", float: "float"}


def _text(writer: yaml.SafeDumper, text: str) -> yaml.Node:
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\n" in text else None)


def _mapping(writer: yaml.SafeDumper, values: dict[str, Any]) -> yaml.Node:
    return _short_on_one_line(writer.represent_mapping("tag:yaml.org,2002:map", values.items()))


def _sequence(writer: yaml.SafeDumper, values: Iterable[Any]) -> yaml.Node:
    return _short_on_one_line(writer.represent_sequence("tag:yaml.org,2002:seq", values))


def _short_on_one_line(node: yaml.CollectionNode) -> yaml.Node:
    node.flow_style = _width(node) < 90 and _depth(node) <= 2
    return node


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [inner for pair in node.value for inner in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _width(node: yaml.Node) -> int:
    """About how many characters the node takes on one line."""
    inside = _inside(node)
    return 2 + sum(map(_width, inside)) if inside else len(node.value) + 2


def _depth(node: yaml.Node) -> int:
    return 1 + max(map(_depth, _inside(node)), default=0) if _inside(node) else 0


def _float(writer: yaml.SafeDumper, value: float) -> yaml.Node:
    assert math.isfinite(value), "schemas refuse NaN and infinities"
    return writer.represent_scalar("tag:yaml.org,2002:float", repr(value))


_Writer.add_representer(str, _text)
_Writer.add_representer(dict, _mapping)
_Writer.add_representer(list, _sequence)
_Writer.add_representer(tuple, _sequence)
_Writer.add_representer(float, _float)


def write(value: Any) -> str:  # noqa: ANN401
    """The value as YAML, keys in their order, short mappings on one line."""
    return yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=math.inf)
