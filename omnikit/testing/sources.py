"""Checks of sources."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from omnikit.component import Medium, Sample, SourceConfig
from omnikit.testing.processes import ask_worker
from omnikit.testing.results import Fault, reason

__all__ = ["SOURCE_CHECKS", "SourceTrial"]

ROLES = ("system", "user", "assistant")
JUNK = b'\xff\xfe{"\x00'


class SourceTrial:
    """A source whose data is there."""

    def __init__(self, config: SourceConfig) -> None:
        self.config = config


def holds_samples(trial: SourceTrial) -> str:
    """A sequence of Samples: it has a length, an index, an end, and what it holds is declared."""
    data, allowed = trial.config.open(), {"text", *trial.config.modalities}
    if not len(data):
        raise Fault("holds no sample")
    for index in range(len(data)):
        _check_sample(data[index], f"sample {index}", allowed)
    try:
        data[len(data)]
    except IndexError:
        return f"{len(data)} samples"
    except Exception as error:
        raise Fault(f"beyond its end it raises {reason(error)}; an IndexError is the end of a sequence") from error
    raise Fault("gives a sample beyond its length; raise an IndexError")


def _check_sample(sample: object, where: str, allowed: set[str]) -> None:
    if not isinstance(sample, Sample) or not isinstance(sample.id, str) or not sample.id:
        raise Fault(f"{where} is {sample!r:.100}; give a Sample with an id")
    if not any(turn.role == "assistant" for turn in sample.turns):
        raise Fault(f"{where} has no assistant turn: there is nothing to learn")
    for turn in sample.turns:
        if turn.role not in ROLES:
            raise Fault(f"{where} has a turn of {turn.role!r}; roles are {', '.join(ROLES)}")
        for name, value in turn.content:
            if name not in allowed:
                raise Fault(f"{where} holds {name!r}, which the field `modalities` does not declare")
            if not isinstance(value, str if name == "text" else Medium):
                raise Fault(f"{where} holds a {name} that is {type(value).__name__}")


def same_sample_at_the_same_index(trial: SourceTrial) -> str:
    """Opened again, and asked in another order and from another thread, it gives the same samples."""
    data = trial.config.open()
    forwards = [data[index] for index in range(len(data))]
    again = trial.config.open()
    with ThreadPoolExecutor(1) as thread:  # as of windows that are planned ahead
        backwards = list(thread.map(again.__getitem__, reversed(range(len(again)))))
    if forwards != backwards[::-1]:
        raise Fault("gives other samples the second time; the sample of an index is always the same")
    return ""


def names_the_place_of_a_broken_record(trial: SourceTrial) -> str:
    """With junk in its data, parsing is a ValueError that names the file, and never another exception."""
    noticed = 0
    for damage in (_junk_inside, _cut_in_two):
        with _specimen(trial) as (config, files):
            for file in _read_by(config, files) or files:
                content = file.read_bytes()
                damage(file)
                noticed += _complaints(config, file)
                file.write_bytes(content)  # one at a time: what is said must be of this file
    if not noticed:
        raise Fault("junk in its data goes unnoticed; a record that cannot be parsed is a ValueError")
    return f"{noticed} complaints"


def _complaints(config: SourceConfig, file: Path) -> int:
    def attempt(call: Callable[[], object]) -> int:
        try:
            call()
        except ValueError as error:
            if file.name not in str(error):
                raise Fault(f"the ValueError about a broken {file.name} does not name it: {error}") from error
            return 1
        except Exception as error:
            raise Fault(
                f"junk in {file.name} raises {reason(error)}; make it a ValueError that names the place"
            ) from error
        return 0

    found: list[int] = []
    failed = attempt(lambda: found.append(len(config.open())))
    if failed:
        return failed
    return sum(attempt(partial(_sample, config, index)) for index in range(found[0]))


def _sample(config: SourceConfig, index: int) -> Sample:
    return config.open()[index]


def fingerprint_follows_the_data(trial: SourceTrial) -> str:
    """The fingerprint is a text, the same for the same data, another when the data changes."""
    first = trial.config.fingerprint()
    if not first or first != trial.config.fingerprint():
        raise Fault(f"the fingerprint of the same data is {first!r}, then {trial.config.fingerprint()!r}")
    with _specimen(trial) as (config, files):
        if not _read_by(config, files):
            raise Fault("no change of any file of the specimen changes the fingerprint")
    return ""


def tells_what_is_missing(trial: SourceTrial) -> str:
    """`missing()` is None when the data is there, and says what is not when it is gone."""
    said = trial.config.missing()
    if said is not None:
        raise Fault(f"says that {said} is missing, which is there")
    with _specimen(trial) as (config, files):
        for file in files:
            file.unlink()
        if not isinstance(config.missing(), str):
            raise Fault("says nothing when its data is gone; give the path that is missing")
    return ""


def travels_to_a_worker(trial: SourceTrial) -> str:
    """The Config is pickled into another process, and gives the same samples there."""
    config, samples = ask_worker(_opened_there, trial.config)
    data = trial.config.open()
    if config != trial.config or samples != [data[index] for index in range(len(data))]:
        raise Fault("in another process it gives other samples")
    return ""


def _opened_there(config: SourceConfig) -> tuple[SourceConfig, list[Sample]]:
    data = config.open()
    return config, [data[index] for index in range(len(data))]


@contextmanager
def _specimen(trial: SourceTrial) -> Iterator[tuple[SourceConfig, list[Path]]]:
    """A data set of its own, to be damaged, and its files."""
    folder = Path(tempfile.mkdtemp(prefix="omnikit-source-"))
    try:
        config = type(trial.config).specimen(folder)
        yield config, sorted(path for path in folder.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(folder)


def _read_by(config: SourceConfig, files: list[Path]) -> list[Path]:
    """The files on which the fingerprint depends: media are not read for it."""
    found, before = [], config.fingerprint()
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        if config.fingerprint() != before:
            found.append(file)
        file.write_bytes(content)
    return found


def _junk_inside(file: Path) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + JUNK + content[middle + len(JUNK) :])


def _cut_in_two(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2 + 1])


SOURCE_CHECKS = (
    holds_samples,
    same_sample_at_the_same_index,
    names_the_place_of_a_broken_record,
    fingerprint_follows_the_data,
    tells_what_is_missing,
    travels_to_a_worker,
)
