"""Translations, by sacrebleu."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.metrics.averages import STRICT, Graded, by_category, present, summed
from omnikit.evaluate.metrics.intervals import resampled, spread

if TYPE_CHECKING:
    from omnikit.evaluate.judges import Judge


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Bleu(Metric):
    """Corpus BLEU (Papineni et al., 2002; Post, 2018) as sacrebleu computes it, exponential smoothing.

    `tokenize` is sacrebleu's: `13a` for translations into English, `zh` for those into Chinese (characters), as
    Qwen2-Audio's evaluation of CoVoST-2 does.
    """

    better = "higher"
    unit = "BLEU"
    by = "text"
    judged = False
    tokenize: Literal["13a", "zh", "intl", "char", "none"]

    def grade(self, question: Question, answer: str, judge: "Judge | None") -> Grade:
        """`right` is the sentence's own BLEU by 100; counts are lengths (answer, reference), matches, n-grams."""
        references = [question.reference] if isinstance(question.reference, str) else question.reference
        is_list = isinstance(references, list | tuple) and bool(references)
        if not is_list or not all(isinstance(text, str) for text in references):
            raise ValueError(f"{question.id}: the reference {references!r} is neither a text nor a list of texts")
        found = _bleu(self.tokenize).sentence_score(answer, list(references))
        counts = (found.sys_len, found.ref_len, *found.counts, *found.totals)
        return Grade(answer.strip(), min(found.score / 100, 1.0), tuple(map(float, counts)))

    def score(self, graded: Graded) -> Score:
        """The corpus score, which is no mean of the sentences'; the bootstrap draws sentences (Koehn, 2004)."""
        groups = summed(present(graded))
        low, high = spread(np.array([_corpus(sums) for sums in resampled(groups)]))
        parts = {name: _corpus(summed(members).sum(axis=0)) for name, members in by_category(graded).items() if name}
        return Score(_corpus(groups.sum(axis=0)), low, high, len(graded), parts)


@cache
def _bleu(tokenize: str) -> Any:  # noqa: ANN401  (sacrebleu's BLEU, imported late)
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise ValueError('BLEU needs sacrebleu; run: pip install "omnikit[eval]"') from None
    return BLEU(tokenize=tokenize, effective_order=True)  # the order matters to a sentence's own score alone


def _corpus(sums: Sequence[float]) -> float:
    """The score of summed counts."""
    length, reference, *ngrams = (round(count) for count in sums)
    order = len(ngrams) // 2
    found = _bleu("none").compute_bleu(
        correct=ngrams[:order], total=ngrams[order:], sys_len=length, ref_len=reference, smooth_method="exp"
    )
    return float(found.score)
