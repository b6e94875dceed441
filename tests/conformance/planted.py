"""Components with one fault each: the good ones of `omnikit plugins new`, with one thing changed for the worse."""

import sys
import threading
from importlib import import_module
from typing import ClassVar, Literal

import numpy as np
from omnikit_good_backbone import GoodBackboneConfig
from omnikit_good_benchmark import GoodBenchmarkConfig
from omnikit_good_encoder import GoodEncoderConfig
from omnikit_good_projector import GoodProjectorConfig
from omnikit_good_reader import GoodReaderConfig
from omnikit_good_source import GoodSourceConfig
from pydantic import field_serializer

from omnikit.component import Input, Item, ReaderConfig, Turn, count
from omnikit.media import load_image


class Unpicklable:
    def __getstate__(self):
        raise TypeError("holds an open file")


# ------------------------------------------------------------------------------------------------------------ encoders


class Stacked(GoodEncoderConfig):
    """A good encoder with blocks; the others build another module, or answer otherwise."""

    patch: int = 4
    width: int = 16
    bias: bool = True
    gain: float = 1.0
    module: str = "Stack"

    def cost(self, grid):
        return 2.0 * count(grid) * (self.patch + 3 * self.width) * self.width

    def example(self):
        return Item(np.zeros(2 * self.patch, np.float32), (2, 1, 1))

    def build(self):
        return getattr(import_module("planted_modules"), self.module)(self.patch, self.width)


class DoubleExample(Stacked):
    def example(self):
        item = super().example()
        return item._replace(value=item.value.astype(np.float64))


class Leaving(Stacked):
    def example(self):
        print("nothing to see here")
        sys.exit(0)


class WithoutExample(Stacked):
    def example(self):
        raise NotImplementedError


class HugeTiny(Stacked):
    def tiny(self):
        return self.model_copy(update={"width": 1024})


class OtherTiny(Stacked):
    def tiny(self):
        return self.model_copy(update={"bias": False})


class DearTiny(Stacked):
    def tiny(self):
        return self.model_copy(update={"width": 32})


class Cheap(Stacked):
    def cost(self, grid):
        return 2.0 * count(grid) * self.patch * self.width


class Shallow(Stacked):
    """As deep as it says, and as dear as if it were not."""

    depth: int = 2

    def build(self):
        return import_module("planted_modules").Deep(self.patch, self.width, self.depth)


class Pinned(Unpicklable, Stacked):
    pass


class Rounded(Stacked):
    gain: float = 1 / 3

    @field_serializer("gain")
    def _two_digits(self, gain):
        return round(gain, 2)


class Choosy(Stacked):
    """Wrong in one option alone, and with options of every kind."""

    mode: Literal["a", "b"] | None = None
    strict: bool | None = None

    def cost(self, grid):
        return super().cost(grid) * (10 if self.mode == "b" else 1)

    def build(self):
        if self.mode == "a":
            raise ValueError("there is no such mode")
        return super().build()


class Sized(Stacked):
    size: int


class Untiny(Stacked):
    width: int = 4096

    def tiny(self):
        return self


# ---------------------------------------------------------------------------------------------------------- projectors


class Generous(GoodProjectorConfig):
    def build(self, d_in, d_out):
        return import_module("planted_modules").Generous(d_in, d_out, self.rate)


class Vanishing(GoodProjectorConfig):
    def shrink(self, grid):
        return grid[0] // self.rate, *grid[1:]


class Clumsy(GoodProjectorConfig):
    def shrink(self, grid):
        assert grid[0] >= self.rate
        return super().shrink(grid)


# ------------------------------------------------------------------------------------------------------------- readers


class TwoViews(GoodReaderConfig):
    """A good reader that offers the picture once or twice."""

    def grids(self, medium, input):
        [(_, h, w)] = super().grids(medium, input)
        return [(2, h, w), (1, h, w)]

    def read(self, medium, input, grid):
        item = super().read(medium, input, grid)
        return Item(np.concatenate([item.value] * grid[0]), grid)


class Stubborn(TwoViews):
    def read(self, medium, input, grid):
        return super().read(medium, input, (1, *grid[1:]))


class Misshapen(TwoViews):
    def read(self, medium, input, grid):
        return super().read(medium, input, grid)._replace(value=np.zeros((1, 3, 5, 5), np.float32))


class Doubles(TwoViews):
    def read(self, medium, input, grid):
        item = super().read(medium, input, grid)
        return item._replace(value=item.value.astype(np.float64))


class Shared(TwoViews):
    def read(self, medium, input, grid):
        item = super().read(medium, input, grid)
        in_main = threading.current_thread() is threading.main_thread()
        return item if in_main else item._replace(value=item.value + 1)


class SmallestFirst(TwoViews):
    def grids(self, medium, input):
        return super().grids(medium, input)[::-1]


class Misnamed(TwoViews):
    def sizes(self, input):
        return {"picture": (1, 0, 3)}


class LeavingReader(TwoViews):
    def sizes(self, input):
        sys.exit(0)


class NumpyGrid(TwoViews):
    def read(self, medium, input, grid):
        return super().read(medium, input, grid)._replace(grid=tuple(np.array(grid)))


class Decoding(TwoViews):
    def grids(self, medium, input):
        load_image(medium)
        return super().grids(medium, input)


class Pathless(TwoViews):
    def read(self, medium, input, grid):
        item = super().read(medium, input, grid)
        return item._replace(value=-item.value) if isinstance(medium.source, bytes) else item


class Crashing(TwoViews):
    def grids(self, medium, input):
        try:
            return super().grids(medium, input)
        except ValueError as error:
            raise KeyError(str(error)) from error


class Nameless(TwoViews):
    def grids(self, medium, input):
        try:
            return super().grids(medium, input)
        except ValueError as error:
            raise ValueError("the file is missing, empty or noise") from error


class PinnedReader(Unpicklable, TwoViews):
    pass


class Strange(Input):
    pass


class Unread(ReaderConfig):
    type: ClassVar[str] = "unread"
    makes = Strange


# ------------------------------------------------------------------------------------------------------------- sources


class Robots(GoodSourceConfig):
    def open(self):
        return [sample._replace(turns=(Turn("robot", ()), *sample.turns)) for sample in super().open()]


class Cursor(list):
    """A file that is read on, whatever the index."""

    at = 0

    def __getitem__(self, index):
        super().__getitem__(index)
        self.at += 1
        return super().__getitem__((self.at - 1) % len(self))


class ReadsOn(GoodSourceConfig):
    def open(self):
        return Cursor(super().open())


class OfOneThread(list):
    """As a connection of sqlite3 is."""

    def __init__(self, samples):
        super().__init__(samples)
        self.thread = threading.get_ident()

    def __getitem__(self, index):
        if threading.get_ident() != self.thread:
            raise RuntimeError("made in another thread")
        return super().__getitem__(index)


class Threadbound(GoodSourceConfig):
    def open(self):
        return OfOneThread(super().open())


class Vague(GoodSourceConfig):
    def open(self):
        try:
            return super().open()
        except ValueError as error:
            raise ValueError("a row is bad; mend it") from error


class Blind(GoodSourceConfig):
    def fingerprint(self):
        return self.path


class Confident(GoodSourceConfig):
    def missing(self):
        return None


class PinnedSource(Unpicklable, GoodSourceConfig):
    pass


# ----------------------------------------------------------------------------------------------------------- backbones


class Decoder(GoodBackboneConfig):
    """A good backbone; the others build another module."""

    width: int = 32
    length: int = 64
    module: str = "Decoder"

    def build(self):
        made = getattr(import_module("planted_modules"), self.module)
        return made(self.width, self.layers, self.heads, self.length, 259)


class LowerCase(Decoder):
    def tokenizer(self):
        from tokenizers import normalizers

        tokenizer = super().tokenizer()
        tokenizer.normalizer = normalizers.Lowercase()
        return tokenizer


class Obedient(Decoder):
    def tokenizer(self):
        tokenizer = super().tokenizer()
        tokenizer.encode_special_tokens = False
        return tokenizer


# ---------------------------------------------------------------------------------------------------------- benchmarks


class Answered(GoodBenchmarkConfig):
    """Its questions hold their answers."""

    def questions(self, folder):
        turn = Turn("assistant", (("text", "A"),))
        return [
            question._replace(sample=question.sample._replace(turns=(*question.sample.turns[:-1], turn)))
            for question in super().questions(folder)
        ]


class Enthusiastic(GoodBenchmarkConfig):
    """Its metric thinks more of an answer than is possible."""

    @property
    def metric(self):
        metric = super().metric

        class More:
            better, unit, by, judged = metric.better, metric.unit, metric.by, metric.judged
            score = staticmethod(metric.score)

            @staticmethod
            def grade(question, answer, judge):
                return metric.grade(question, answer, judge)._replace(right=2.0)

        return More


class Sure(GoodBenchmarkConfig):
    """It takes any folder for its data."""

    def missing(self, folder):
        return None


class Fickle(GoodBenchmarkConfig):
    """Its hash is of the object, not of what it says."""

    def definition(self):
        return str(id(self))
