"""What a run leaves on disk.

    runs/NAME/recipe.yaml            the resolved recipe
             lock.json               versions and hashes
             metrics.jsonl           one line a step, and one for each time that held-out data was measured
             bad_samples.jsonl       samples that were not used, or not whole: stage, step, source, id, what, reason
             lock                    held by the process that trains: its host and process id
             STAGE/step-000200/      safetensors, state.json, and last of all COMMIT with a sha256 per file
             STAGE/step-000000/      the same of what the stage leaves as it is and no stage before it has saved

A folder without COMMIT does not count. Everything is safetensors or JSON; nothing here can carry code. A kill at any
moment leaves the last committed step; the next start sweeps what was half-written.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
from torch import Tensor, nn

from omnikit.cache import sync
from omnikit.component import BackboneConfig, EncoderConfig
from omnikit.distributed import ALONE, World
from omnikit.indexing import Note
from omnikit.recipe import Recipe, changes, dump_recipe
from omnikit.strictyaml import read_file
from omnikit.tensorfiles import write
from omnikit.versions import versions

COMMIT = "COMMIT"
METRICS = "metrics.jsonl"
MEASURED = frozenset({"wait", "seconds", "tokens_per_second", "mfu", "memory"})
"""What in its lines is of the machine: the rest of a line is the same in every run of the recipe."""
BAD = "bad_samples.jsonl"
STATE = "state.json"
LOCK = "lock"
BEGINNING = frozenset({LOCK, "lock.json", "lock.json.tmp", "recipe.yaml.tmp"})
"""What a run that was killed as it began can have left."""


class Checkpoint(NamedTuple):
    """One committed step of a stage."""

    stage: str
    step: int
    folder: Path

    def state(self) -> dict[str, Any]:
        """The JSON that was saved with the tensors."""
        return json.loads((self.folder / STATE).read_text(encoding="utf-8"))

    def hash(self) -> str:
        """Identifies the content: the hash of the file that holds every file's hash."""
        return _sha256(self.folder / COMMIT)


def flat_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The model's tensors, one name each, and the names left out with the name that they share."""
    seen: dict[int, str] = {}
    owners = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    ties = {name: first for name, tensor in owners if (first := seen.setdefault(id(tensor), name)) != name}
    state = model.state_dict()
    return {k: v for k, v in state.items() if k not in ties}, {k: v for k, v in ties.items() if k in state}


def save(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], world: World = ALONE) -> None:
    """Write and commit one checkpoint folder. Whatever was there is removed first.

    Every rank calls it and writes a file of what it holds; the first one commits, once all have.
    """

    def prepare() -> None:
        _remove(folder)
        folder.mkdir(parents=True)

    world.agree(prepare, world.side)
    write(folder, tensors, world)
    if world.is_first:
        _commit(folder, state)


def _commit(folder: Path, state: Mapping[str, Any]) -> None:
    write_atomically(folder / STATE, json.dumps(state, indent=1) + "\n")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        if path.suffix == ".safetensors":
            _sort_metadata(path)
            # The writer has been seen to put other things into files of this name and to report success.
            with safe_open(path, framework="pt") as opened:
                opened.keys()
        with _named(path):
            sync(path)
    hashes = {path.name: _sha256(path) for path in files}
    write_atomically(folder / COMMIT, json.dumps(hashes, indent=1) + "\n")
    with _named(folder.parent):
        sync(folder.parent)


def _remove(folder: Path) -> None:
    # COMMIT goes first: a kill in between leaves a folder that does not count, never one that is half there.
    (folder / COMMIT).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _sort_metadata(path: Path) -> None:
    """Equal tensors make equal files: safetensors writes its few words of metadata in a random order."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, path
        file.seek(8)
        file.write(text)


def verify(folder: Path) -> str | None:
    """None when every file is what COMMIT says, else what is wrong."""
    try:
        hashes = json.loads((folder / COMMIT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{folder / COMMIT}: cannot be read ({error})"
    if not isinstance(hashes, dict) or STATE not in hashes:
        return f"{folder / COMMIT}: is no list of hashes"
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{path}: is missing"
        if _sha256(path) != expected:
            return f"{path}: has changed since it was saved"
    return None


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = False
        self._sound: set[Path] = set()
        """Checkpoints that were found to be what they were when saved."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from training into this folder, for as long as the context lasts.

        Where another one does, a ValueError names it. The lock is the kernel's (`flock`): it goes with the process that
        holds it, however that ends. Where the file system knows no locks, a warning says that nothing is kept out.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / LOCK
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(file, 1000).decode(errors="replace").strip('"\n') or "another process"
                raise ValueError(
                    f"{self.path}: {holder} is training into it; wait for it or stop it, or give --out another folder"
                ) from None
            except (ImportError, OSError) as error:  # Windows; some network file systems
                warnings.warn(
                    f"{path}: cannot be locked here ({error}); see to it that no other run uses this folder",
                    stacklevel=2,
                )
            os.truncate(file, 0)
            os.write(file, json.dumps(f"process {os.getpid()} on {socket.gethostname()}").encode() + b"\n")
            yield
        finally:
            os.close(file)

    @property
    def holds_run(self) -> bool:
        """Whether there is a run in the folder."""
        return (self.path / "recipe.yaml").is_file()

    def begin(self, recipe: Recipe, data: Mapping[str, str]) -> None:
        """Make the folder, or go on in it; `data` are the fingerprints that `check` gave, which comes first."""
        text = dump_recipe(recipe)
        lock = {
            "recipe": hashlib.sha256(text.encode()).hexdigest(),
            "data": dict(data),
            "weights": {path: config.weights for path, config in _weighted(recipe)},
            "versions": versions(),
        }
        path = self.path / "recipe.yaml"
        self.path.mkdir(parents=True, exist_ok=True)
        # The recipe comes last: a folder that has one has all of its beginning.
        write_atomically(self.path / "lock.json", json.dumps(lock, indent=1) + "\n")
        write_atomically(path, text)
        self._begun = True
        self.sweep(recipe.stages)

    def check(self, recipe: Recipe) -> dict[str, str]:
        """The data's fingerprints. Refuses another recipe or other data than the run was begun with."""
        data = {name: source.fingerprint() for name, source in recipe.data.items()}
        path = self.path / "recipe.yaml"
        if self.holds_run:
            refused = [
                f"{path}: {key}: the run was begun with {before}, the recipe now says {after}; "
                "give --out another folder, or go on with the recipe as it was"
                for key, before, after in changes(read_file(path), recipe)
            ]
            if refused:
                raise ValueError("\n".join(refused))
            locked = json.loads((self.path / "lock.json").read_text(encoding="utf-8"))
            changed = [name for name, value in data.items() if locked["data"].get(name) != value]
            if changed:
                raise ValueError(
                    f"{self.path}: data.{changed[0]} has changed since this run began; give --out another folder"
                )
        elif self.path.exists() and {found.name for found in self.path.iterdir()} - BEGINNING:
            raise ValueError(f"{self.path}: is not empty and holds no run; give --out a new folder")
        return data

    def committed(self, stage: str) -> list[Checkpoint]:
        """The committed steps of a stage, oldest first."""
        found = []
        for folder in (self.path / stage).glob("step-*"):
            number = re.fullmatch(r"step-(\d+)", folder.name)
            if number and (folder / COMMIT).is_file():
                found.append(Checkpoint(stage, int(number[1]), folder))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def latest(self, stage: str) -> Checkpoint | None:
        """The newest committed step of a stage that is what it was when saved; None where no step was made."""
        for checkpoint in reversed(self.committed(stage)):
            if checkpoint.step and self._is_sound(checkpoint, "the checkpoint before it is used"):
                return checkpoint
        return None

    def beginning(self, stage: str) -> Checkpoint | None:
        """Step 0 of a stage: what the stage does not change and no stage before it has saved. None where all is."""
        for checkpoint in self.committed(stage)[:1]:
            if not checkpoint.step and self._is_sound(checkpoint, "what it holds is made as it was for the first time"):
                return checkpoint
        return None

    def _is_sound(self, checkpoint: Checkpoint, otherwise: str) -> bool:
        # Once for each folder: reading all of a large one takes minutes.
        if checkpoint.folder not in self._sound:
            fault = verify(checkpoint.folder)
            if fault is not None:
                warnings.warn(f"{fault}; {otherwise}", stacklevel=3)
                return False
            self._sound.add(checkpoint.folder)
        return True

    def save(
        self,
        stage: str,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        keep: int,
        world: World = ALONE,
    ) -> None:
        """Commit a step, then remove all but the newest `keep` of the stage, and step 0. Called by every rank."""
        save(self.path / stage / f"step-{step:06d}", tensors, state, world)
        if world.is_first:
            for old in self.committed(stage)[:-keep]:
                if old.step:
                    _remove(old.folder)

    def sweep(self, stages: Iterable[str]) -> None:
        """Remove what a kill left half-written."""
        for stage in stages:
            for folder in (self.path / stage).glob("step-*"):
                if not (folder / COMMIT).is_file():
                    shutil.rmtree(folder)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        self._append(METRICS, [record])

    def list_samples(self, stage: str, step: int, notes: Iterable[tuple[str, Note]]) -> None:
        """Append (source, note) pairs to bad_samples.jsonl; step 0 is what was known before the first."""
        lines = ({"stage": stage, "step": step, "source": source, **note._asdict()} for source, note in notes)
        self._append(BAD, lines)

    def _append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        # A disk that is gone leaves an empty folder in its place, into which one could write all the same.
        if self._begun and not self.holds_run:
            raise ValueError(
                f"{self.path}: is no longer there, or empty; bring it back, then give the same command again"
            )
        if first := next(records := iter(records), None):
            path = self.path / name
            with _named(path), path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in itertools.chain((first,), records))

    def metrics(self, kind: str = "step") -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl of a kind: `step`, or `heldout`. A last line that a kill cut short is left out."""
        return (line for line in _lines(self.path / METRICS) if line.get("kind", "step") == kind)

    def forget_after(self, stage: str, step: int) -> None:
        """Drop what there is of steps that will be run again: what was noted of them, and checkpoints that are damaged.

        What step 0 noted is noted again when the stage begins again.
        """
        for later in self.committed(stage):
            if later.step > step:
                _remove(later.folder)
        for path in (self.path / METRICS, self.path / BAD):
            if path.is_file():
                kept = (line for line in _lines(path) if line["stage"] != stage or 0 < step >= line["step"])
                write_atomically(path, (json.dumps(line) + "\n" for line in kept))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for line in file:
                with suppress(json.JSONDecodeError):
                    yield json.loads(line)


def _weighted(recipe: Recipe) -> Iterator[tuple[str, BackboneConfig | EncoderConfig]]:
    yield "backbone", recipe.backbone
    for name, config in recipe.encoders.items():
        yield f"encoders.{name}", config


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write a file, given whole or in parts, so that either the old or the whole new one is there."""
    temporary = path.with_name(path.name + ".tmp")
    with _named(path):
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong with a file that is open already, as on a full disk, does not say with which: here it does."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
