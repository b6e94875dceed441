"""What a picture or clip shows, sampled; what is true of it; and how it is told in words.

Nothing here draws: the same scenes become pixels in `pictures` and `clips`, and text in `plan`.
"""

from random import Random
from typing import NamedTuple

from .words import COLOURS, HEIGHTS, HELDOUT_PAIRS, NUMBERS, SHAPES, SIDES, SIZES, WAYS

START = {"left": "right", "right": "left", "up": "bottom", "down": "top"}
"""Where a figure starts that moves this way."""
GOAL = {"left": "left", "right": "right", "up": "top", "down": "bottom"}
"""Where it arrives."""


class Figure(NamedTuple):
    """A coloured shape."""

    colour: str
    shape: str

    @property
    def told(self) -> str:
        """The figure in words."""
        return f"{self.colour} {self.shape}"

    @property
    def heldout(self) -> bool:
        """Whether this combination is kept out of training."""
        return (self.colour, self.shape) in HELDOUT_PAIRS


class Placed(NamedTuple):
    """A figure in one quarter of a picture."""

    figure: Figure
    size: str
    height: str
    side: str

    @property
    def told(self) -> str:
        """The place, then what is there: whoever tells a picture so decides one thing at a time."""
        return f"{self.height} {self.side} {self.size} {self.figure.colour} {self.figure.shape}"

    @property
    def told_by_shape(self) -> str:
        """The shape, then what is true of it: whoever tells a picture so has to find a figure by its shape."""
        return f"{self.figure.shape} {self.figure.colour} {self.size} {self.side} {self.height}"


class Picture(NamedTuple):
    """One to four figures in reading order, no shape and no colour twice."""

    placed: tuple[Placed, ...]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What is in it."""
        return tuple(one.figure for one in self.placed)

    @property
    def caption(self) -> str:
        """The whole picture in words."""
        return " and ".join(one.told for one in self.placed)

    def by_shape(self, random: Random) -> str:
        """Returns its shapes, in any order, and what is true of each."""
        return " and ".join(one.told_by_shape for one in random.sample(self.placed, len(self.placed)))


class Motion(NamedTuple):
    """A clip in which one figure crosses the picture."""

    figure: Figure
    way: str

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What is in it."""
        return (self.figure,)

    @property
    def caption(self) -> str:
        """The whole clip in words."""
        return f"{self.figure.told} moves {self.way}"

    def frames(self, random: Random) -> str:
        """Returns three or four moments of the clip in words."""
        start, goal = START[self.way], GOAL[self.way]
        moments = [start, "middle", goal]
        if random.random() < 0.5:
            moments.insert(*random.choice([(0, start), (1, "middle"), (2, goal)]))
        return " then ".join(f"{moment} {self.figure.told}" for moment in moments)


class Order(NamedTuple):
    """A clip in which one figure is replaced by another at half time."""

    first: Figure
    last: Figure

    @property
    def figures(self) -> tuple[Figure, ...]:
        """What is in it."""
        return (self.first, self.last)

    @property
    def caption(self) -> str:
        """The whole clip in words."""
        return f"first {self.first.told} then {self.last.told}"

    def frames(self, random: Random) -> str:
        """Returns two to four moments of the clip in words."""
        moments = [self.first] * random.randint(1, 2) + [self.last] * random.randint(1, 2)
        return " then ".join(f"middle {figure.told}" for figure in moments)


Clip = Motion | Order
Scene = Picture | Motion | Order


class Question(NamedTuple):
    """One thing to ask about a scene: `about` fills the wording's `{it}`, `figure` is the one that must be found."""

    kind: str
    about: str
    answer: str
    figure: Figure | None = None


def sample_figures(random: Random, number: int, heldout: bool | None) -> tuple[Figure, ...]:
    """Returns figures of distinct shapes and colours: training pairs only, with a held-out pair, or (None) any."""
    while True:
        figures = tuple(map(Figure, random.sample(COLOURS, number), random.sample(SHAPES, number)))
        if heldout is None or any(figure.heldout for figure in figures) == heldout:
            return figures


def sample_picture(random: Random, heldout: bool | None, number: int | None = None) -> Picture:
    """Returns a random picture with this number of figures, or with one to four, each number equally often."""
    figures = sample_figures(random, number or random.randint(1, len(NUMBERS)), heldout)
    cells = sorted(random.sample(range(4), len(figures)))
    return Picture(
        tuple(
            Placed(figure, random.choice(SIZES), HEIGHTS[cell // 2], SIDES[cell % 2])
            for figure, cell in zip(figures, cells, strict=True)
        )
    )


def sample_clip(random: Random, heldout: bool | None) -> Clip:
    """Returns a random clip: a motion or an order of two figures, equally often."""
    if random.random() < 0.5:
        return Motion(sample_figures(random, 1, heldout)[0], random.choice(WAYS))
    first, last = sample_figures(random, 2, heldout)
    return Order(first, last)


def ask(kind: str, scene: Scene, random: Random) -> Question | None:
    """Returns a question of this kind about something in the scene, or None where it makes no sense."""
    if isinstance(scene, Picture):
        return ask_picture(kind, scene, random)
    return ask_clip(kind, scene, random)


def sample_scene(medium: str, random: Random, heldout: bool | None) -> Scene:
    """Returns a random picture or clip."""
    return sample_picture(random, heldout) if medium == "picture" else sample_clip(random, heldout)


def pose(
    medium: str, kind: str, answer: str, random: Random, heldout: bool | None, novel: bool | None = None
) -> tuple[Scene, Question]:
    """Returns a random scene and a question of this kind with this answer.

    `novel` says whether the figure asked about must be one of the held-out pairs, or must not; None leaves it open.
    """
    while True:
        scene = sample_scene(medium, random, heldout)
        question = ask(kind, scene, random)
        if question is None or question.answer != answer:
            continue
        if novel is None or (question.figure is not None and question.figure.heldout == novel):
            return scene, question


def ask_picture(kind: str, picture: Picture, random: Random) -> Question:
    """Returns a question of this kind about a random figure of the picture."""
    if kind == "count":
        return Question(kind, "", NUMBERS[len(picture.placed) - 1])
    figure, size, height, side = random.choice(picture.placed)
    answer = {"side": side, "height": height, "size": size}.get(kind)
    return Question(kind, figure.shape, answer, figure) if answer else _ask_figure(kind, figure)


def ask_clip(kind: str, clip: Clip, random: Random) -> Question | None:
    """Returns a question of this kind about the clip, or None where it makes no sense."""
    if kind in ("colour", "shape"):
        return _ask_figure(kind, random.choice(clip.figures))
    match clip, kind:
        case Motion(figure, way), "motion":
            return Question(kind, figure.shape, way, figure)
        case Order(first, _), "first_shape":
            return Question(kind, "", first.shape, first)
        case Order(_, last), "last_shape":
            return Question(kind, "", last.shape, last)
        case Order(first, _), "first_colour":
            return Question(kind, "", first.colour, first)
    return None


def _ask_figure(kind: str, figure: Figure) -> Question:
    if kind == "colour":
        return Question(kind, figure.shape, figure.colour, figure)
    return Question(kind, figure.colour, figure.shape, figure)
