"""The closed world in words: what pictures, clips and speech are about, and every way to ask about it.

All texts are lower-case words separated by single spaces, so that a word-level tokenizer of `WORDS` reads all of them.
"""

from dataclasses import dataclass

COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
NUMBERS = ("one", "two", "three", "four")
HEIGHTS = ("top", "bottom")
SIDES = ("left", "right")
WAYS = ("left", "right", "up", "down")
FILLER = "uh"

SPOKEN_WORDS = (*COLOURS, *SHAPES, *SIZES, *NUMBERS, *HEIGHTS, *WAYS, "middle")
"""The 24 words of dictation."""

HELDOUT_PAIRS = (("purple", "circle"), ("red", "square"), ("blue", "triangle"), ("black", "star"), ("green", "cross"))
"""(colour, shape) pairs that no picture or clip of the training half shows; its texts may tell of them."""

ANSWERS = {
    "colour": COLOURS,
    "shape": SHAPES,
    "count": NUMBERS,
    "side": SIDES,
    "height": HEIGHTS,
    "size": SIZES,
    "motion": WAYS,
    "first_shape": SHAPES,
    "last_shape": SHAPES,
    "first_colour": COLOURS,
}
"""Every answer of a question kind; all are equally likely, so chance is one over their number."""

MEDIA_KINDS = {
    "picture": ("colour", "shape", "count", "side", "height", "size"),
    "clip": ("motion", "first_shape", "last_shape", "first_colour", "colour", "shape"),
}
"""What may be asked about a picture and about a clip."""


@dataclass(frozen=True)
class Wordings:
    """Ways to ask one thing; `{it}` stands for the shape (or the colour) that the question is about.

    `heldout` wordings recombine words of `train` and are only read in held-out files. Speech has fewer: `spoken` is
    heard in training. A held-out spoken question is one of `spoken` about a new scene with a new combination of
    attributes, or one of `spoken_heldout`, whose order of words was read in training but never heard.
    """

    train: tuple[str, ...]
    heldout: tuple[str, ...]
    spoken: tuple[str, ...] = ()
    spoken_heldout: tuple[str, ...] = ()

    def read(self, heldout: bool) -> tuple[str, ...]:
        """Returns the written wordings of this half."""
        return self.heldout if heldout else self.train

    def heard(self, heldout: bool) -> tuple[str, ...]:
        """Returns the spoken wordings of this half."""
        return self.spoken + self.spoken_heldout if heldout else self.spoken


def _either(first: str, second: str, place: str) -> Wordings:
    """Returns the wordings that offer two answers for where something is."""
    return Wordings(
        train=(
            f"is the {{it}} at the {first} or the {second}",
            f"is the {{it}} at the {second} or the {first}",
            f"is the {{it}} {second} or {first}",
            f"where is the {{it}} {first} or {second}",
            f"where is the {{it}} at {second} or {first}",
            f"which {place} is the {{it}} at",
            f"which {place} is the {{it}} at {first} or {second}",
            f"the {{it}} is at the {first} or the {second}",
            f"the {{it}} is {second} or {first}",
            f"tell me which {place} the {{it}} is at",
            f"say where the {{it}} is {first} or {second}",
        ),
        heldout=(
            f"where is the {{it}} at the {first} or the {second}",
            f"which {place} is the {{it}} at the {second} or the {first}",
            f"the {{it}} is at the {second} or the {first}",
        ),
        spoken=(
            f"is the {{it}} at the {first} or the {second}",
            f"where is the {{it}} {first} or {second}",
            f"is the {{it}} {second} or {first}",
            f"which {place} is the {{it}} at",
        ),
        spoken_heldout=(f"is the {{it}} at the {second} or the {first}",),
    )


def _comes(when: str, noun: str) -> Wordings:
    """Returns the wordings that ask for the shape or colour which comes first or last."""
    return Wordings(
        train=(
            f"which {noun} comes {when}",
            f"what {noun} comes {when}",
            f"name the {when} {noun}",
            f"tell me the {when} {noun}",
            f"say what {noun} comes {when}",
            f"tell me which {noun} comes {when}",
            f"what is the {noun} that comes {when}",
        ),
        heldout=(
            f"what is the {when} {noun}",
            f"tell me what {noun} comes {when}",
            f"name the {noun} that comes {when}",
        ),
        spoken=(f"which {noun} comes {when}", f"tell me the {when} {noun}"),
    )


QUESTIONS = {
    "colour": Wordings(
        train=(
            "what colour is the {it}",
            "which colour is the {it}",
            "name the colour of the {it}",
            "tell me the colour of the {it}",
            "the {it} is what colour",
            "say what colour the {it} is",
            "tell me which colour the {it} is",
            "what is the colour that the {it} is",
        ),
        heldout=(
            "what is the colour of the {it}",
            "tell me what colour the {it} is",
            "the {it} is which colour",
        ),
        spoken=("what colour is the {it}", "name the colour of the {it}"),
    ),
    "shape": Wordings(
        train=(
            "what shape is {it}",
            "which shape is {it}",
            "name the {it} shape",
            "tell me the shape that is {it}",
            "tell me what shape is {it}",
            "say which shape is {it}",
            "what is the shape that is {it}",
        ),
        heldout=("what is the {it} shape", "tell me which shape is {it}", "name the shape that is {it}"),
        spoken=("what shape is {it}", "name the {it} shape"),
    ),
    "count": Wordings(
        train=(
            "how many shapes are there",
            "count the shapes",
            "what is the number of shapes",
            "tell me how many shapes there are",
            "how many shapes do you see",
            "say the number of shapes",
        ),
        heldout=("tell me the number of shapes", "count the shapes you see", "tell me how many shapes you see"),
        spoken=("how many shapes are there", "count the shapes"),
    ),
    "side": _either("left", "right", "side"),
    "height": _either("top", "bottom", "end"),
    "size": Wordings(
        train=(
            "is the {it} small or large",
            "is the {it} large or small",
            "what size is the {it}",
            "tell me the size of the {it}",
            "name the size of the {it}",
            "the {it} is small or large",
            "the {it} is large or small",
            "say what size the {it} is",
            "tell me what size the {it} is",
            "tell me which size the {it} is",
            "what is the size that the {it} is",
        ),
        heldout=("what is the size of the {it}", "which size is the {it}", "say the size of the {it}"),
        spoken=("is the {it} small or large", "what size is the {it}", "the {it} is large or small"),
        spoken_heldout=("is the {it} large or small",),
    ),
    "motion": Wordings(
        train=(
            "which way does the {it} move",
            "what way does the {it} go",
            "where does the {it} move",
            "where does the {it} go",
            "tell me which way the {it} moves",
            "tell me what way the {it} moves",
            "say where the {it} moves",
            "name the way the {it} moves",
        ),
        heldout=("which way does the {it} go", "what way does the {it} move", "tell me where the {it} moves"),
        spoken=("which way does the {it} move", "where does the {it} move"),
    ),
    "first_shape": _comes("first", "shape"),
    "last_shape": _comes("last", "shape"),
    "first_colour": _comes("first", "colour"),
}

DICTATION = Wordings(
    train=("write what you hear", "write the words you hear", "say what you hear", "tell me the words you hear"),
    heldout=("tell me what you hear", "say the words you hear"),
)
DESCRIBE_PICTURE = (
    "describe the picture",
    "say what you see",
    "tell me what is in the picture",
    "describe what you see",
)
DESCRIBE_SHAPES = (
    "describe the shapes",
    "say what shapes you see",
    "tell me what shapes are in the picture",
    "name the shapes",
)
DESCRIBE_CLIP = ("describe the clip", "say what moves or comes", "tell me what is in the clip", "describe what comes")

WORDS = (
    *SPOKEN_WORDS,
    *("and", "are", "at", "clip", "colour", "comes", "count", "describe", "do", "does", "end", "first", "go"),
    *("hear", "how", "in", "is", "last", "many", "me", "move", "moves", "name", "number", "of", "or", "picture"),
    *("say", "see", "shape", "shapes", "side", "size", "tell", "that", "the", "then", "there", "way", "what"),
    *("where", "which", "words", "write", "you", FILLER),
)
"""Every word that any text of the sample data uses."""
