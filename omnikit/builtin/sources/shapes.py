"""The shapes that records have, wherever they come from, and the one Sample that each becomes.

Five are known by their keys: omnikit's own `turns`; `messages` (OpenAI's, and what vLLM, Qwen and TRL made of them);
`conversations` (LLaVA's and ShareGPT's); `question` and `answer`; `caption` (or `text`). All but the first are read as
a conversation. What they have in common, such as lists of media beside the text, is understood in each.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omnikit.builtin.sources.media import medium_of
from omnikit.builtin.sources.turns import ROLES, Content, as_text, checked, own_turns
from omnikit.component import Medium, Sample, Turn
from omnikit.media.kinds import KINDS

__all__ = ["COLUMNS", "Shaping", "named", "sample_of", "shape_of"]

COLUMNS = {
    "turns": "turns",
    "messages": "messages",
    "conversations": "conversations",
    "question": "question",
    "answer": "question",
    "caption": "caption",
    "text": "caption",
}
"""The keys that tell of a shape, the first one found deciding."""

_SPEAKERS = {
    **{role: role for role in ROLES},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bard": "assistant", "bot": "assistant"},
    "model": "assistant",
}
_TEXTS = ("text", "input_text", "output_text")
_MORE = {"audio": ("sound",)}
"""Other keys under which records keep a modality."""


class Shaping(NamedTuple):
    """How a source reads its records: what they may hold, our names of their columns, and what asks for a caption."""

    modalities: tuple[str, ...] = ()
    columns: Mapping[str, str] = {}
    prompt: str = ""


def named(record: object, shaping: Shaping) -> Any:  # noqa: ANN401  (whatever the file holds)
    """The record with our names for its columns."""
    if not shaping.columns or not isinstance(record, Mapping):
        return record
    theirs = set(shaping.columns.values())
    kept = {key: value for key, value in record.items() if key not in theirs and key not in shaping.columns}
    return kept | {ours: record[name] for ours, name in shaping.columns.items() if record.get(name) is not None}


def shape_of(record: object, shaping: Shaping) -> str | None:
    """The name of the record's shape, None where it has none that is known. Columns named in the recipe go first."""
    if not isinstance(record, Mapping):
        return None
    for key in sorted(COLUMNS, key=lambda key: key not in shaping.columns):
        shape, value = COLUMNS[key], record.get(key)
        if shape == key and key in ("turns", "messages", "conversations") and isinstance(value, list):
            return shape
        if shape == "question" and not {"question", "answer"} - set(record):
            return shape
        if shape == "caption" and isinstance(value, str):
            return shape
    return None


def sample_of(record: object, shape: str | None, where: str, folder: Path, shaping: Shaping) -> Sample:
    """The record as a Sample; every fault is a ValueError that begins with `where`."""
    if not isinstance(record, Mapping) or shape is None:
        has = f" (it has {', '.join(map(str, record))})"[:200] if isinstance(record, Mapping) and record else ""
        raise ValueError(
            f'{where}: has no list "turns", nor messages, conversations, a question and an answer, or a caption; '
            f"name its columns in `columns`{has}"
        )
    name, kind = record.get("id"), str(record.get("kind", ""))
    id = where if name in (None, "") else str(name)
    if shape == "turns":
        return Sample(id, own_turns(record, where, folder, frozenset(shaping.modalities)), kind)
    pool = _media_beside(record, where, folder, shaping)
    if shape == "caption" and not pool:
        raise ValueError(f"{where}: has a caption but no medium that it is of; name its column in `columns`")
    turns = _placed([*_spoken(record, shape, where, folder, shaping)], pool, where)
    return Sample(id, checked(turns, where), kind)


# --------------------------------------------------------------------------------------------------------- what is said


def _spoken(record: Mapping[str, Any], shape: str, where: str, folder: Path, shaping: Shaping) -> Iterator[Turn]:
    """The turns, with a `_Place` for each medium that stands beside the text."""
    for number, turn in enumerate(_messages(record, shape, where, shaping), 1):
        place = f"{where}: turn {number}"
        said = turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None
        role = _SPEAKERS.get(said) if isinstance(said, str) else None
        if role is None:
            raise ValueError(f"{place}: has no role that is known ({said!r:.40}); roles are {', '.join(_SPEAKERS)}")
        content = turn.get("content", turn.get("value"))
        if isinstance(content, str):
            parts = _cut(as_text(content, place), shaping.modalities)
        elif isinstance(content, list):
            parts = (_part(part, place, folder, shaping) for part in content)
        else:
            raise ValueError(f"{place}: content is neither a text nor a list of parts")
        yield Turn(role, tuple(parts))


def _messages(record: Mapping[str, Any], shape: str, where: str, shaping: Shaping) -> Iterable[Any]:
    if shape in ("messages", "conversations"):
        turns: list[Any] = record[shape]
        system = record.get("system")
        if not isinstance(system, str) or not system:
            return turns
        opened = turns and isinstance(turns[0], Mapping) and turns[0].get("role", turns[0].get("from")) == "system"
        return turns if opened else [{"role": "system", "content": system}, *turns]
    if shape == "question":
        question, answer = record["question"], record["answer"]
    else:
        caption = record.get("caption")
        question, answer = shaping.prompt, caption if isinstance(caption, str) else record.get("text")
    if not isinstance(question, str) or not isinstance(answer, str):
        seen = f"{type(question).__name__} and {type(answer).__name__}"
        raise ValueError(f"{where}: {shape}: question and answer are {seen}; each is one text")
    answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return [{"role": "user", "content": question}, answered]


def _cut(text: str, modalities: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """A text cut at its placeholders. A line break that sets one apart belongs to it, as LLaVA writes them.

    Only the source's own modalities have placeholders: of a source without video, `<video>` is an HTML tag.
    """
    names = "|".join(re.escape(name) for name in modalities)
    pieces = re.split(rf"\n?<({names})>\n?", text) if names else [text]
    for number, piece in enumerate(pieces):
        if number % 2:
            yield piece, _Place()
        elif piece:
            yield "text", piece


def _part(part: object, where: str, folder: Path, shaping: Shaping) -> tuple[str, Any]:
    """A part of a content: typed as OpenAI, vLLM, Qwen or TRL have it, or just {modality or "text": value}."""
    fields = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    type = fields.get("type", next(iter(fields), None))
    if not isinstance(type, str):
        raise ValueError(f"{where}: a part is {part!r:.60}; write {{'type': 'text', 'text': ...}} or a medium")
    if type in _TEXTS:
        return "text", as_text(fields.get("text"), where)
    modality = type.removeprefix("input_").removesuffix("_url")
    if modality not in shaping.modalities:
        raise ValueError(_unknown(modality, where, shaping.modalities))
    value = next((fields[key] for key in (type, modality, "url", "path") if key in fields), None)
    if isinstance(value, Mapping) and "url" in value:
        value = value["url"]
    if isinstance(value, Mapping) and "data" in value:
        try:
            value = base64.b64decode(value["data"], validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise ValueError(f"{where}: {modality}: is no base64 ({error}); encode it again") from error
    # TRL and others say {"type": "image"} and keep the pictures in a list beside the messages.
    number = fields.get("index")
    if value is None:
        return modality, _Place(number if isinstance(number, int) else None)
    return modality, medium_of(value, f"{where}: {modality}", folder)


# ------------------------------------------------------------------------------------------------ media beside the text


def _media_beside(record: Mapping[str, Any], where: str, folder: Path, shaping: Shaping) -> dict[str, list[Medium]]:
    """The media that a record keeps outside its text, under `image`, `images` and so on, in the record's order."""
    keys = {}
    for modality in (*shaping.modalities, *KINDS):
        for key in (modality, *_MORE.get(modality, ())):
            keys[key] = keys[f"{key}s"] = modality
    found: dict[str, list[Medium]] = {}
    for key, value in record.items():
        kept = keys.get(key)
        if kept is None or value is None or value in ("", []):
            continue
        if kept not in shaping.modalities:
            raise ValueError(_unknown(kept, where, shaping.modalities))
        for one in value if isinstance(value, list) else [value]:
            found.setdefault(kept, []).append(medium_of(one, f"{where}: {key}", folder))
    return found


def _placed(turns: list[Turn], pool: "dict[str, list[Medium]]", where: str) -> tuple[Turn, ...]:
    """The turns with the media at their placeholders; those of a modality that has none go first, to the user."""
    places = {name: 0 for name in pool}
    for turn in turns:
        for name, value in turn.content:
            places[name] = places.get(name, 0) + isinstance(value, _Place)
    first: list[tuple[str, str | Medium]] = []
    for name, number in places.items():
        media = pool.get(name, [])
        if not number:
            first += [(name, medium) for medium in media]
        elif number != len(media):
            raise ValueError(
                f"{where}: has {number} placeholders for {name} and {len(media)} of them; write as many of each"
            )
    coming = {name: iter(media) for name, media in pool.items()}
    placed = []
    for turn in turns:
        own: Content = tuple(
            (name, value.medium(name, pool, coming, where) if isinstance(value, _Place) else value)
            for name, value in turn.content
        )
        if first and turn.role == "user":
            own, first = (*first, *own), []
        placed.append(Turn(turn.role, own))
    if first:
        raise ValueError(f"{where}: has media but no turn of the user to show them in; add one")
    return tuple(placed)


class _Place(NamedTuple):
    """Where a medium goes that stands beside the text: the next one, or that of a number."""

    number: int | None = None

    def medium(
        self, name: str, pool: "dict[str, list[Medium]]", coming: "dict[str, Iterator[Medium]]", where: str
    ) -> Medium:
        if self.number is None:
            return next(coming[name])
        if not 0 <= self.number < len(pool[name]):
            raise ValueError(f"{where}: shows {name} number {self.number} of {len(pool[name])}; they count from 0")
        return pool[name][self.number]


def _unknown(modality: str, where: str, modalities: Iterable[str]) -> str:
    known = ", ".join(sorted(modalities)) or "none"
    return f"{where}: modality {modality!r} is not one of the source's ({known}); add it to `modalities`"
