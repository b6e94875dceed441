"""What an evaluation leaves on disk.

    FOLDER/BENCHMARK-1a2b3c4d5e6f/key.json       what the answers depend on; the folder's name holds its hash
                                  answers.jsonl  a line for each question, in order, forced to disk chunk by chunk
                                  grades.jsonl   a line for each graded answer
                                  score.json     the score, and what is to be said of it

Nothing in it tells of the time or the machine: an evaluation that was cut off and gone on with leaves the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from omnikit.cache import sync

__all__ = ["Answer", "Key", "Store"]


class Key(NamedTuple):
    """What the answers depend on."""

    benchmark: str
    run: str
    """Of the run's checkpoints."""
    definition: str
    data: str
    omnikit: str
    limit: int | None
    """How many of the first questions were asked; None means all."""

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(self._asdict(), indent=1) + "\n"

    def folder(self) -> str:
        """The name of the folder that is this key's."""
        return f"{self.benchmark}-{hashlib.sha256(self.text().encode()).hexdigest()[:12]}"


class Answer(NamedTuple):
    """What became of one question."""

    id: str
    answer: str = ""
    """The text; of a choice by likelihood, the letter."""
    likelihoods: tuple[float, ...] = ()
    bad: str = ""
    """Why it could not be asked."""

    def line(self) -> str:
        """As it is stored."""
        told = {"id": self.id, "bad": self.bad} if self.bad else {"id": self.id, "answer": self.answer}
        return _line(told | ({"likelihoods": self.likelihoods} if self.likelihoods else {}))


class Store:
    """The folder of one evaluation."""

    def __init__(self, folder: Path, key: Key) -> None:
        self.folder = folder / key.folder()
        self.key = key
        self._answers = self.folder / "answers.jsonl"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block, no other process writes here; a second one is refused."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(file, self.folder)
            path = self.folder / "key.json"
            if not path.is_file():
                _replace(path, self.key.text())
            yield
        finally:
            os.close(file)

    def kept(self, total: int, chunk: int) -> list[Answer]:
        """The answers that are there, of `total`, in whole chunks: what a killed evaluation left of one is cut off."""
        if not self._answers.is_file():
            return []
        with self._answers.open("r+b") as file:
            lines = file.read().split(b"\n")[:-1][:total]
            if len(lines) < total:
                lines = lines[: len(lines) - len(lines) % chunk]
            file.truncate(sum(len(line) + 1 for line in lines))
            os.fsync(file.fileno())
        try:
            return [_answer(json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._answers}: is damaged ({error}); remove it, and it is made again") from error

    def append(self, answers: Iterable[Answer]) -> None:
        """The answers of a chunk, at the end, on disk once this returns."""
        with self._answers.open("ab") as file:
            file.write(_bytes("".join(answer.line() for answer in answers)))
            file.flush()
            os.fsync(file.fileno())

    def write(self, grades: Iterable[Mapping[str, Any]], score: Mapping[str, Any]) -> None:
        """Grades and score, each whole or not at all."""
        _replace(self.folder / "grades.jsonl", "".join(map(_line, grades)))
        _replace(self.folder / "score.json", json.dumps(score, indent=1, ensure_ascii=False) + "\n")


def _answer(value: Mapping[str, Any]) -> Answer:
    return Answer(value["id"], value.get("answer", ""), tuple(value.get("likelihoods", ())), value.get("bad", ""))


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"


def _bytes(text: str) -> bytes:
    """In UTF-8; half a character, which rows of JSON can hold and UTF-8 cannot, is "?"."""
    return text.encode(errors="replace")


def _replace(path: Path, text: str) -> None:
    """The file with this text, written under another name, forced to disk, and renamed."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(_bytes(text))
    sync(new)
    os.replace(new, path)


def _lock(file: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{folder}: another process evaluates into it; wait for it, or give --out") from None
