"""Planned media as files, made by as many processes as help."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from .clips import write_clip
from .pictures import draw_picture
from .plan import Medium
from .scenes import Motion, Order, Picture
from .speech import Utterance, write_speech

Progress = Callable[[str, int, int], None]
Job = tuple[str, Medium]

JOBS_A_PROCESS = 300
"""Fewer media than this are made sooner here than by one more process, which takes half a second to start."""


def render(folder: Path, media: dict[str, Medium], progress: Progress | None = None, processes: int = 0) -> None:
    """Makes every medium at its path below the folder, in so many processes; 0 means as many as help."""
    for parent in {(folder / path).parent for path in media}:
        parent.mkdir(parents=True, exist_ok=True)
    jobs = sorted(media.items(), key=lambda job: _label(job[1]))
    labels = [_label(medium) for _, medium in jobs]
    totals, done = Counter(labels), Counter[str]()
    processes = processes or min(os.cpu_count() or 1, 1 + len(jobs) // JOBS_A_PROCESS)
    for label, _ in zip(labels, _rendered(folder, jobs, processes), strict=True):
        done[label] += 1
        if progress:
            progress(label, done[label], totals[label])


def _rendered(folder: Path, jobs: list[Job], processes: int) -> Iterator[None]:
    """Yields once per finished medium, in order."""
    work = partial(_render_one, folder)
    if processes == 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, jobs, chunksize=32)


def _render_one(folder: Path, job: Job) -> None:
    path, medium = folder / job[0], job[1]
    match medium:
        case Utterance():
            write_speech(medium, path)
        case (Picture() as picture, look):
            draw_picture(picture, look).save(path)
        case ((Motion() | Order()) as clip, look):
            write_clip(clip, look, path)


def _label(medium: Medium) -> str:
    if isinstance(medium, Utterance):
        return "utterances"
    return "pictures" if isinstance(medium.scene, Picture) else "clips"
