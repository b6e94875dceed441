"""Readers beside other libraries' processors: from a file to the tensor that an encoder eats, at equal output.

Each entrant reads whole passes over the same files, in turns, in three ways: one after another, in two threads, and by
two worker processes (omnikit's own; the others behind torch's DataLoader). What is compared are medians of rounds, by
the clock, and for one thread also by CPU time, which other work on the machine changes less. The outputs of all are
compared first; a pass beside one that gives something else says nothing.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import soundfile
import torch
import transformers
from omnikit_siglip import AnyresConfig, SiglipConfig, SquareConfig
from omnikit_video import FramesConfig
from omnikit_whisper import WaveformConfig, WhisperConfig
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.image_utils import load_image, load_image_as_tensor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.video_utils import load_video
from whisper.audio import log_mel_spectrogram, pad_or_trim

from omnikit.component import EncoderConfig, Medium, ReaderConfig
from omnikit.reading import Reading, prepare

Read = Callable[[str], Tensor]
WAYS = ("1 thread", "2 threads", "2 workers")
CPU = "1 thread, of CPU time"
"""Seconds of the CPU instead of the clock: what other work on the machine takes does not count."""
OURS = "omnikit"
STEP = 2 / 255
"""One of 255 steps of a pixel's scale: Pillow and torch round differently when they resize."""


class Contest(NamedTuple):
    """One kind of media: the files, omnikit's reader for them, who else reads them, and how far apart they may be.

    `apart` bounds the mean difference, and ten times it the largest one.
    """

    name: str
    files: list[str]
    reader: ReaderConfig
    encoder: EncoderConfig
    others: dict[str, Read]
    apart: float


class Row(NamedTuple):
    """Items a second of each entrant in one way, omnikit first, and whether omnikit is not slower than any."""

    contest: str
    way: str
    rates: dict[str, float]

    @property
    def is_first(self) -> bool:
        """Whether no other entrant is faster."""
        return self.rates[OURS] >= max(self.rates.values())


# -------------------------------------------------------------------------------------------------------------- media


def photograph(chance: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft shapes with grain, which compress about as photographs do."""
    coarse = Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    fine = Image.fromarray(chance.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)).resize(
        (width, height)
    )
    return Image.blend(coarse, fine, 0.15)


def photographs(folder: Path, sizes: list[tuple[int, int]]) -> list[str]:
    """JPEG files of these sizes."""
    chance = np.random.default_rng(0)
    paths = [folder / f"{number}-{width}x{height}.jpg" for number, (width, height) in enumerate(sizes)]
    for path, size in zip(paths, sizes, strict=True):
        photograph(chance, *size).save(path, quality=90)
    return list(map(str, paths))


def films(folder: Path, number: int, seconds: int = 8, rate: int = 25) -> list[str]:
    """H.264 films of 640 x 360 in which a picture slides."""
    chance = np.random.default_rng(1)
    paths = [folder / f"{n}.mp4" for n in range(number)]
    for path in paths:
        wide = np.asarray(photograph(chance, 640 + seconds * rate, 360))
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for shift in range(seconds * rate):
                shown = np.ascontiguousarray(wide[:, shift : shift + 640])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            container.mux(stream.encode(None))
    return list(map(str, paths))


def contests(folder: Path, sample: Path, quick: bool) -> Iterator[Contest]:
    """The four kinds. Pictures and films are made in `folder`; speech is the sample data's."""
    many = 1 if quick else 3
    vision = SiglipConfig(preset="so400m-patch14-384")
    normal = {
        "size": {"height": 384, "width": 384},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": Image.Resampling.BICUBIC,
    }

    def pixels(processor: Any, load: Callable[[str], Any], views: bool = False) -> Read:
        def read(path: str) -> Tensor:
            found = processor(load(path), return_tensors="pt")["pixel_values"]
            return found[0] if views else found

        return read

    def in_three_ways(slow: Any, fast: Any, views: bool) -> dict[str, Read]:
        return {
            "transformers, PIL": pixels(slow, load_image, views),
            "transformers, torchvision": pixels(fast, load_image, views),
            "transformers, torchvision, decoded by it": pixels(fast, load_image_as_tensor, views),
        }

    sizes = [(640, 480), (480, 640), (1024, 768), (384, 384)] * 4 * many
    (folder / "square").mkdir()
    siglip = in_three_ways(SiglipImageProcessorPil(**normal), transformers.SiglipImageProcessor(**normal), False)
    yield Contest("images, square", photographs(folder / "square", sizes), SquareConfig(), vision, siglip, STEP)

    # Of these shapes LLaVA's tiles, which keep the shape and pad, are ours, which do neither.
    sizes = [(768, 768), (1536, 1024), (768, 1536), (1200, 1200)] * 2 * many
    (folder / "anyres").mkdir()
    pinpoints = [
        [384 * rows, 384 * columns] for rows in range(1, 10) for columns in range(1, 10) if rows * columns <= 9
    ]
    tiled = {**normal, "image_grid_pinpoints": pinpoints}
    slow, fast = LlavaOnevisionImageProcessorPil(**tiled), transformers.LlavaOnevisionImageProcessor(**tiled)
    files = photographs(folder / "anyres", sizes)
    yield Contest("images, anyres", files, AnyresConfig(), vision, in_three_ways(slow, fast, True), STEP)

    (folder / "films").mkdir()
    processor = transformers.LlavaOnevisionVideoProcessor(**normal)

    def frames(decoder: str) -> Read:
        def read(path: str) -> Tensor:
            film, _ = load_video(path, fps=1, backend=decoder)
            return processor(videos=[film], return_tensors="pt")["pixel_values_videos"][0]

        return read

    theirs = {f"transformers, {decoder}": frames(decoder) for decoder in ("pyav", "decord")}
    yield Contest("video, frames", films(folder / "films", 3 * many), FramesConfig(max_tiles=1), vision, theirs, STEP)

    extractor = transformers.WhisperFeatureExtractor()

    def sound(path: str) -> np.ndarray:
        return soundfile.read(path, dtype="float32")[0]

    theirs = {
        "transformers": lambda path: extractor(sound(path), sampling_rate=16000, return_tensors="pt").input_features[0],
        "openai-whisper": lambda path: log_mel_spectrogram(pad_or_trim(torch.from_numpy(sound(path)))),
    }
    speech = sorted((sample / "train" / "media" / "dictation").iterdir())[: 16 * many]
    yield Contest(
        "audio, 30 s mel", list(map(str, speech)), WaveformConfig(), WhisperConfig(preset="tiny"), theirs, 1e-4
    )


# ------------------------------------------------------------------------------------------------------------- passes


def by_omnikit(contest: Contest, reading: Reading) -> Read:
    """Omnikit's reader as training calls it: what the header says, then the largest grid of it."""

    def read(path: str) -> Tensor:
        medium = Medium(path)
        grids = reading.grids(contest.reader, medium, contest.encoder.input)
        item = reading.read(contest.reader, medium, contest.encoder.input, grids[0])
        return torch.from_numpy(item.value)

    return read


class Loaded(torch.utils.data.Dataset):
    """What torch's DataLoader reads from."""

    def __init__(self, files: list[str], read: Read) -> None:
        self.files, self.read = files, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.read(self.files[index])


def passes_of(contest: Contest, pool: ThreadPoolExecutor) -> dict[str, dict[str, Callable[[], object]]]:
    """For each way and entrant a function that reads all files once."""
    entrants = {OURS: by_omnikit(contest, Reading()), **contest.others}
    apart = by_omnikit(contest, Reading(workers=2))
    found: dict[str, dict[str, Callable[[], object]]] = {way: {} for way in WAYS}
    for name, read in entrants.items():
        # Forked, for what they read with are functions made here; and before decord is used, which does not survive it.
        loader = DataLoader(
            Loaded(contest.files, read),
            batch_size=None,
            num_workers=2,
            persistent_workers=True,
            multiprocessing_context="fork",
        )
        iter(loader)
        found["1 thread"][name] = lambda read=read: [read(path) for path in contest.files]
        found["2 threads"][name] = lambda read=read: list(pool.map(read, contest.files))
        found["2 workers"][name] = lambda loader=loader: list(loader)
    found["2 workers"][OURS] = lambda: list(pool.map(apart, contest.files))
    return found


def differences(contest: Contest) -> dict[str, tuple[float, float]]:
    """(mean, largest) difference of every entrant from omnikit's output, over all files; other shapes are infinite."""
    ours = by_omnikit(contest, Reading())
    found = dict.fromkeys(contest.others, (0.0, 0.0))
    for path in contest.files:
        expected = ours(path)
        for name, read in contest.others.items():
            given = read(path)
            apart = (given - expected).abs() if given.shape == expected.shape else torch.full((1,), torch.inf)
            mean, most = found[name]
            found[name] = max(mean, float(apart.mean())), max(most, float(apart.max()))
    return found


def compared(contest: Contest, passes: dict[str, dict[str, Callable[[], object]]], rounds: int) -> list[Row]:
    """Items a second in every way, medians over the rounds; the entrants take turns, another one first each round."""
    rows = []
    for way, entrants in passes.items():
        names = list(entrants)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for name in names:  # what is loaded or started late
            entrants[name]()
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                began = time.perf_counter(), time.process_time()
                entrants[name]()
                taken[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        clocks = {way: 0, CPU: 1} if way == WAYS[0] else {way: 0}
        for clock, which in clocks.items():
            middle = {name: statistics.median(seconds[which] for seconds in taken[name]) for name in names}
            rows.append(Row(contest.name, clock, {name: len(contest.files) / middle[name] for name in names}))
    return rows


def race(folder: Path, sample: Path, quick: bool) -> Iterator[tuple[str, str, str, bool]]:
    """(what, figures, what is wanted, whether it is reached) of every contest and way, and of all together."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    with ThreadPoolExecutor(2) as pool:
        for contest in contests(folder, sample, quick):
            prepare([contest.reader])
            passes = passes_of(contest, pool)
            for name, (mean, most) in differences(contest).items():
                is_equal = mean <= contest.apart and most <= 10 * contest.apart
                told = f"mean difference {mean:.1e}, largest {most:.1e}"
                yield (
                    f"{contest.name}: output beside {name}",
                    told,
                    f"at most {contest.apart:.0e}, ten times that",
                    is_equal,
                )
            for row in compared(contest, passes, 3 if quick else 7):
                rows.append(row)
                told = "; ".join(f"{name} {rate:.1f}" for name, rate in row.rates.items())
                yield f"{row.contest}, {row.way}: items/s", told, "omnikit not slower", row.is_first
    for way in (CPU, *WAYS):
        # Seconds that an item of each kind takes together, beside the fastest other reader of each kind.
        own = sum(1 / row.rates[OURS] for row in rows if row.way == way)
        best = sum(1 / max(r for name, r in row.rates.items() if name != OURS) for row in rows if row.way == way)
        told = f"{1000 * own:.0f} ms one item of each; the fastest others {1000 * best:.0f} ms"
        yield f"all readers, {way}", told, "omnikit faster in total", own < best
