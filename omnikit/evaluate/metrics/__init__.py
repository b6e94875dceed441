"""Metrics: how an answer is graded, and what all grades come to. Torch-free; each by name, with options."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from omnikit.evaluate.benchmark import Metric
from omnikit.evaluate.metrics.answers import Anls, Contains, Relaxed, Vqa
from omnikit.evaluate.metrics.choices import Choice, Circular
from omnikit.evaluate.metrics.judged import AirBench, MmVet, YesNoScore
from omnikit.evaluate.metrics.mathvista import MathVista
from omnikit.evaluate.metrics.mixed import ChoiceOrWords
from omnikit.evaluate.metrics.speech import Cer, Wer
from omnikit.evaluate.metrics.translation import Bleu
from omnikit.evaluate.metrics.yes_no import Hallusion, Mme

__all__ = ["METRICS", "metric_of"]

METRICS: Mapping[str, type[Metric]] = MappingProxyType(
    {
        "air_bench": AirBench,
        "anls": Anls,
        "bleu": Bleu,
        "cer": Cer,
        "choice": Choice,
        "choice_or_words": ChoiceOrWords,
        "circular": Circular,
        "contains": Contains,
        "hallusion": Hallusion,
        "mathvista": MathVista,
        "mme": Mme,
        "mmvet": MmVet,
        "relaxed": Relaxed,
        "vqa": Vqa,
        "wer": Wer,
        "yes_no_score": YesNoScore,
    }
)
"""Every metric by the name that definitions give it. Call one with its options, or `metric_of` for plain errors."""


def metric_of(name: str, options: Mapping[str, Any] | None = None) -> Metric:
    """The metric of this name with these options. A name or option that is wrong is a ValueError of one line."""
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; there are: {', '.join(METRICS)}")
    try:
        return METRICS[name](**(options or {}))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        where = ".".join(["metric", name, *map(str, found["loc"])])
        raise ValueError(f"{where}: {found['msg'].removeprefix('Value error, ')}") from None
