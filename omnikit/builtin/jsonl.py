"""The `jsonl` source: one JSON record a line, media as paths beside the file."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from omnikit.component import Medium, RecipePath, Sample, SourceConfig, Turn

ROLES = ("system", "user", "assistant")


class Jsonl(SourceConfig):
    """Records `{"id": ..., "turns": [{"role": "user", "content": [{"image": "a.png"}, {"text": "..."}]}, ...]}`.

    A medium is a path relative to the file, or `{"path": ..., "start": seconds, "end": seconds}`. `kind` names what a
    record asks, for reports. `text` alone as content is short for one text part.
    """

    type: ClassVar[str] = "jsonl"

    path: RecipePath

    def missing(self) -> str | None:
        """The file's path when it is not there."""
        return None if Path(self.path).is_file() else self.path

    def fingerprint(self) -> str:
        """The file's sha256. Media are not read for it."""
        with Path(self.path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def open(self) -> Sequence[Sample]:
        """The records, parsed when asked for."""
        return JsonlFile(Path(self.path), frozenset(self.modalities))

    @classmethod
    def specimen(cls, folder: Path) -> Self:
        """Records of every shape: text alone, a picture, a part of a sound, a system turn, a blank line between."""
        from omnikit.testing import pictures, sounds

        picture, sound = (Path(media[0].source).name for media in (pictures(folder), sounds(folder)))
        questions: list[Any] = [
            "zwei und zwei?",
            [{"image": picture}, {"text": "what is it?"}],
            [{"text": "listen"}, {"audio": {"path": sound, "start": 0.25, "end": 1.0}}],
        ]
        records: list[dict[str, Any]] = [
            {
                "id": f"specimen-{number}",
                "kind": "odd" if number % 2 else "",
                "turns": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": [{"text": f"answer {number}, grün"}]},
                ][number % 2 :],
            }
            for number, question in enumerate(questions * 2)
        ]
        path = folder / "specimen.jsonl"
        path.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
        return cls(path=str(path), modalities=("image", "audio"))


class JsonlFile(Sequence[Sample]):
    """The records of one file by index. Only where lines begin is held in memory."""

    def __init__(self, path: Path, modalities: frozenset[str]) -> None:
        self.path, self.modalities = path, modalities

    @cached_property
    def _lines(self) -> list[tuple[int, int, int]]:
        """(line number, first byte, length) of every line that is not blank."""
        found, begin = [], 0
        try:
            with self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        found.append((number, begin, len(line)))
                    begin += len(line)
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be read ({error.strerror}); give a JSONL file") from error
        if not found:
            raise ValueError(f"{self.path}: holds no record; write one JSON object a line")
        return found

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  (Sequence's own signature has overloads)
        number, begin, length = self._lines[index]
        with self.path.open("rb") as file:
            file.seek(begin)
            line = file.read(length)
        where = f"{self.path}:{number}"
        try:
            record = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:  # also for too many digits or brackets
            raise ValueError(f"{where}: is no JSON ({error}); write one JSON object a line") from error
        return parse(record, where, self.path.parent, self.modalities)


def parse(record: object, where: str, folder: Path, modalities: frozenset[str]) -> Sample:
    """The record as a Sample; every fault is a ValueError that begins with `where`."""
    if not isinstance(record, dict) or not isinstance(record.get("turns"), list):
        raise ValueError(f'{where}: has no list "turns"; write {{"id": ..., "turns": [...]}}')
    unknown = sorted(set(record) - {"id", "kind", "turns"})
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; a record has id, kind and turns")
    turns = tuple(
        _turn(turn, f"{where}: turn {number}", folder, modalities) for number, turn in enumerate(record["turns"], 1)
    )
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError(f"{where}: has no assistant turn; there is nothing to learn or to answer")
    name = record.get("id")
    return Sample(where if name in (None, "") else str(name), turns, str(record.get("kind", "")))


def _no_number(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _turn(turn: object, where: str, folder: Path, modalities: frozenset[str]) -> Turn:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES or set(turn) != {"role", "content"}:
        raise ValueError(f"{where}: is no turn; write {{'role': one of {', '.join(ROLES)}, 'content': ...}}")
    content = turn["content"]
    parts = [{"text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError(f"{where}: content is neither a text nor a list of parts")
    parsed = tuple(_part(part, where, folder, modalities) for part in parts)
    if turn["role"] == "assistant" and not any(name == "text" and str(value).strip() for name, value in parsed):
        raise ValueError(f"{where}: the assistant's answer is empty; remove the record or write the answer")
    return Turn(turn["role"], parsed)


def _part(part: object, where: str, folder: Path, modalities: frozenset[str]) -> tuple[str, str | Medium]:
    if not isinstance(part, dict) or len(part) != 1:
        raise ValueError(f"{where}: a part has exactly one key: text or a modality")
    [(name, value)] = part.items()
    if name == "text":
        if not isinstance(value, str):
            raise ValueError(f"{where}: text is {type(value).__name__}; write a string")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{where}: text holds half a character ({error.reason}); write it whole") from None
        return name, value
    if name not in modalities:
        known = ", ".join(sorted(modalities)) or "none"
        raise ValueError(f"{where}: modality {name!r} is not one of the source's ({known}); add it to `modalities`")
    return name, _medium(value, f"{where}: {name}", folder)


def _medium(value: object, where: str, folder: Path) -> Medium:
    fields = {"path": value} if isinstance(value, str) else value
    if (
        not isinstance(fields, dict)
        or not isinstance(fields.get("path"), str)
        or set(fields) - {"path", "start", "end"}
    ):
        raise ValueError(f"{where}: write a path, or {{'path': ..., 'start': seconds, 'end': seconds}}")
    start, end = (fields.get(key) for key in ("start", "end"))
    for seconds in (start, end):
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0):
            raise ValueError(f"{where}: start and end are seconds, not {seconds!r}")
    if end is not None and end <= (start or 0):
        raise ValueError(f"{where}: ends at {end} s, before it starts; end must be greater than start")
    return Medium(str(folder / fields["path"]), start, end)
