"""Media as records name them: a path, bytes, a part of either, or a `data:` address."""

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path

from omnikit.component import Medium

__all__ = ["medium_of"]

_ADDRESS = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]+)://")
_DATA = re.compile(r"\s*data:[^,]*?;base64,", re.IGNORECASE)
_FIELDS = {"path", "bytes", "start", "end"}


def medium_of(value: object, where: str, folder: Path) -> Medium:
    """The medium that a record's value means; paths are relative to `folder`. Anything else is a ValueError.

    A value is a path; bytes; `{"path", "start", "end"}` in seconds; Hugging Face's `{"bytes", "path"}`, whose path
    counts where there are no bytes; or the text `data:<type>;base64,<bytes>`.
    """
    if isinstance(value, Medium):
        return value
    if isinstance(value, str | bytes):
        return Medium(_source(value, where, folder))
    if not isinstance(value, Mapping) or set(value) - _FIELDS:
        raise ValueError(_wanted(where))
    path, held = value.get("path"), value.get("bytes")
    source: str | bytes
    if isinstance(held, bytes):
        source = held
    elif held is None and isinstance(path, str):
        source = path
    else:
        raise ValueError(_wanted(where))
    start, end = value.get("start"), value.get("end")
    for seconds in (start, end):
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0):
            raise ValueError(f"{where}: start and end are seconds, not {seconds!r}")
    if end is not None and end <= (start or 0):
        raise ValueError(f"{where}: ends at {end} s, before it starts; end must be greater than start")
    return Medium(_source(source, where, folder), start, end)


def _wanted(where: str) -> str:
    return f"{where}: write a path, or {{'path': ..., 'start': seconds, 'end': seconds}}"


def _source(value: str | bytes, where: str, folder: Path) -> str | bytes:
    if isinstance(value, bytes):
        return value
    if found := _DATA.match(value):
        try:
            return base64.b64decode(value[found.end() :], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{where}: is a data: address that is no base64 ({error}); encode it again") from error
    if found := _ADDRESS.match(value):
        if found[1].lower() == "file":
            return str(folder / value[found.end() :])
        raise ValueError(
            f"{where}: is an address ({value[:80]}); nothing is fetched while training: download it, and write its path"
        )
    return str(folder / value)
