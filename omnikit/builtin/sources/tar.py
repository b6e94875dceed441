"""The members of a tar file: names and places. Nothing is extracted, and no content is read.

Python's tarfile is not used: it takes a broken header in the middle for the end, reads a pax header of any size into
memory, and in unpatched versions never comes back from a negative size (CVE-2025-8194). What is read here is the
format of POSIX.1-2001 (pax interchange) and GNU's long names; all else is a member of its kind, for others to refuse.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

__all__ = ["TarMember", "members_of"]

BLOCK = 512
LONGEST = 2**20
"""Bytes of a header that tells of the next member. A name needs a few hundred."""

KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "folder",
    b"6": "pipe",
    b"S": "sparse file",
}


class TarMember(NamedTuple):
    """A member's name, what it is in words, and where its bytes lie."""

    name: str
    kind: str
    offset: int
    length: int


def members_of(path: Path) -> Iterator[TarMember]:
    """The members in their order. A file that is no tar, is broken or was cut is a ValueError that names it."""
    try:
        with path.open("rb") as file:
            yield from _members(file, str(path), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a tar file") from error


def _members(file: IO[bytes], where: str, size: int) -> Iterator[TarMember]:
    at = 0
    said: dict[bytes, bytes] = {}  # what extended headers say of the next member
    always: dict[bytes, bytes] = {}
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if len(header) < BLOCK:  # every writer ends a tar with blocks of zeros
            raise ValueError(f"{where}: {'is empty' if not size else f'was cut at byte {size:,}'}; replace the file")
        if not header.strip(b"\0"):
            return
        if not _is_sound(header):
            remedy = "give an uncompressed tar file" if at == 0 else "replace the file"
            raise ValueError(f"{where}: has no tar header at byte {at:,}; {remedy}")
        flag, length, begin = header[156:157], _number(header[124:136], where, at), at + BLOCK
        if b"size" in said and flag not in b"xgLK":
            length = _pax_number(said[b"size"], where, at)
        if begin + length > size:
            raise ValueError(f"{where}: was cut: a member at byte {at:,} has {length:,} bytes; replace the file")
        at = begin + -(-length // BLOCK) * BLOCK
        if flag in (b"x", b"g", b"L", b"K"):
            if length > LONGEST:
                raise ValueError(f"{where}: has a header of {length:,} bytes at byte {begin:,}; replace the file")
            content = file.read(length)
            if flag == b"g":
                always |= _pax(content, where, begin)
            elif flag == b"x":
                said |= _pax(content, where, begin)
            elif flag == b"L":
                said[b"path"] = content.rstrip(b"\0")
            continue
        known = always | said
        name = known.get(b"path") or _name(header)
        sparse = any(key.startswith(b"GNU.sparse") for key in known)
        kind = "sparse file" if sparse else KINDS.get(flag, f"member of type {flag!r}")
        if kind == "file" and name.endswith(b"/"):
            kind = "folder"  # as of before POSIX
        yield TarMember(name.decode("utf-8", "backslashreplace"), kind, begin, length)
        said = {}


def _is_sound(header: bytes) -> bool:
    """Whether the checksum is right: of unsigned bytes, its own field taken as spaces."""
    given = header[148:156].strip(b" \0")
    try:
        return int(given, 8) == sum(header[:148]) + sum(header[156:]) + 8 * 32
    except ValueError:
        return False


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _number(field: bytes, where: str, at: int) -> int:
    """A size: octal digits or, from 8 GiB on, GNU's base 256."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if digits.translate(None, b"01234567"):  # int() would also take a sign, or underscores
        raise ValueError(f"{where}: has no size in the header at byte {at:,}; replace the file")
    return int(digits, 8)


def _pax_number(value: bytes, where: str, at: int) -> int:
    if not value.isdigit() or len(value) > 18:
        raise ValueError(f"{where}: has no size in the header before byte {at:,}; replace the file")
    return int(value)


def _pax(content: bytes, where: str, at: int) -> dict[bytes, bytes]:
    """The records `length key=value` of a pax header."""
    found, rest = {}, content.rstrip(b"\0")
    while rest:
        digits, _, _ = rest.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = rest[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or length > len(rest) or rest[length - 1 : length] != b"\n":
            raise ValueError(f"{where}: has a broken header at byte {at:,}; replace the file")
        found[key] = value
        rest = rest[length:]
    return found
