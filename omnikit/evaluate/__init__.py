"""Benchmarks: what they ask, how answers are scored, and a run put through them.

What the author of a benchmark imports. `docs/evaluation.md` tells how one is added, by a YAML file or by a plugin.
"""

from omnikit.component import BenchmarkConfig
from omnikit.evaluate.benchmark import Grade, Metric, Question, Score
from omnikit.evaluate.yaml_benchmark import Defined, defined

__all__ = ["BenchmarkConfig", "Defined", "Grade", "Metric", "Question", "Score", "defined"]
