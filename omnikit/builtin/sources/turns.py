"""omnikit's own records: `{"id": ..., "turns": [{"role": ..., "content": [...]}, ...]}`, read strictly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnikit.builtin.sources.media import medium_of
from omnikit.component import Medium, NothingToLearn, Turn

__all__ = ["ROLES", "Content", "as_text", "checked", "own_turns"]

ROLES = ("system", "user", "assistant")

Content = tuple[tuple[str, str | Medium], ...]


def own_turns(record: Mapping[str, Any], where: str, folder: Path, modalities: frozenset[str]) -> tuple[Turn, ...]:
    """The turns of a record of this shape; every fault, an unknown key among them, is a ValueError."""
    unknown = sorted(set(record) - {"id", "kind", "turns"})
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; a record has id, kind and turns")
    turns = record["turns"]
    return checked(
        tuple(_turn(turn, f"{where}: turn {number}", folder, modalities) for number, turn in enumerate(turns, 1)), where
    )


def checked(turns: tuple[Turn, ...], where: str) -> tuple[Turn, ...]:
    """The turns, once there is something to learn in them."""
    if not any(turn.role == "assistant" for turn in turns):
        raise NothingToLearn(f"{where}: has no assistant turn; there is nothing to learn or to answer")
    for number, turn in enumerate(turns, 1):
        if turn.role == "assistant" and not any(name == "text" and str(value).strip() for name, value in turn.content):
            raise NothingToLearn(
                f"{where}: turn {number}: the assistant's answer is empty; remove the record or write the answer"
            )
    return turns


def as_text(value: object, where: str) -> str:
    """The value, once it is a text that can be written down."""
    if not isinstance(value, str):
        raise ValueError(f"{where}: text is {type(value).__name__}; write a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: text holds half a character ({error.reason}); write it whole") from None
    return value


def _turn(turn: object, where: str, folder: Path, modalities: frozenset[str]) -> Turn:
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES or set(turn) != {"role", "content"}:
        raise ValueError(f"{where}: is no turn; write {{'role': one of {', '.join(ROLES)}, 'content': ...}}")
    content = turn["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError(f"{where}: content is neither a text nor a list of parts")
    return Turn(turn["role"], tuple(_part(part, where, folder, modalities) for part in parts))


def _part(part: object, where: str, folder: Path, modalities: frozenset[str]) -> tuple[str, str | Medium]:
    if not isinstance(part, Mapping) or len(part) != 1:
        raise ValueError(f"{where}: a part has exactly one key: text or a modality")
    [(name, value)] = part.items()
    if name == "text":
        return name, as_text(value, where)
    if name not in modalities:
        known = ", ".join(sorted(modalities)) or "none"
        raise ValueError(f"{where}: modality {name!r} is not one of the source's ({known}); add it to `modalities`")
    return name, medium_of(value, f"{where}: {name}", folder)
