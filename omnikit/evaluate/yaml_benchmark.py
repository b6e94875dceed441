"""Benchmarks made of a definition file.

No torch here, and no definition is read before it is asked for: a plugin is listed in a fraction of a second.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from omnikit.component import BenchmarkConfig

if TYPE_CHECKING:
    from omnikit.evaluate.benchmark import Metric, Question
    from omnikit.evaluate.definition import Definition

__all__ = ["Defined", "defined"]


class Defined(BenchmarkConfig):
    """A benchmark that a YAML file describes: where its data is, how a row becomes a question, and the metric.

    A plugin's class sets `type` and `file`, and `rows` where it brings rows to try it on; or calls `defined`.
    """

    file: ClassVar[Path]
    """The definition."""
    rows: ClassVar[Path | None] = None
    """A folder with a few rows in the published layout."""

    @cached_property
    def about(self) -> "Definition":
        """The definition as written; one that is not right is a ValueError that names file and key."""
        from omnikit.evaluate.definition import read_definition

        return read_definition(type(self).file)

    @property
    def title(self) -> str:
        """As the definition says."""
        return self.about.title

    @cached_property
    def metric(self) -> "Metric":
        """The metric that the definition names, with its options."""
        from omnikit.evaluate.metrics import metric_of

        measured = self.about.metric
        try:
            return metric_of(measured.name, measured.options)
        except ValueError as error:
            raise ValueError(f"{type(self).file}: {error}") from error

    @property
    def max_tokens(self) -> int:
        """As the definition says."""
        return self.about.max_tokens

    @property
    def weighs(self) -> Literal["letter", "text"]:
        """As the definition says."""
        return self.about.weighs

    def missing(self, folder: Path | None) -> str | None:
        """What to fetch and where it was looked, in a line."""
        from omnikit.evaluate.tables import located

        try:
            located(self.type, self.about, folder)
        except ValueError as error:
            return str(error)
        return None

    def fingerprint(self, folder: Path | None) -> str:
        """Of the tables' content, and of which media there are and their sizes."""
        from omnikit.evaluate.asking import fingerprint

        return fingerprint(self.type, self.about, folder)

    def definition(self) -> str:
        """Of the definition's values: comments and order do not count."""
        values = json.dumps(self.about.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()

    def questions(self, folder: Path | None) -> "Sequence[Question]":
        """The questions of all rows that the definition means, each made when it is taken."""
        from omnikit.evaluate.asking import Questions

        return Questions(self.type, self.about, folder)

    @classmethod
    def specimen(cls) -> Path:
        """The rows that come with it."""
        if cls.rows is None:
            raise ValueError(f"{cls.file}: brings no rows to try it on")
        return cls.rows


def defined(file: Path, rows: Path | None = None) -> type[Defined]:
    """The class of a definition file; its `type` is the file's name without the ending."""
    name = "".join(part.capitalize() for part in file.stem.split("_"))
    about = {"type": file.stem, "file": file, "rows": rows, "__module__": __name__, "__doc__": f"As {file.name} says."}
    return type(name, (Defined,), about)
