"""What laws look at: a shrunk recipe, its data, and two runs of it, one of which was cut and went on in every stage."""

import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omnikit.checkpoint import RunFolder
from omnikit.component import Item
from omnikit.data import Plan, Position, StageData, layouter_of
from omnikit.model import OmniModel
from omnikit.recipe import Recipe
from omnikit.sample import Layout, Layouter
from omnikit.stages import apply_rules, rules_by_parameter
from omnikit.starting import start_of
from omnikit.testing.results import reason
from omnikit.train import train
from omnikit.verification.observing import Quiet, fingerprints, observed
from omnikit.verification.taking import Taken, taken

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it is, and of how much."""


class Course(NamedTuple):
    """A stage of a run."""

    began: Mapping[str, str]
    """Fingerprints of the model's tensors before its first forward pass."""
    ended: Mapping[str, str]
    """The same after its last step."""
    parameters: frozenset[str]
    """Names of those that are parameters; the others are buffers."""


class Whole(NamedTuple):
    """A run from its beginning to its end."""

    run: RunFolder
    courses: dict[str, Course]
    """By stage, of those that were finished."""
    records: dict[str, list[Mapping[str, Any]]]
    """Metrics of the steps of each stage, the last of each step."""
    resumed: dict[str, int]
    """By stage, the step after which it last went on."""
    error: str
    """Why it did not come to its end; empty where it did."""


class Trial:
    """A shrunk recipe, tried in a folder that its owner removes."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, seconds: float) -> None:
        """`seconds` are those that ranks may take for a step before they count as hanging."""
        self.recipe, self.folder, self.progress, self.seconds = recipe, folder, progress, seconds
        self.hung = ""
        """The stage in which they did hang: none is made to wait for them again."""
        self.start = Position()
        """Where the data of every stage begins."""
        self._data: dict[str, StageData] = {}
        self._taken: dict[str, Taken] = {}
        self._numbers = itertools.count()

    @functools.cached_property
    def layouter(self) -> Layouter:
        """The recipe's."""
        return layouter_of(self.recipe)

    def data(self, stage: str) -> StageData:
        """A stage's data."""
        if stage not in self._data:
            self._data[stage] = StageData(self.recipe, stage, self.layouter)
        return self._data[stage]

    def step(self, stage: str) -> list[Plan]:
        """The packs of a stage's first step."""
        packs = self.data(stage).packs(self.start)
        return [plan for plan, _ in itertools.islice(packs, self.recipe.stages[stage].batch.packs)]

    def samples(self, stage: str) -> list[list[tuple[Layout, list[Item]]]]:
        """The samples of these packs, read, without the bad ones."""
        data = self.data(stage)
        return [[found for entry in plan if not (found := data.read(entry))[0].bad] for plan in self.step(stage)]

    def new_folder(self) -> Path:
        """A folder for one more run."""
        return self.folder / f"run-{next(self._numbers)}"

    def model(self, stage: str) -> OmniModel:
        """The model with which a stage begins, in float32 on the CPU; its rules hold, but all dropout is off."""
        model = start_of(self.recipe, stage, self.whole.run)
        apply_rules(model, rules_by_parameter(dict(model.named_parameters()), self.recipe, stage))
        return model.eval()

    def taken(self, stage: str) -> Taken:
        """The stage's first step, by one rank and one pack at a time."""
        if stage not in self._taken:
            self._taken[stage] = taken(self.recipe, stage, self.new_folder(), 1)
        return self._taken[stage]

    @functools.cached_property
    def whole(self) -> Whole:
        """The recipe trained without a break."""
        return self._trained("trained without a break", self.recipe.run.workers, None)

    @functools.cached_property
    def cut(self) -> Whole:
        """The recipe trained, cut off in every stage after a checkpoint, and gone on with by other workers."""
        return self._trained("cut and gone on with", self.recipe.run.workers, self._cut_at)

    @property
    def _cut_at(self) -> int:
        # One step before the next checkpoint, so that steps are lost and made again; or, where each is one, at once.
        save = self.recipe.run.save
        return max(1, 2 * save - 1)

    def _trained(self, what: str, workers: int, cut_at: int | None) -> Whole:
        run = RunFolder(self.new_folder())
        display = _Watching(self.recipe, what, self.progress, cut_at)
        error = ""
        with observed(display.forward):
            while True:
                settings = self.recipe.run.model_copy(update={"workers": workers})
                recipe = self.recipe.model_copy(update={"run": settings})
                try:
                    train(recipe, run.path, display)
                except _Cut:
                    workers = 0 if workers else 2
                    continue
                except (Exception, SystemExit) as raised:
                    error = reason(raised)
                break
        display.model = None
        records: dict[str, dict[int, Mapping[str, Any]]] = {name: {} for name in self.recipe.stages}
        for record in display.records:
            records[record["stage"]][record["step"]] = record
        told = {name: [found[step] for step in sorted(found)] for name, found in records.items()}
        return Whole(run, display.courses, told, dict(display.began), error)


class _Cut(BaseException):
    """Stands for kill -9: nothing that is trained may catch it."""


class _Watching(Quiet):
    """Takes fingerprints where a stage begins and ends, and cuts each stage once after the step `cut_at`."""

    def __init__(self, recipe: Recipe, what: str, progress: Progress, cut_at: int | None) -> None:
        super().__init__()
        self.recipe, self.what, self.progress, self.cut_at = recipe, what, progress, cut_at
        self.total = sum(stage.steps or 0 for stage in recipe.stages.values())
        self.courses: dict[str, Course] = {}
        self.cuts: set[str] = set()
        self.done: set[tuple[str, int]] = set()
        self.model: OmniModel | None = None
        self.first: dict[str, str] = {}

    def forward(self, model: OmniModel) -> None:
        """Before a forward pass."""
        if model is not self.model:
            self.model, self.first = model, fingerprints(model)

    def stage(self, name: str, done: int, steps: int) -> None:
        """A stage begins: with a model that was not seen before."""
        super().stage(name, done, steps)
        self.model = None

    def step(self, record: Mapping[str, Any]) -> None:
        """A step was made."""
        super().step(record)
        name, step = record["stage"], record["step"]
        if step == self.cut_at and name not in self.cuts:
            self.cuts.add(name)
            raise _Cut
        if (name, step) not in self.done:
            self.done.add((name, step))
            self.progress(self.what, len(self.done), self.total)
        if step == self.recipe.stages[name].steps:
            assert self.model is not None
            parameters = frozenset(path for path, _ in self.model.named_parameters())
            self.courses[name] = Course(self.first, fingerprints(self.model), parameters)
