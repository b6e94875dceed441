"""Questions made of rows, as a definition says."""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnikit import cache
from omnikit.component import Medium, Sample, Turn
from omnikit.evaluate.benchmark import Question
from omnikit.evaluate.columns import LETTERS, OPERATIONS, Row, as_text, filled, value_of
from omnikit.evaluate.tables import Table, files_of, located, opened

if TYPE_CHECKING:
    from omnikit.evaluate.definition import Definition, Files, Shown

__all__ = ["Questions", "fingerprint"]

Content = tuple[tuple[str, str | Medium], ...]


class Questions(Sequence[Question]):
    """The questions of a benchmark, each made when it is taken."""

    def __init__(self, name: str, about: "Definition", folder: Path | None) -> None:
        self.name, self.about = name, about
        self.folder = located(name, about, folder)
        self.table = self._opened(about.data)
        self.indices = self._chosen()
        if not self.indices:
            raise ValueError(f"{name}: none of the {len(self.table):,} rows in {self.folder} is a question of it")

    def _opened(self, about: "Files") -> Table:
        return opened(files_of(self.folder, about.files), about, self.folder)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  (Sequence's own signature has overloads)
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        at = self.indices[index]
        return self._question(self._row(at), self.table.where(at))

    def _chosen(self) -> list[int]:
        """The rows that `where` and `present` leave."""
        keep = [True] * len(self.table)
        for column, wanted in self.about.where.items():
            texts = {as_text(one) for one in wanted}
            keep = [kept and as_text(one) in texts for kept, one in zip(keep, self.table.values(column), strict=True)]
        for column in self.about.present:
            values = self.table.values(column)
            keep = [kept and one not in (None, "", []) for kept, one in zip(keep, values, strict=True)]
        return [index for index, kept in enumerate(keep) if kept]

    # ------------------------------------------------------------------------------------------------------------- rows

    @cached_property
    def _joined(self) -> Sequence[tuple[str, Mapping[str, Row]]]:
        """(template of the key, rows by key) of each table that is joined."""
        found = []
        for join in self.about.data.join:
            table = self._opened(join)
            rows = [table.row(index) for index in range(len(table))]
            others = {as_text(row.get(join.by)): _plain(row) for row in rows}
            found.append((join.key or f"{{{join.by}}}", others))
        return found

    def _row(self, at: int) -> dict[str, Any]:
        """The row with the columns of the joined tables, and those that are made of all."""
        row, where = dict(self.table.row(at)), self.table.where(at)
        for template, others in self._joined:
            key = filled(template, row, where)
            if key not in others:
                raise ValueError(f"{where}: {key[:60]!r} is not in the table that goes with it; fetch that again")
            row = {**others[key], **row}
        return self._widened(row, where)

    def _widened(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        """The row with the columns that the definition makes, and its choices as lines."""
        for column, operation in self.about.columns.items():
            [(name, argument)] = operation.items()
            row[column] = OPERATIONS[name](row, argument, where)
        row["_choices"] = "\n".join(
            filled(self.about.choice, {"letter": letter, "text": text}, where)
            for letter, text in zip(LETTERS, self._choices(row, where), strict=False)
        )
        return row

    # -------------------------------------------------------------------------------------------------------- questions

    def _question(self, row: dict[str, Any], where: str) -> Question:
        about = self.about
        text = self._shots(row, where) + filled(about.prompt, row, where)
        content = self._content(text.strip(), row, where)
        name = filled(about.id, row, where)
        return Question(
            name,
            Sample(name, (Turn("user", content), Turn("assistant", ()))),
            value_of(row, about.reference, where),
            tuple(self._choices(row, where)) or ("",) * about.letters,
            filled(about.category, row, where),
            filled(about.group, row, where),
            {key: value_of(row, column, where) for key, column in about.extra.items()},
        )

    def _choices(self, row: Row, where: str) -> list[str]:
        columns = self.about.choices
        if isinstance(columns, str):
            value = value_of(row, columns, where)
            if value is not None and not isinstance(value, list | tuple):
                raise ValueError(f"{where}: {columns} is {as_text(value)[:40]!r}; a list of choices is needed")
            return [as_text(one) for one in value or []]
        return [as_text(row[column]) for column in columns if value_of(row, column, where) not in (None, "")]

    def _shots(self, row: Row, where: str) -> str:
        shots = self.about.shots
        if shots is None:
            return ""
        alike = [one for one in self._solved if not shots.same or one.get(shots.same) == row.get(shots.same)]
        if len(alike) < shots.number:
            raise ValueError(f"{where}: has {len(alike)} solved examples; the definition wants {shots.number}")
        return "".join(filled(shots.example, one, where) + shots.between for one in alike[: shots.number])

    @cached_property
    def _solved(self) -> list[dict[str, Any]]:
        """The rows of solved examples, each with its prompt as `_prompt`."""
        assert self.about.shots is not None
        table, found = self._opened(self.about.shots), []
        for index in range(len(table)):
            where = table.where(index)
            row = self._widened(dict(table.row(index)), where)
            found.append({**row, "_prompt": filled(self.about.prompt, row, where)})
        return found

    # ------------------------------------------------------------------------------------------------------------ media

    def _content(self, text: str, row: Row, where: str) -> Content:
        """The media and the text in order: a medium with a marker stands where its marker first does."""
        before: list[tuple[str, str | Medium]] = []
        parts: list[str | tuple[str, Medium]] = [text]
        for shown in self.about.media:
            if shown.marker and not any(isinstance(part, str) and shown.marker in part for part in parts):
                continue  # a column that this question does not mean
            media = self._media(shown, row, where)
            if not shown.marker:
                before += [(shown.modality, one) for one in media]
            elif media:
                parts = _placed(parts, shown.marker, [(shown.modality, one) for one in media])
        texts = [("text", part) if isinstance(part, str) else part for part in parts]
        return (*before, *((name, part) for name, part in texts if part))

    def _media(self, shown: "Shown", row: Row, where: str) -> list[Medium]:
        if shown.path:
            return [self._file(shown, row, where)]
        column = shown.column or shown.base64
        value = value_of(row, column, where)
        if value is None or value == []:
            if shown.optional:
                return []
            raise ValueError(f"{where}: its {shown.modality} is not there: column {column} is empty")
        values = value if isinstance(value, list) else [value]
        return [_of_bytes(one, bool(shown.base64), f"{where}: {column}") for one in values]

    def _file(self, shown: "Shown", row: Row, where: str) -> Medium:
        names = [filled(template, row, where) for template in shown.path]
        for name in names:
            path = os.path.abspath(self.folder / name)  # of folders such as `..` only that says what lies within
            if not Path(path).is_relative_to(os.path.abspath(self.folder)) or "\0" in name:
                raise ValueError(f"{where}: names {name[:80]!r}, which leads out of the data's folder")
            if os.path.isfile(path):
                return Medium(path, _second(row, shown.start, where), _second(row, shown.end, where))
        raise ValueError(f"{where}: its {shown.modality} is not there: no file {names[0][:200]} in {self.folder}")


def _plain(row: Row) -> dict[str, Any]:
    return {column: value for column, value in row.items() if not column.startswith("_")}


def _placed(
    parts: list[str | tuple[str, Medium]], marker: str, media: list[tuple[str, Medium]]
) -> list[str | tuple[str, Medium]]:
    found: list[str | tuple[str, Medium]] = []
    for part in parts:
        if media and isinstance(part, str) and marker in part:
            begin, _, end = part.partition(marker)
            found += [begin, *media, end]
            media = []
        else:
            found.append(part)
    return found


def _of_bytes(value: object, encoded: bool, where: str) -> Medium:
    """Bytes; Hugging Face's {"bytes", "path"}; or base64."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if encoded and isinstance(value, str):
        try:
            return Medium(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{where}: is no base64 ({error}); fetch the table again") from error
    if not isinstance(value, bytes) or not value:
        raise ValueError(f"{where}: holds no bytes; fetch the table again")
    return Medium(value)


def _second(row: Row, column: str, where: str) -> float | None:
    value = value_of(row, column, where) if column else None
    try:
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: {column} is {as_text(value)[:40]!r}; seconds are needed") from None


# ---------------------------------------------------------------------------------------------------------- fingerprint


def fingerprint(name: str, about: "Definition", folder: Path | None) -> str:
    """Changes with the tables' content, and with which media files there are and their sizes."""
    folder = located(name, about, folder)
    tables = [about.data, *about.data.join, *([about.shots] if about.shots else [])]
    found = hashlib.sha256()
    for file in (file for table in tables for file in files_of(folder, table.files)):
        found.update(f"{file.relative_to(folder)}\0{cache.digest(file)}\n".encode())
    if any(shown.path for shown in about.media):
        for path in sorted(_files_shown(Questions(name, about, folder))):
            found.update(f"{Path(path).relative_to(os.path.abspath(folder))}\0{os.path.getsize(path)}\n".encode())
    return found.hexdigest()


def _files_shown(questions: Questions) -> set[str]:
    found = set()
    for index in range(len(questions)):
        try:
            content = questions[index].sample.turns[0].content
        except ValueError:  # it is said when the question is asked
            continue
        found |= {str(part.source) for _, part in content if isinstance(part, Medium) and isinstance(part.source, str)}
    return found
