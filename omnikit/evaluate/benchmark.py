"""What a benchmark is made of, and benchmarks made of a definition file.

No torch here: a plugin is listed, and a definition checked, in a fraction of a second.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from omnikit.component import BenchmarkConfig, Sample

if TYPE_CHECKING:
    from omnikit.evaluate.definition import Definition
    from omnikit.evaluate.judges import Judge

__all__ = ["BenchmarkConfig", "Defined", "Grade", "Metric", "Question", "Score", "defined"]


class Question(NamedTuple):
    """One question of a benchmark, with what is needed to grade an answer to it."""

    id: str
    sample: Sample
    """Its last turn is an empty assistant turn."""
    reference: Any
    """JSON-able: a text, a list of accepted texts, a letter, a mapping."""
    choices: tuple[str, ...] = ()
    """What may be chosen among, in the order A, B, C...; () for open questions. A choice whose text stands within the
    question alone is ""."""
    category: str = ""
    group: str = ""
    """Questions that are scored together (circular rotations, MME pairs); "" means that it stands alone."""
    extra: Mapping[str, Any] = MappingProxyType({})
    """What a metric needs besides, as the definition names it."""


class Grade(NamedTuple):
    """What a metric says of one answer."""

    taken: str
    """What was taken as the answer ("" where nothing could be)."""
    right: float
    """0..1 for this answer alone, for display; of an error rate, 1 when there is no error."""
    counts: tuple[float, ...]
    """Summed over questions (of a group: by the metric) they give the score."""
    note: str = ""
    """For example the judge's words."""


class Score(NamedTuple):
    """A benchmark's result."""

    value: float
    """In the unit of the field's tables (per cent, points, BLEU)."""
    low: float
    """The lower end of the 95 % interval."""
    high: float
    questions: int
    parts: Mapping[str, float]
    """Named partial figures, as {"perception": ..., "cognition": ...}, and by category."""


class Metric(Protocol):
    """How answers are graded and grades become a score."""

    better: Literal["higher", "lower"]
    unit: str
    """ "%", "points", "BLEU", "WER %"."""
    by: Literal["likelihood", "text"]
    """How the run answers: by the log-likelihood of the choices, or by generated text. By likelihood, the letter of the
    chosen one is handed to `grade`."""
    judged: bool

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """The grade of one answer."""
        ...

    def score(self, graded: Sequence[tuple[Question, Grade]]) -> Score:
        """The score of graded answers."""
        ...


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
    def metric(self) -> Metric:
        """The metric that the definition names, with its options."""
        from omnikit.evaluate.metrics import metric_of

        try:
            return metric_of(self.about.metric.name, self.about.metric.options)
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

    def questions(self, folder: Path | None) -> Sequence[Question]:
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
