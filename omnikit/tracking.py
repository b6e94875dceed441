"""Metrics shown elsewhere: TensorBoard, trackio or wandb, by one line of the recipe (`run: {tracker: tensorboard}`).

metrics.jsonl is written whatever is chosen here. What trackers do may fail at any time (a network, a full disk) and
never matters to a run: it is said once. Each stage is a run of the tracker's own, so that its steps count from 1, and
the stages of an omnikit run form a group. A stage that goes on goes on there too, at its step.
"""

import importlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from omnikit.recipe import Recipe

NEEDS = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""The module that each tracker is made of."""
ID = "tracking.txt"
"""A file of the run's folder: what its runs are called in trackers that keep those of all folders in one place."""
PROJECT = "omnikit"


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take a line of metrics.jsonl."""
        ...

    def close(self) -> None:
        """There will be no more lines."""
        ...


class Display(Protocol):
    """Who is told when a tracker fails."""

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...


class Place(NamedTuple):
    """What a tracker is told when a stage begins, or goes on after `step` steps."""

    folder: Path
    stage: str
    step: int
    recipe: Recipe

    @property
    def id(self) -> str:
        """A name that no other stage of any run has, and that the stage has again when it goes on."""
        path = self.folder / ID
        if not path.is_file():
            path.write_text(uuid.uuid4().hex[:12], encoding="ascii")
        return f"{path.read_text(encoding='ascii').strip()}-{self.stage}"

    @property
    def name(self) -> str:
        """What people read."""
        return f"{self.folder.resolve().name}/{self.stage}"

    @property
    def config(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return self.recipe.model_dump(mode="json", by_alias=True)


class TensorBoard:
    """Event files in the run's folder, one folder for each stage; `tensorboard --logdir RUN/tensorboard` shows them."""

    def __init__(self, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What was logged of steps that are made again is hidden.
        self.writer = SummaryWriter(str(place.folder / "tensorboard" / place.stage), purge_step=place.step + 1)

    def log(self, record: Mapping[str, Any]) -> None:
        """Written at once: a run that is killed has lost nothing."""
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class Trackio:
    """A run of the project `omnikit` in trackio's folder; `trackio show` shows it."""

    def __init__(self, place: Place) -> None:
        import trackio

        # Runs are found again by their name, which nothing else may have.
        name = f"{place.name}-{place.id.partition('-')[0]}"
        self.run = trackio.init(
            project=PROJECT, name=name, group=place.folder.resolve().name, config=place.config, resume="allow"
        )

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand it over."""
        self.run.log(numbers(record), step=record["step"])

    def close(self) -> None:
        """Wait until all is written."""
        self.run.finish()


class Wandb:
    """A run of Weights & Biases: of the project in WANDB_PROJECT, else `omnikit`. WANDB_MODE=offline keeps it here."""

    def __init__(self, place: Place) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=place.folder.resolve().name,
            name=place.name,
            id=place.id,
            resume="allow",
            dir=str(place.folder),
            config=place.config,
        )
        # Its own count of steps can only rise, and ours goes back where steps are made again.
        self.run.define_metric("*", step_metric="step")

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand it over."""
        self.run.log({"step": record["step"], **numbers(record)})

    def close(self) -> None:
        """Wait until all is sent."""
        self.run.finish()


KINDS: Mapping[str, Callable[[Place], Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


def check_tracker(recipe: Recipe) -> None:
    """Refuse a tracker that is not installed."""
    name = recipe.run.tracker
    if name is None:
        return
    try:
        importlib.import_module(NEEDS[name])
    except ImportError as error:
        raise ValueError(
            f"run.tracker: {name} cannot be used ({error}); `pip install omnikit[{name}]`, or remove the line"
        ) from error


class Tracking:
    """The recipe's tracker in one stage, which can fail without harm; nothing without one. Of the first rank alone."""

    def __init__(self, name: str | None, place: Place, display: Display) -> None:
        """`display` is told the first time that something fails."""
        self.name, self.place, self.display = name, place, display
        self.tracker: Tracker | None = None
        self.failed = False

    def __enter__(self) -> Self:
        if self.name is not None:
            with self._harmless():
                self.tracker = KINDS[self.name](self.place)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self.tracker is not None:
            with self._harmless():
                self.tracker.close()

    def log(self, record: Mapping[str, Any]) -> None:
        """Show a line of metrics.jsonl."""
        if self.tracker is not None:
            with self._harmless():
                self.tracker.log(record)

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker does
            if not self.failed:
                self.failed = True
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                self.display.note(
                    f"run.tracker: {self.name} fails ({reason}); the run goes on, its metrics are in metrics.jsonl"
                )


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line by name: `loss`, `losses/image`, of what was held out `heldout/loss`."""
    before = "heldout/" if record.get("kind") == "heldout" else ""
    return {before + name: value for name, value in _flat(record) if name != "step"}


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{name}", inner) for name, inner in _flat(value))
        elif isinstance(value, int | float):
            yield key, float(value)
