"""MathVista's answers: found by rule, or by a judge where no rule finds one."""

import math
import re
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.metrics.averages import STRICT, Graded, mean_score, present
from omnikit.evaluate.metrics.judged import asked, asked_of
from omnikit.evaluate.metrics.letters import letter_in, letters_of
from omnikit.evaluate.metrics.prompts import MATHVISTA, checked, filled

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge

TYPES = ("text", "integer", "float", "list")
MOST_DECIMALS = 15
_PROMPT = AfterValidator(lambda prompt: checked(prompt, ("question", "answer")))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MathVista(Metric):
    """MathVista (Lu et al., 2024; github.com/lupantech/MathVista, extract_answer.py and calculate_score.py).

    `extra["answer_type"]` is text, integer, float or list, `extra["precision"]` the decimals of a float. An answer that
    is itself a number, a list or (by `letter_in`) a choice is taken as it is; else a judge says what its final answer
    is. Integers are compared without what follows the decimal point, floats rounded to the precision, choices by
    letter: the judge's words by rule, or else as the choice with the fewest edits to them. An empty answer, or one of
    which the judge says that it holds none, is wrong (the official script takes the choice most like nothing).
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = True
    prompt: Annotated[str, _PROMPT] = MATHVISTA

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Right when what was taken is the reference: a choice's text, or the number or list as a text."""
        kind = question.extra.get("answer_type")
        if kind not in TYPES:
            raise ValueError(f"{question.id}: answer_type {kind!r} is none of {', '.join(TYPES)}")
        decimals = question.extra.get("precision")
        if kind == "float" and not (isinstance(decimals, int | float) and 0 <= decimals <= MOST_DECIMALS):
            raise ValueError(f"{question.id}: extra has no precision, the decimals by which floats are compared")
        wanted = _wanted(question)
        taken, note = self._by_rule(question, answer), ""
        if not taken and answer.strip():
            content = filled(self.prompt, {"question": asked_of(question), "answer": answer.strip()})
            taken, note = asked(content, lambda reply: self._read(question, reply), judge)
        right = float(bool(taken) and (_chosen(question, taken) if question.choices else taken) == wanted)
        return Grade(taken, right, (right, 1.0), note)

    def score(self, graded: Graded) -> Score:
        """The percentage of right answers, and each category's (MathVista: its task)."""
        values = ((question.category, grade.right) for question, grade in present(graded))
        return mean_score(values, "questions", 100, len(graded))

    @staticmethod
    def _by_rule(question: Question, answer: str) -> str:
        if question.choices:
            return letter_in(answer, question.choices)
        # A text of its own is told from an explanation by nobody but a judge.
        return "" if question.extra["answer_type"] == "text" else _normalised(answer, question)

    @staticmethod
    def _read(question: Question, reply: str) -> str:
        """The judge's words as an answer; "" where it says that there is none, or nothing of this type."""
        said = reply.strip().removeprefix("Answer:").strip()
        if not question.choices or not said:
            return _normalised(said, question)
        found = letter_in(said, question.choices)
        if found:
            return found
        from rapidfuzz.distance import Levenshtein

        edits = [Levenshtein.distance(said, choice) for choice in question.choices]
        return letters_of(question.choices)[edits.index(min(edits))]


def _wanted(question: Question) -> str:
    """What an answer must come to: the text of a choice, or a number, list or text in its one form."""
    wanted = str(question.reference)
    if question.choices and wanted not in question.choices:
        raise ValueError(f"{question.id}: the reference {question.reference!r} is not one of its choices")
    wanted = wanted if question.choices else _normalised(wanted, question)
    if not wanted:
        raise ValueError(f"{question.id}: {question.reference!r} is no {question.extra['answer_type']}")
    return wanted


def _chosen(question: Question, letter: str) -> str:
    return question.choices[letters_of(question.choices).index(letter)]


def _normalised(text: str, question: Question) -> str:
    """The text in the one form in which answers of this type are compared; "" where it is none of it."""
    text = text.strip()
    match question.extra["answer_type"]:
        case "integer":
            number = _number(text)
            return "" if number is None else str(int(number))
        case "float":
            number, decimals = _number(text), int(question.extra["precision"])
            return "" if number is None else f"{round(number, decimals):.{decimals}f}"
        case "list":
            numbers = r"\s*-?[\d.]+\s*"
            return re.sub(r"\s+", "", text) if re.fullmatch(rf"\[{numbers}(,{numbers})*\]", text) else ""
        case _:
            return text


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
