"""All laws of all stages."""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from omnikit.checking import check_data, check_recipe
from omnikit.recipe import Recipe
from omnikit.testing.results import Fault, reason
from omnikit.verification.batches import absent_modalities_add_nothing, packing_changes_nothing
from omnikit.verification.results import Finding, Verdict
from omnikit.verification.runs import labels_are_counted, resuming_is_bitwise, rules_hold, stages_hand_over
from omnikit.verification.splits import (
    micro_batches_change_nothing,
    ranks_change_nothing,
    ranks_may_lack_modalities,
    the_plan_is_the_same_for_any_ranks,
)
from omnikit.verification.trial import Progress, Trial

Law = Callable[[Trial, str], Finding]

LAWS: tuple[Law, ...] = (
    rules_hold,
    stages_hand_over,
    labels_are_counted,
    resuming_is_bitwise,
    the_plan_is_the_same_for_any_ranks,
    packing_changes_nothing,
    absent_modalities_add_nothing,
    micro_batches_change_nothing,
    ranks_change_nothing,
    ranks_may_lack_modalities,
)
SECONDS = 300.0
"""Seconds that two ranks may take for a step before they count as hanging."""


def verify(
    recipe: Recipe, progress: Progress = lambda *_: None, laws: tuple[Law, ...] = LAWS, seconds: float = SECONDS
) -> Iterator[Verdict]:
    """What each law comes to, as it is found. The recipe is `shrunk` already.

    What is wrong with the recipe or its data is raised, as by `train`. A law under which anything else goes wrong
    fails. Nothing is left but what the cache keeps.
    """
    with tempfile.TemporaryDirectory(prefix="omnikit-verify-") as folder:
        trial = Trial(recipe, Path(folder), progress, seconds)
        check_recipe(recipe)
        check_data(recipe, trial.layouter, progress)
        for law in laws:
            findings = {}
            for number, stage in enumerate(recipe.stages):
                findings[stage] = found(law, trial, stage)
                progress(law.__name__, number + 1, len(recipe.stages))
            yield Verdict(law.__name__, (inspect.getdoc(law) or "").partition("\n")[0], findings)


def found(law: Law, trial: Trial, stage: str) -> Finding:
    """What a law comes to in a stage, whatever happens."""
    try:
        return law(trial, stage)
    except Fault as fault:
        return Finding(False, str(fault))
    except (Exception, SystemExit) as error:
        return Finding(False, reason(error))
