"""What lmms-eval hands to a model, as omnikit's samples. Needs no lmms-eval."""

import os
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from omnikit.component import Medium, Sample, Turn
from omnikit.media.kinds import kind_of

Part = tuple[str, str | Medium]


def sample_of(name: str, text: str, visuals: Iterable[object] | None) -> Sample:
    """One question: the media that a task's `doc_to_visual` gives (pictures, films, sound: all of them), then its text.

    Lists of frames among them become pictures, one by one.
    """
    parts = [part for visual in visuals or () for part in _media(visual, None)]
    return _asked(name, [("user", (*parts, *([("text", text)] if text else [])))])


def sample_of_messages(name: str, messages: Sequence[Mapping[str, Any]]) -> Sample:
    """A conversation as a task's `doc_to_messages` gives it, texts and media in their order."""
    return _asked(name, [(message["role"], _parts(message["content"])) for message in messages])


def _asked(name: str, turns: Sequence[tuple[str, tuple[Part, ...]]]) -> Sample:
    return Sample(name, (*(Turn(role, content) for role, content in turns), Turn("assistant", ())))


def _parts(content: str | Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (("text", content),)
    parts: list[Part] = []
    for one in content:
        if one["type"] == "text":
            parts += [("text", one["text"])] if one["text"] else []
        else:
            span = {key: one[key] for key in ("start_time", "end_time") if one.get(key) is not None}
            url = one["url"]
            parts += _media({"url": url, **span} if span and not isinstance(url, Mapping) else url, one["type"])
    return tuple(parts)


def _media(value: Any, said: str | None) -> list[Part]:  # noqa: ANN401  (tasks hand over whatever they like)
    """A task's visual as media. What it is tells its modality; of a path of no telling name, `said` does."""
    if isinstance(value, list | tuple):
        return [part for one in value for part in _media(one, said)]
    if isinstance(value, Image.Image):
        return [("image", Medium(_png(value)))]
    if isinstance(value, str | os.PathLike):
        return [_file(os.fspath(value), said)]
    if isinstance(value, Mapping) and "array" in value:
        return [("audio", Medium(_wav(np.asarray(value["array"]), int(value["sampling_rate"]))))]
    if isinstance(value, Mapping) and isinstance(path := value.get("url") or value.get("path"), str):
        modality, medium = _file(path, value.get("type") or said)
        start, end = (value.get(f"video_{at}", value.get(f"{at}_time")) for at in ("start", "end"))
        return [(modality, medium._replace(start=start, end=end))]
    if hasattr(value, "get_all_samples"):  # what `datasets` reads audio columns with
        heard = value.get_all_samples()
        return [("audio", Medium(_wav(np.asarray(heard.data), int(heard.sample_rate))))]
    raise ValueError(f"a {type(value).__name__} is no medium that omnikit knows; it takes pictures, paths and sound")


def _file(path: str, said: str | None) -> Part:
    modality = kind_of(path) or said
    if modality is None:
        raise ValueError(f"{path}: its name does not tell what it is; name it as .png, .mp4, .wav or the like")
    return modality, Medium(os.path.abspath(path))


def _png(picture: Image.Image) -> bytes:
    """The same pixels as a file; PNG has no CMYK, YCbCr, LAB, HSV or F."""
    file = BytesIO()
    kept = picture if picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else picture.convert("RGB")
    kept.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _wav(samples: np.ndarray, rate: int) -> bytes:
    """Float32 WAV of samples (time,) or (channels, time), in -1 to 1."""
    file = BytesIO()
    soundfile.write(file, np.atleast_2d(samples).T.astype(np.float32), rate, format="WAV", subtype="FLOAT")
    return file.getvalue()
