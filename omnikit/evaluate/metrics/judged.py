"""Answers that a judge grades: any language model behind an OpenAI-compatible endpoint."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.judges import JudgeFailed
from omnikit.evaluate.metrics.averages import STRICT, Average, Graded, mean_score, present
from omnikit.evaluate.metrics.prompts import AIR_BENCH, MMVET, YES_NO, checked, filled

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge

T = TypeVar("T")
ASKED = 3
"""A judge whose reply cannot be read is asked so often in all, each time half a degree warmer, as VLMEvalKit does."""
_WITH_ANSWER = AfterValidator(lambda prompt: checked(prompt, ("question", "reference", "answer")))
_WITH_BOTH = AfterValidator(lambda prompt: checked(prompt, ("audio", "question", "first", "second")))


@dataclass(frozen=True, config=STRICT, kw_only=True)
class YesNoScore(Metric):
    """ActivityNet-QA and MSVD-QA: Video-ChatGPT's protocol (Maaz et al., 2024, evaluate_activitynet_qa.py).

    The judge says whether the answer is right, and how well it matches from 0 to 5, of which, as there, decimals are
    cut off. The score is the percentage of yes, the part `score` the mean from 0 to 5.
    """

    better = "higher"
    unit = "%"
    by = "text"
    judged = True
    prompt: Annotated[str, _WITH_ANSWER] = YES_NO

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Counts are yes (1 or 0) and the score."""
        content = filled(self.prompt, _places(question, answer))
        (right, score), reply = asked(content, _yes_and_score, judge)
        return Grade(answer.strip(), float(right), (float(right), float(score)), reply)

    def score(self, graded: Graded) -> Score:
        """The percentage of yes, and each category's; `score` among the parts."""
        values = ((question.category, grade.counts[0]) for question, grade in present(graded))
        found = mean_score(values, "questions", 100, len(graded))
        return found._replace(parts={"score": sum(grade.counts[1] for _, grade in graded) / len(graded), **found.parts})


@dataclass(frozen=True, config=STRICT, kw_only=True)
class MmVet(Metric):
    """MM-Vet (Yu et al., 2024): a judge shown examples gives 0.0 to 1.0, of which the mean by 100 is the score.

    A question's category names the capabilities it needs ("rec,ocr,know"), each of which is a part. The official script
    (github.com/yuweihao/MM-Vet) asks GPT-4-0613 once at temperature 0 and gives 0 where no number comes; here such a
    question has no grade.
    """

    better = "higher"
    unit = "points"
    by = "text"
    judged = True
    prompt: Annotated[str, _WITH_ANSWER] = MMVET

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """0 to 1, as the judge says."""
        places = _places(question, answer)
        spaced = re.sub(r"\s*(<AND>|<OR>)\s*", r" \1 ", places["reference"])
        content = filled(self.prompt, {**places, "reference": spaced})
        right, reply = asked(content, _fraction, judge)
        return Grade(answer.strip(), right, (right, 1.0), reply)

    def score(self, graded: Graded) -> Score:
        """The mean by 100, and that of the questions which need each capability."""
        found = mean_score((("", grade.right) for _, grade in present(graded)), "questions", 100, len(graded))
        capabilities: dict[str, list[float]] = {}
        for question, grade in graded:
            for name in filter(None, re.split(r"\s*,\s*", question.category.strip())):
                capabilities.setdefault(name, []).append(grade.right)
        return found._replace(parts={name: 100 * sum(rights) / len(rights) for name, rights in capabilities.items()})


@dataclass(frozen=True, config=STRICT, kw_only=True)
class AirBench(Metric):
    """AIR-Bench, chat (Yang et al., 2024): the judge rates the answer and the reference side by side, 1 to 10.

    It is asked twice, with the two in either order, as the official README demands (github.com/OFA-Sys/AIR-Bench); the
    mean of the answer's two ratings counts. `extra["audio"]` describes the recording in words, for the judge cannot
    hear it. The score is the mean over categories (speech, sound, music, mixed), as the official table's. The part
    `reference` is the mean of what the reference itself got.
    """

    better = "higher"
    unit = "points"
    by = "text"
    judged = True
    average: Average = "categories"
    prompt: Annotated[str, _WITH_BOTH] = AIR_BENCH

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """Counts are the mean ratings of the answer and of the reference; `right` is the answer's by 10."""
        if "audio" not in question.extra:
            raise ValueError(f"{question.id}: extra has no audio, the description that the judge goes by")
        places = _places(question, answer) | {"audio": str(question.extra["audio"])}
        orders = (("reference", "answer"), ("answer", "reference"))
        replies = []
        for first, second in orders:
            content = filled(self.prompt, {**places, "first": places[first], "second": places[second]})
            replies.append(asked(content, _two_ratings, judge))
        ((before, after), said), ((swapped, behind), again) = replies
        rating, reference = (after + swapped) / 2, (before + behind) / 2
        return Grade(answer.strip(), rating / 10, (rating, reference), f"{said} / {again}")

    def score(self, graded: Graded) -> Score:
        """The mean rating, 0 to 10, of every category alike, and each category's."""
        values = ((question.category, grade.counts[0] / 10) for question, grade in present(graded))
        found = mean_score(values, self.average, 10, len(graded))
        reference = sum(grade.counts[1] for _, grade in graded) / len(graded)
        return found._replace(parts={**found.parts, "reference": reference})


def asked(content: str, read: Callable[[str], T | None], judge: "Judge | None") -> tuple[T, str]:
    """(What the judge says as `read` reads it, its words). `JudgeFailed` where it says nothing that can be read."""
    if judge is None:
        raise JudgeFailed("needs a judge to be graded, and none was given")
    reply = ""
    for attempt in range(ASKED):
        reply = judge.ask([{"role": "user", "content": content}], temperature=0.5 * attempt)
        found = read(reply)
        if found is not None:
            return found, reply
    raise JudgeFailed(f"asked {ASKED} times the judge gave no grade; its last words: {reply[:80]!r}")


def asked_of(question: Question) -> str:
    """What is asked, in words: `extra["question"]`, or else the text of the last turn that has one."""
    if "question" in question.extra:
        return str(question.extra["question"])
    for turn in reversed(question.sample.turns):
        texts = [str(text) for kind, text in turn.content if kind == "text" and text]
        if texts:
            return "\n".join(texts)
    return ""


def _places(question: Question, answer: str) -> dict[str, str]:
    if not isinstance(question.reference, str):
        raise ValueError(f"{question.id}: the reference {question.reference!r} is no text")
    return {"question": asked_of(question), "reference": question.reference, "answer": answer.strip()}


def _yes_and_score(reply: str) -> tuple[bool, int] | None:
    said = re.findall(r"[\"']pred[\"']\s*:\s*[\"'](yes|no)[\"']", reply, re.IGNORECASE)
    scores = re.findall(r"[\"']score[\"']\s*:\s*[\"']?([0-5])(?:\.\d*)?(?![\d.])", reply)
    if len(said) != 1 or len(scores) != 1:
        return None
    return said[0].lower() == "yes", int(scores[0])


def _fraction(reply: str) -> float | None:
    found = re.match(r"[\s*`]*(0(?:\.\d+)?|1(?:\.0+)?|\.\d+)[*`]*(?=\s|[.,;]?\s*$)", reply)
    return float(found[1]) if found else None


def _two_ratings(reply: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"\s*(\d{1,2})[\s,]+(\d{1,2})\s*", reply)
    if found is None or not all(0 <= int(rating) <= 10 for rating in found.groups()):
        return None
    return int(found[1]), int(found[2])
