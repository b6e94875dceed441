"""What passes between a benchmark, its metric and the runner. The Config is `omnikit.component.BenchmarkConfig`."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from omnikit.component import Sample

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge

__all__ = ["Grade", "Metric", "Question", "Score"]


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
