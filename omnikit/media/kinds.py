"""What a file's name tells of its medium."""

KINDS = {
    "image": "jpg jpeg png webp gif bmp tif tiff ppm pgm pbm avif",
    "video": "mp4 mkv webm mov avi m4v mpg mpeg ts flv 3gp ogv",
    "audio": "wav flac mp3 ogg opus m4a aac aiff aif au caf wma amr",
}
"""Endings of names by modality. Records and commands that say the modality themselves may use any name."""

_BY_END = {end: kind for kind, ends in KINDS.items() for end in ends.split()}


def kind_of(name: str) -> str | None:
    """The modality of a file of this name, None where it tells of none."""
    return _BY_END.get(name.rpartition(".")[2].lower())
