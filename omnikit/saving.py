"""Checkpoints are written beside the training: a step waits for its tensors to be copied, not for the disk."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from omnikit.checkpoint import RunFolder
from omnikit.distributed import World


class Saver:
    """Writes a run's checkpoints in a thread, one at a time. Every rank has one and calls it alike.

    As a context it waits, on leaving, for what is being written; after an error only where it waits for nobody else.
    """

    def __init__(self, run: RunFolder, world: World) -> None:
        self.run, self.world = run, world
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        self.pool.shutdown(wait=self.world.size == 1)

    def save(self, stage: str, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int) -> None:
        """Begin to write a step, as the tensors are now. What was wrong with the one before is raised here.

        Step 0 is of what the stage never changes: on a CPU it needs no copy.
        """
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=step > 0) for name, tensor in tensors.items()}
        self.writing = self.pool.submit(self.run.save, stage, step, copies, state, keep, self.world)

    @property
    def has_failed(self) -> bool:
        """Whether what was being written could not be. The next `save` says why."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def wait(self) -> None:
        """Wait until what is being written is committed. Where that fails, it fails on every rank."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        error = writing.exception()
        self.world.agree(writing.result)
        if error is not None:
            raise error
