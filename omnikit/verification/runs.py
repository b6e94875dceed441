"""Laws of whole runs: of what is on disk and in memory when they end."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from omnikit.recipe import rule_for, within
from omnikit.verification.observing import component_of, fingerprint
from omnikit.verification.results import Finding, absent, none_of
from omnikit.verification.trial import Trial, Whole

SAME = ("loss", "losses", "labels", "tokens", "places", "norm", "norms", "rate", "bad")
"""What of a step's record must be the same twice; the rest are clocks and meters."""


def resuming_is_bitwise(trial: Trial, stage: str) -> Finding:
    """A stage that is cut and gone on with, by other workers, ends as the uncut one: weights, optimizer and losses."""
    for run in (trial.whole, trial.cut):
        if stage not in run.courses:
            return Finding(False, _unfinished(run))
    if not trial.cut.resumed[stage]:
        return Finding(False, "began anew where it was to go on from its checkpoint")
    whole, cut = trial.whole, trial.cut
    wrong = [f"{name} in memory" for name in _differing(whole.courses[stage].ended, cut.courses[stage].ended)]
    number = len(whole.courses[stage].ended)
    saved, again = (_checkpoints(run, stage) for run in (whole, cut))
    wrong += [f"{name} on disk" for name in _differing(saved, again)]
    number += len(saved)
    records = [{step["step"]: _told(step) for step in run.records[stage]} for run in (whole, cut)]
    wrong += [f"the record of step {step}" for step in _differing(*records)]
    return none_of(wrong, number + len(records[0]), "tensors and records differ" if wrong else "tensors and records")


def rules_hold(trial: Trial, stage: str) -> Finding:
    """What is frozen does not move by a bit, and every parameter that a rule gave a rate does."""
    if stage not in trial.whole.courses:
        return Finding(False, _unfinished(trial.whole))
    began, ended, parameters = trial.whole.courses[stage]
    rules = trial.recipe.stages[stage].train
    groups = {group for record in trial.whole.records[stage] for group in record["losses"]}
    seen = {modality for group in groups for modality in group.split("+")}
    unseen = _unseen(trial, seen)
    trains = {name: (found := rule_for(name, rules)) is not None and found[1] != "frozen" for name in began}
    moving = {component_of(name) for name, rate in trains.items() if rate}
    wrong, passed = [], 0
    for name in began:
        moved = began[name] != ended[name]
        if trains[name] and component_of(name) in unseen:
            passed += 1
        elif trains[name] and not moved and name in parameters:
            wrong.append(f"{name} has a rate and did not move")
        elif moved and not trains[name] and (name in parameters or component_of(name) not in moving):
            wrong.append(f"{name} is frozen and moved")
    what = "tensors" + (f" ({passed} of modalities that no sample held are left out)" if passed else "")
    return none_of(wrong, len(began) - passed, what)


def stages_hand_over(trial: Trial, stage: str) -> Finding:
    """A stage begins with bitwise what the stages before left: its `init` copied, all else as it was last.

    What is frozen in bf16 may be held in 16 bits: then it is what was left, rounded.
    """
    names = list(trial.recipe.stages)
    if stage == names[0]:
        return absent("nothing comes before the first stage")
    if stage not in trial.whole.courses:
        return Finding(False, _unfinished(trial.whole))
    left: dict[str, frozenset[str]] = {}
    for name in names[: names.index(stage)]:
        left |= _left(trial.whole, name)
    began = trial.whole.courses[stage].began
    init = trial.recipe.stages[stage].init
    before = dict(left)
    for target, source in init.items():
        copied = {
            f"{target}.{name[len(source) + 1 :]}": value for name, value in before.items() if within(name, source)
        }
        # What a target has beyond its source keeps its own start; of a source not seen before nothing is known.
        left = {name: value for name, value in left.items() if copied or not within(name, target)}
        left |= {name: value for name, value in copied.items() if name in began}
    shared = [name for name in began if name in left]
    wrong = [f"{name} is not as it was left" for name in shared if began[name] not in left[name]]
    return none_of(wrong, len(shared), "tensors")


def _left(run: Whole, stage: str) -> dict[str, frozenset[str]]:
    """Fingerprints of what a stage left, as it was saved and rounded to 16 bits: the newest of each tensor."""
    return {
        name: frozenset({fingerprint(tensor), fingerprint(tensor.bfloat16())}) for _, name, tensor in _saved(run, stage)
    }


def labels_are_counted(trial: Trial, stage: str) -> Finding:
    """What a step logs is what its packs hold: label tokens, tokens and places, counted without a model."""
    if stage not in trial.whole.courses:
        return Finding(False, _unfinished(trial.whole))
    batch = trial.recipe.stages[stage].batch
    data = trial.data(stage)
    packs = (plan for plan, _ in data.packs(trial.start))
    wrong = []
    for record in trial.whole.records[stage]:
        entries = [entry for _ in range(batch.packs) for entry in next(packs)]
        # Of a step without bad samples the headers say enough.
        layouts = [data.read(entry)[0] if record["bad"] else data.layout(entry) for entry in entries]
        good = [layout for layout in layouts if not layout.bad]
        counted = {
            "labels": sum(sum(layout.learned[1:]) for layout in good),  # nothing stands before the first position
            "tokens": sum(len(layout.ids) for layout in good),
            "places": batch.packs * batch.length,
        }
        wrong += [
            f"step {record['step']} logs {record[key]} {key} of {number}"
            for key, number in counted.items()
            if record[key] != number
        ]
    return none_of(wrong, 3 * len(trial.whole.records[stage]), "counts")


def _unfinished(run: Whole) -> str:
    return f"it was not trained to its end: {run.error}"


def _unseen(trial: Trial, seen: set[str]) -> set[str]:
    """The components that belong to modalities which no sample held, and to no other."""
    modalities = trial.recipe.modalities
    encoders = {modalities[name].encoder for name in seen if name in modalities}
    unseen = {f"modalities.{name}.projector" for name in modalities if name not in seen}
    return unseen | {f"encoders.{name}" for name in trial.recipe.encoders if name not in encoders}


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in SAME}


def _differing(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> Iterator[Any]:
    return (key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key))


def _checkpoints(run: Whole, stage: str) -> dict[str, str]:
    """Fingerprints of every tensor in every checkpoint of a stage."""
    return {f"{step}: {name}": fingerprint(tensor) for step, name, tensor in _saved(run, stage)}


def _saved(run: Whole, stage: str) -> Iterator[tuple[str, str, Tensor]]:
    """Every tensor in every checkpoint of a stage, oldest first: the checkpoint's name, its own, itself."""
    for checkpoint in run.run.committed(stage):
        for path in sorted(Path(checkpoint.folder).glob("*.safetensors")):
            with safe_open(path, framework="pt") as opened:
                yield from ((checkpoint.folder.name, name, opened.get_tensor(name)) for name in opened.keys())
