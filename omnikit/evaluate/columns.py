"""The small language of definitions: templates with {column}s, and columns made of columns.

A template's {name} is a column and nothing else: no attributes, no calls, no formats. `{{` and `}}` are braces. An
operation makes a column out of others; there are as many as the benchmarks of the paper need, and each is listed in
docs/evaluation.md.
"""

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["OPERATIONS", "Row", "as_text", "checked_operation", "checked_template", "columns_of", "filled", "value_of"]

Row = Mapping[str, Any]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_LABEL = re.compile(r"\s*(?:\([A-Z]\)|[A-Z][.\uff0e\u3001):\uff1a])\s*")
"""Also with the full-width stop, comma and colon."""
_WIDEST = 20_000
"""Characters of a list that is written as text."""


def checked_template(text: str) -> str:
    """The template, once its braces are paired."""
    for found in _PARTS.finditer(text):
        if found[0] in "{}":
            raise ValueError(f"a lone {found[0]} in {text[:60]!r}; write {found[0] * 2} for the brace itself")
    return text


def columns_of(template: str) -> list[str]:
    """The columns that a template names."""
    return [found[1] for found in _PARTS.finditer(template) if found[1] is not None]


def filled(template: str, row: Row, where: str) -> str:
    """The template with the row's values; a column that the row has not is a ValueError."""

    def part(found: re.Match[str]) -> str:
        return found[0][0] if found[1] is None else as_text(value_of(row, found[1], where))

    return _PARTS.sub(part, template)


def value_of(row: Row, column: str, where: str) -> Any:  # noqa: ANN401
    """The row's value in a column; None where it is empty."""
    if column not in row:
        known = ", ".join(key for key in row if not key.startswith("_")) or "none"
        raise ValueError(f"{where}: has no column {column!r}; its columns: {known[:300]}")
    return row[column]


def as_text(value: object) -> str:
    """A value as a prompt shows it: nothing of nothing, a list's elements one after another."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(as_text, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # tables without a type for whole numbers that may be missing
    return str(value)


def _is_empty(value: object) -> bool:
    return value is None or value == "" or value == []


def _texts(row: Row, column: str, where: str) -> list[str]:
    value = value_of(row, column, where)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: {column} is {type(value).__name__}; a list is needed")
    return [as_text(one) for one in value]


# ----------------------------------------------------------------------------------------------------------- operations


def _text(row: Row, argument: str, where: str) -> str:
    return filled(argument, row, where)


def _letter(row: Row, argument: str, where: str) -> str:
    """The letter of a choice that is told by its number, counted from 0."""
    number = as_text(value_of(row, argument, where)).strip()
    if not number.isdecimal() or int(number) >= len(LETTERS):
        raise ValueError(f"{where}: {argument} is {number[:40]!r}; the number of a choice is needed, from 0")
    return LETTERS[int(number)]


def _place(row: Row, argument: Row, where: str) -> str:
    """The letter of a choice that is told by its text."""
    choices, answer = _texts(row, argument["of"], where), as_text(value_of(row, argument["value"], where))
    if answer not in choices:
        raise ValueError(f"{where}: {argument['value']} {answer[:60]!r} is none of the choices")
    return LETTERS[choices.index(answer)]


def _map(row: Row, argument: Row, where: str) -> Any:  # noqa: ANN401
    key = as_text(value_of(row, argument["of"], where))
    if key in argument["to"]:
        return argument["to"][key]
    if "else" in argument:
        return argument["else"]
    raise ValueError(f"{where}: {argument['of']} is {key[:60]!r}, which the definition does not map")


def _split(row: Row, argument: Row, where: str) -> str:
    text = as_text(value_of(row, argument["of"], where))
    parts = text.split(argument["by"])
    try:
        return parts[argument["at"]]
    except IndexError:
        raise ValueError(f"{where}: {argument['of']} is {text[:60]!r}; it has {len(parts)} parts") from None


def _remainder(row: Row, argument: Row, where: str) -> int:
    number = as_text(value_of(row, argument["of"], where))
    if not number.isdecimal():
        raise ValueError(f"{where}: {argument['of']} is {number[:40]!r}; a whole number is needed")
    return int(number) % int(argument["by"])


def _list(row: Row, argument: list[str], where: str) -> list[Any]:
    return [row[column] for column in argument if not _is_empty(row.get(column))]


def _first(row: Row, argument: list[str], where: str) -> Any:  # noqa: ANN401
    return next((row[column] for column in argument if not _is_empty(row.get(column))), None)


def _parse(row: Row, argument: str, where: str) -> list[str]:
    """A list that the table keeps as text, as Python writes it. Nothing is run: it is read as constants."""
    text = as_text(value_of(row, argument, where))
    try:
        if len(text) > _WIDEST:
            raise ValueError("too long")
        value = ast.literal_eval(text)
        if not isinstance(value, list):
            raise ValueError("no list")
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"{where}: {argument} is {text[:60]!r}; a list such as ['a', 'b'] is needed") from error
    return [as_text(one) for one in value]


def _accepted(row: Row, argument: str, where: str) -> Any:  # noqa: ANN401
    """A reference that is one text or, written as a list, several of which each is right."""
    text = as_text(value_of(row, argument, where))
    return _parse(row, argument, where) if text.startswith("[") and text.endswith("]") else text


def _unlabel(row: Row, argument: str, where: str) -> list[str]:
    """Choices without the labels "A." or "(A)" that the table writes before them."""
    return [_LABEL.sub("", one, count=1) if _LABEL.match(one) else one for one in _texts(row, argument, where)]


def _case(row: Row, argument: list[Row], where: str) -> str:
    """The text of the first case whose columns all have the values that it names."""
    for case in argument:
        wanted = case.get("when", {})
        if all(as_text(value_of(row, column, where)) == as_text(value) for column, value in wanted.items()):
            return filled(case["text"], row, where)
    return ""


def _replace(row: Row, argument: Row, where: str) -> str:
    return as_text(value_of(row, argument["of"], where)).replace(argument["old"], argument["new"])


def _field(row: Row, argument: Row, where: str) -> Any:  # noqa: ANN401
    """What a column that holds a mapping has under a name."""
    value = value_of(row, argument["of"], where)
    return value.get(argument["name"]) if isinstance(value, Mapping) else None


def _strip(row: Row, argument: str, where: str) -> str:
    return as_text(value_of(row, argument, where)).strip()


OPERATIONS: Mapping[str, Callable[[Row, Any, str], Any]] = {
    "text": _text,
    "letter": _letter,
    "place": _place,
    "map": _map,
    "split": _split,
    "remainder": _remainder,
    "list": _list,
    "first": _first,
    "parse": _parse,
    "accepted": _accepted,
    "unlabel": _unlabel,
    "case": _case,
    "replace": _replace,
    "strip": _strip,
    "field": _field,
}

_COLUMN = "the name of a column"
_HOLDS = "a text that holds something"
_FIELDS = {
    "place": {"of": _COLUMN, "value": _COLUMN},
    "map": {"of": _COLUMN, "to": "a mapping"},
    "split": {"of": _COLUMN, "by": _HOLDS, "at": "a whole number"},
    "remainder": {"of": _COLUMN, "by": "a whole number from 1"},
    "replace": {"of": _COLUMN, "old": _HOLDS, "new": "a text"},
    "field": {"of": _COLUMN, "name": "the name of an entry"},
}
"""What an operation needs under each of its keys."""
_MAY = {"map": {"else"}}


def _is(wanted: str, value: object) -> bool:
    """Whether a value is what `_FIELDS` says in words."""
    match wanted:
        case "a mapping":
            return isinstance(value, Mapping)
        case "a whole number" | "a whole number from 1":
            return isinstance(value, int) and not isinstance(value, bool) and (wanted[-1] != "1" or value >= 1)
    return isinstance(value, str) and (bool(value) or wanted != _HOLDS)


def _is_case(case: Mapping[str, Any]) -> bool:
    return set(case) <= {"when", "text"} and _is("a text", case.get("text")) and _is("a mapping", case.get("when", {}))


def checked_operation(operation: dict[str, Any]) -> dict[str, Any]:
    """The operation, once it is one that there is, with what it needs."""
    if len(operation) != 1 or next(iter(operation)) not in OPERATIONS:
        raise ValueError(
            f"a column is one operation, of: {', '.join(OPERATIONS)}; not {', '.join(operation) or 'none'}"
        )
    [(name, argument)] = operation.items()
    if name in _FIELDS:
        keys = set(argument) if isinstance(argument, Mapping) else set()
        needed = _FIELDS[name].keys()
        if not needed <= keys <= needed | _MAY.get(name, set()):
            raise ValueError(f"{name} needs {', '.join(sorted(needed))}; it has {', '.join(sorted(keys)) or 'none'}")
        if wrong := [key for key, wanted in _FIELDS[name].items() if not _is(wanted, argument[key])]:
            told = f"{_FIELDS[name][wrong[0]]}, not {argument[wrong[0]]!r}"
            raise ValueError(f"{name} needs under {wrong[0]} {told[:120]}")
    elif name in ("list", "first"):
        if not isinstance(argument, list) or not all(isinstance(one, str) for one in argument):
            raise ValueError(f"{name} needs a list of columns")
    elif name == "case":
        for case in argument if isinstance(argument, list) else [None]:
            if not isinstance(case, Mapping) or not _is_case(case):
                raise ValueError("case needs a list of {when: {column: value}, text: template}")
            checked_template(case["text"])
    elif not isinstance(argument, str):
        raise ValueError(f"{name} needs the name of a column" if name != "text" else "text needs a template")
    elif name == "text":
        checked_template(argument)
    return operation
