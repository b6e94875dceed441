"""What a benchmark asks, and what comes of an answer."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from omnikit.component import Sample

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge


class Question(NamedTuple):
    """One question of a benchmark, as a run is asked it and as its answer is graded."""

    id: str
    sample: Sample
    """Its last turn is an empty assistant turn."""
    reference: Any
    """JSON-able: a text, a list of accepted texts, a letter, a mapping."""
    choices: tuple[str, ...] = ()
    """What may be chosen among, in order A, B, C...; () for open questions."""
    category: str = ""
    group: str = ""
    """Questions that are scored together (circular rotations, MME pairs); "" = its own id."""
    extra: Mapping[str, Any] = MappingProxyType({})
    """What a metric needs besides, as the definition names it."""


class Grade(NamedTuple):
    """What one answer is worth."""

    taken: str
    """What was taken as the answer ("" where nothing could be)."""
    right: float
    """0..1 for this answer alone (for display); WER-like: 1 when no error."""
    counts: tuple[float, ...]
    """Summed over questions (of a group: by the metric) they give the score."""
    note: str = ""
    """E.g. the judge's words."""


class Score(NamedTuple):
    """What a benchmark comes to."""

    value: float
    """In the paper's unit (percent, points, BLEU)."""
    low: float
    high: float
    """With `low` the 95 % interval."""
    questions: int
    parts: Mapping[str, float]
    """Named partial figures, e.g. {"perception": .., "cognition": ..}, by category too."""


class Metric(Protocol):
    """Grades one answer, and makes a score of all grades. One object per metric name and options."""

    better: Literal["higher", "lower"]
    unit: str
    """ "%", "points", "BLEU", "WER %"."""
    by: Literal["likelihood", "text"]
    """How the run answers: by log-likelihood of the choices, or by generated text."""
    judged: bool

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """What the answer is worth; with `by == "likelihood"` it is the chosen choice's letter."""
        ...

    def score(self, graded: Sequence[tuple[Question, Grade]]) -> Score:
        """What all grades come to."""
        ...
