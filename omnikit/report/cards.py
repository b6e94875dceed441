"""The cards of a report's page: held-out samples with what was asked, expected and answered.

Pictures, clips and sounds are part of the page as `data:` addresses, by the type that their file name tells, whatever
the modality; what is large or of another type shows its name.
"""

import base64
import mimetypes
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from omnikit.component import Medium, Sample
from omnikit.heldout import last_answer, media_of

LARGEST = 300_000
"""Bytes of the largest medium that becomes part of the page."""

SHARP = 16_000
"""Bytes of the largest picture or clip shown with sharp pixels: so small a file has few of them."""

_TYPES = mimetypes.MimeTypes()
# Python's own table lacks these, and the system's differs between systems.
for _type, _suffix in (("audio/flac", ".flac"), ("audio/mp4", ".m4a"), ("audio/ogg", ".ogg"), ("image/webp", ".webp")):
    _TYPES.add_type(_type, _suffix)

_MARKS = (
    ("image/png", 0, b"\x89PNG"),
    ("image/jpeg", 0, b"\xff\xd8\xff"),
    ("image/webp", 8, b"WEBP"),
    ("image/gif", 0, b"GIF8"),
    ("audio/wav", 8, b"WAVE"),
    ("audio/flac", 0, b"fLaC"),
    ("audio/ogg", 0, b"OggS"),
    ("audio/mpeg", 0, b"ID3"),
    ("video/mp4", 4, b"ftyp"),
)
"""Types by the bytes that files of them have at a place near their beginning."""


class Card(NamedTuple):
    """One held-out sample to show: its set, itself, and its line of the table's answers."""

    heldout: str
    sample: Sample
    answer: Mapping[str, Any]


def style() -> str:
    """What pages that show cards need beside their own style."""
    return files(__package__).joinpath("cards.css").read_text(encoding="utf-8")


def samples(cards: Sequence[Card]) -> str:
    """The section of the page that holds the cards."""
    inner = "".join(map(_card, cards))
    return f"""<section id="samples"><h2>Samples</h2><p class="lead">{len(cards)} of the held-out samples, chosen
over all sets and kinds, with wrong answers on purpose: the score is in the table above.</p>
<div class="cards">{inner}</div></section>"""


def _card(card: Card) -> str:
    answer, sample = card.answer, card.sample
    kind = f" · {escape(sample.kind)}" if sample.kind else ""
    blind = ""
    if media_of(sample):
        blind = f"<dt>Blind</dt><dd>{_said(answer['blind'])} {mark(answer['blind_right'], '', '')}</dd>"
    return f"""<article class="card {"right" if answer["right"] else "wrong"}" title="{escape(sample.id)}">
<header><b>{escape(card.heldout)}</b>{kind} {mark(answer["right"], "right", "wrong")}</header>
<div class="asked">{asked(sample)}</div>
<dl><dt>Expected</dt><dd>{_said(answer["expected"])}</dd>
<dt>Answered</dt><dd class="given">{_said(answer["given"])}</dd>{blind}</dl></article>"""


def asked(sample: Sample) -> str:
    """Everything before the answer, in order."""
    parts = []
    turns = sample.turns[: last_answer(sample)]
    for turn in turns:
        if len(turns) > 1:
            parts.append(f'<p class="role">{escape(turn.role)}</p>')
        written = any(name == "text" and str(value).strip() for name, value in turn.content)
        for name, value in turn.content:
            if not isinstance(value, Medium):
                parts.append(f'<p class="question">{escape(value)}</p>')
            else:
                parts.append(_medium(name, value, question=not written and turn.role == "user"))
    return "".join(parts)


def _medium(modality: str, medium: Medium, question: bool) -> str:
    """The medium itself where a browser can show it, else its name. `question`: nothing is written beside it."""
    name = medium.member.name if medium.member else medium.source
    file = "" if isinstance(name, bytes) else Path(name).name
    content = None if medium.member else _content(medium.source)
    mime = _TYPES.guess_type(file)[0] or _type_of(content or b"")
    show = _SHOWN.get(mime.partition("/")[0])
    between = f"seconds {medium.start or 0:g} to {'the end' if medium.end is None else f'{medium.end:g}'}"
    words = [] if medium.start is None and medium.end is None else [between]
    if show is None or content is None:
        return _figure("", f"{modality}: {file or medium}", *words)
    spoken = question and mime.startswith("audio/")
    data = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    sharp = "sharp" if len(content) <= SHARP else "soft"
    return _figure(show(data, sharp, escape(file)), *(["spoken question", file] if spoken else []), *words)


def _figure(inner: str, *words: str) -> str:
    caption = "".join(f"<span>{escape(word)}</span>" for word in words)
    return f"<figure>{inner}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


_SHOWN: Mapping[str, Callable[[str, str, str], str]] = {
    "image": lambda data, sharp, name: f'<img class="{sharp}" src="{data}" alt="{name}">',
    "video": lambda data, sharp, name: (
        f'<video class="{sharp}" src="{data}" title="{name}" controls loop muted playsinline></video>'
    ),
    "audio": lambda data, _, name: f'<audio src="{data}" title="{name}" controls></audio>',
}


def _type_of(content: bytes) -> str:
    """The type that a nameless medium's first bytes tell; nothing where they tell of none that browsers show."""
    for type, at, mark in _MARKS:
        if content[at : at + len(mark)] == mark:
            return type
    return ""


def _content(source: str | bytes) -> bytes | None:
    """A medium's bytes, None when they are too many or cannot be read."""
    if isinstance(source, bytes):
        return source if len(source) <= LARGEST else None
    path = Path(source)
    try:
        return path.read_bytes() if path.stat().st_size <= LARGEST else None
    except OSError:
        return None


def _said(text: str) -> str:
    return f"<q>{escape(text)}</q>" if text.strip() else '<span class="muted">nothing</span>'


def mark(good: bool, yes: str, no: str) -> str:
    """Right or wrong as a sign and a word: never told by colour alone."""
    sign, word, name = ("✓", yes, "yes") if good else ("✗", no, "no")
    word = word or f'<span class="unseen">{"right" if good else "wrong"}</span>'
    return f'<span class="mark {name}">{sign} {word}</span>'
