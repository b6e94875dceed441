"""Checks of readers."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from omnikit.component import Grid, Input, Item, Medium, Mel, Pixels, ReaderConfig, count
from omnikit.testing.processes import ask_worker
from omnikit.testing.results import Fault, reason

__all__ = ["READER_CHECKS", "ReaderTrial", "no_decoding"]


class ReaderTrial:
    """A reader, the Input to read for, and good media."""

    def __init__(self, config: ReaderConfig, input: Input, media: Sequence[Medium]) -> None:
        if not media:
            raise Fault("specimens wrote no media; write a few, the odd shapes first")
        self.config, self.input, self.media = config, input, list(media)

    def grids(self, medium: Medium) -> list[Grid]:
        """What the reader offers."""
        return self.config.grids(medium, self.input)

    def read(self, medium: Medium, grid: Grid) -> Item:
        """What it reads."""
        return self.config.read(medium, self.input, grid)

    def items(self) -> Iterator[tuple[Medium, Item]]:
        """Every medium in its largest grid."""
        for medium in self.media:
            yield medium, self.read(medium, self.grids(medium)[0])


def gives_the_promised_grids(trial: ReaderTrial) -> str:
    """`read` gives exactly the grid that it is asked for, of every grid that `grids` offers."""
    made = 0
    for medium in trial.media:
        for grid in trial.grids(medium):
            item = trial.read(medium, grid)
            _check_grids([item.grid], _short(medium))
            if item.grid != grid:
                raise Fault(f"{_short(medium)}: asked for {grid}, read gives {item.grid}")
            _check_shape(trial.input, item, medium)
            made += 1
    return f"{made} items of {len(trial.media)} media"


def _check_shape(input: Input, item: Item, medium: Medium) -> None:
    shape = np.shape(item.value)
    if isinstance(input, Pixels):
        wanted: object = (item.grid[0], 3, input.size, input.size)
        fits = shape == wanted and item.grid[1:] == (input.side, input.side)
    elif isinstance(input, Mel):
        wanted = f"({input.bins}, frames of {item.grid[0]} features)"
        fits = len(shape) == 2 and shape[0] == input.bins and input.features(shape[1]) >= item.grid[0]
    else:
        return
    if not fits:
        raise Fault(f"{_short(medium)}: a value of shape {shape} for grid {item.grid}; it would be {wanted}")


def values_are_float32_arrays(trial: ReaderTrial) -> str:
    """A value is one float32 numpy array of finite numbers."""
    for medium, item in trial.items():
        if not isinstance(item.value, np.ndarray) or item.value.dtype != np.float32:
            seen = getattr(item.value, "dtype", type(item.value).__name__)
            raise Fault(f"{_short(medium)}: the value is {seen}; give a numpy array of float32")
        if not np.isfinite(item.value).all():
            raise Fault(f"{_short(medium)}: the value holds NaN or infinity")
    return ""


def reads_the_same_twice(trial: ReaderTrial) -> str:
    """The same medium and grid give the same value, bitwise, in threads at once as one after the other."""
    jobs = [(medium, trial.grids(medium)[0]) for medium in trial.media]
    first = [trial.read(*job) for job in jobs]
    with ThreadPoolExecutor(2) as threads:
        second = list(threads.map(lambda job: trial.read(*job), jobs))
    for (medium, _), one, two in zip(jobs, first, second, strict=True):
        if not _same(one, two):
            raise Fault(f"{_short(medium)}: another value the second time; readers draw nothing at random")
    return f"{len(jobs)} media"


def offers_the_largest_grid_first(trial: ReaderTrial) -> str:
    """`grids` gives at least one grid, each of three positive whole numbers, each with fewer features than the last."""
    for medium in trial.media:
        grids = trial.grids(medium)
        if not isinstance(grids, list) or not grids:
            raise Fault(f"{_short(medium)}: grids gives {grids!r}; give a list of at least one grid, or a ValueError")
        _check_grids(grids, _short(medium))
        sizes = [count(grid) for grid in grids]
        if sizes != sorted(set(sizes), reverse=True):
            raise Fault(f"{_short(medium)}: grids of {sizes} features; give the largest first, and each size once")
    return ""


def _check_grids(grids: Sequence[Grid], where: str) -> None:
    for grid in grids:
        if not (isinstance(grid, tuple) and len(grid) == 3 and all(isinstance(n, int) and n > 0 for n in grid)):
            raise Fault(f"{where}: {grid!r} is no grid; it is (t, h, w), whole numbers above 0")


def named_sizes_are_grids(trial: ReaderTrial) -> str:
    """`sizes` names grids of the kind that `grids` offers."""
    sizes = trial.config.sizes(trial.input)
    _check_grids(list(sizes.values()), "sizes")
    offered = {grid[1:] for medium in trial.media for grid in trial.grids(medium)}
    for name, grid in sizes.items():
        if isinstance(trial.input, Pixels | Mel) and grid[1:] not in offered:
            raise Fault(f"sizes: {name!r} is {grid}, but grids offers (t, h, w) of (h, w) {sorted(offered)}")
    return f"{len(sizes)} names"


def grids_decodes_nothing(trial: ReaderTrial) -> str:
    """`grids` works where pictures, sound and frames cannot be decoded: it looks at headers alone."""
    expected = [trial.grids(medium) for medium in trial.media]
    with no_decoding(type(trial.config).__module__):
        for medium, grids in zip(trial.media, expected, strict=True):
            if trial.grids(medium) != grids:
                raise Fault(f"{_short(medium)}: without decoding, grids offers others")
    return ""


def takes_bytes_as_it_takes_paths(trial: ReaderTrial) -> str:
    """A medium's bytes give the same grids and value as its path."""
    for medium in trial.media:
        if isinstance(medium.source, str):
            held = medium._replace(source=Path(medium.source).read_bytes())
            grids = trial.grids(medium)
            if trial.grids(held) != grids:
                raise Fault(f"{_short(medium)}: its bytes give other grids than its path")
            if not _same(trial.read(held, grids[0]), trial.read(medium, grids[0])):
                raise Fault(f"{_short(medium)}: its bytes give another value than its path")
    return ""


def refuses_what_it_cannot_read(trial: ReaderTrial) -> str:
    """What is missing, empty or noise is a ValueError that names the medium, from `grids` and from `read`."""
    noise = np.random.default_rng(0).bytes(500)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in (("missing", None), ("empty", b""), ("noise", noise)):
            path = Path(folder, f"{name}.x7q")  # a word that no message holds by chance
            if content is not None:
                path.write_bytes(content)
            medium = Medium(str(path))
            _refused(lambda medium=medium: trial.grids(medium), name, "grids")
            _refused(lambda medium=medium: trial.read(medium, trial.grids(trial.media[0])[-1]), name, "read")
    return ""


def _refused(call: Any, name: str, method: str) -> None:  # noqa: ANN401
    try:
        call()
    except ValueError as error:
        if f"{name}.x7q" not in str(error):
            raise Fault(f"{method} of a file that is {name}: the ValueError does not name it: {error}") from error
    except Exception as error:
        raise Fault(f"{method} of a file that is {name} raises {reason(error)}; make it a ValueError") from error
    else:
        raise Fault(f"{method} of a file that is {name} goes well; make it a ValueError")


def travels_to_a_worker(trial: ReaderTrial) -> str:
    """The Config is pickled into another process, and offers and reads the same there."""
    config, found = ask_worker(_read_there, trial)
    if config != trial.config:
        raise Fault("in another process it is another Config")
    for medium, (grids, item) in zip(trial.media, found, strict=True):
        if grids != trial.grids(medium) or not _same(item, trial.read(medium, grids[0])):
            raise Fault(f"{_short(medium)}: in another process it reads something else")
    return ""


def _read_there(trial: ReaderTrial) -> tuple[ReaderConfig, list[tuple[list[Grid], Item]]]:
    offered = [trial.grids(medium) for medium in trial.media]
    return trial.config, [(grids, trial.read(m, grids[0])) for m, grids in zip(trial.media, offered, strict=True)]


def _same(one: Item, other: Item) -> bool:
    return tuple(one.grid) == tuple(other.grid) and np.array_equal(np.asarray(one.value), np.asarray(other.value))


def _short(medium: Medium) -> str:
    return str(medium._replace(source=Path(medium.source).name) if isinstance(medium.source, str) else medium)


# ---------------------------------------------------------------------------------------------- nothing can be decoded


@contextmanager
def no_decoding(module: str) -> Iterator[None]:
    """Within, whatever decodes a picture, sound or frame is a Fault: in `omnikit.media` as in the libraries below it.

    `module` is where the reader's class stands: its package may have imported decoders by name.
    """
    import av
    import soundfile
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

    import omnikit.media

    package = module.split(".")[0]
    seen = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == package or name == "omnikit.media"]
    with ExitStack() as stack:
        for name in ("load_image", "load_audio"):
            original = getattr(omnikit.media, name)
            for holder in seen:
                if isinstance(holder, ModuleType) and vars(holder).get(name) is original:
                    stack.enter_context(patch.object(holder, name, _refuse))
        for owner, name in ((ImageFile, "load"), (soundfile.SoundFile, "read"), (soundfile.SoundFile, "buffer_read")):
            stack.enter_context(patch.object(owner, name, _refuse))
        stack.enter_context(patch.object(Image, "getdata", _refuse))
        opened = av.open
        stack.enter_context(patch.object(av, "open", lambda *args, **options: Sealed(opened(*args, **options))))
        decord = sys.modules.get("decord")
        if decord is not None:
            stack.enter_context(patch.object(decord, "VideoReader", _refuse))
        yield


def _refuse(*_: object, **__: object) -> None:
    raise Fault("grids decodes; look at the header alone (image_size, audio_length, video_header), once per medium")


class Sealed:
    """A container or packet of PyAV that does everything but decode."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401
        self._inner = inner

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._inner, name)

    def __enter__(self) -> "Sealed":
        self._inner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(*error)

    def decode(self, *_: object, **__: object) -> None:
        _refuse()

    def demux(self, *args: Any, **options: Any) -> Iterator["Sealed"]:  # noqa: ANN401
        return map(Sealed, self._inner.demux(*args, **options))


READER_CHECKS = (
    gives_the_promised_grids,
    values_are_float32_arrays,
    reads_the_same_twice,
    offers_the_largest_grid_first,
    named_sizes_are_grids,
    grids_decodes_nothing,
    takes_bytes_as_it_takes_paths,
    refuses_what_it_cannot_read,
    travels_to_a_worker,
)
