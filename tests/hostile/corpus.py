"""Broken and hostile media, each written when a test asks for it: CASES[name](folder) -> what a sample would name.

A value is a path or bytes. Beside each stands what readers must say of it, where only one answer is right.
"""

import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

Source = str | bytes
CASES: dict[str, Callable[[Path], Source]] = {}
EXPECT: dict[str, dict[str, str]] = {}
"""For some cases: kind of reader (image, video, audio or all) -> a pattern of its error, or "" where it must read."""


def case(name, **expect):
    def add(make):
        CASES[name] = make
        EXPECT[name] = expect
        return make

    return add


NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def picture(format, image=None, **options) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(file, format, **options)
    return file.getvalue()


def samples(seconds=1.0, rate=16000, channels=1):
    return (0.3 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))).astype(np.float32)


def sound(format, subtype=None, rate=16000, channels=1, seconds=1.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples(seconds, rate, channels), rate, format=format, subtype=subtype)
    return file.getvalue()


def wav(data: bytes, rate=16000, channels=1, declared=None, bits=32, kind=3) -> bytes:
    """A WAV written by hand, so that its header can lie."""
    size = len(data) if declared is None else declared
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * align % 2**32, align % 2**16, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(2**32 - 1, 36 + size)) + body


@cache
def film(
    format="mp4", codec="libx264", sound_codec="aac", frames=25, size=(64, 48), milliseconds=None, rotation=0
) -> bytes:
    """A film of 25 frames a second, or at these milliseconds, with a soundtrack of the same length or none."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        track = container.add_stream(codec, rate=25)
        track.width, track.height = size
        track.pix_fmt = "yuv420p"
        if milliseconds:
            track.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            track.set_display_rotation(rotation)
        heard = container.add_stream(sound_codec, rate=48000, layout="mono") if sound_codec else None
        for index in range(frames):
            pixels = np.full((size[1], size[0], 3), 5 * index % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            container.mux(track.encode(frame))
        container.mux(track.encode())
        if heard is not None:
            wave = samples(max(frames, 1) / 25, 48000).T
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, 0
            container.mux(heard.encode(frame))
            container.mux(heard.encode())
    return file.getvalue()


@cache
def good(kind: str) -> bytes:
    match kind:
        case "png" | "jpeg" | "webp" | "tiff" | "gif" | "avif" | "bmp":
            return picture(kind.upper())
        case "flac" | "ogg" | "mp3" | "wav":
            return sound(kind.upper(), seconds=0.5)
        case "mp4":
            return film()
        case "webm":
            return film("webm", "libvpx", "libopus")
    raise KeyError(kind)


def lie(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1 and len(old) == len(new), (data.count(old), old)
    return data.replace(old, new)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth=1, colour=0, rows=None, extra=b"") -> bytes:
    """A PNG of zeros, `rows` of them."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    row = bytes(1 + (width * depth * channels + 7) // 8)
    packer = zlib.compressobj(1 if depth == 8 else 9)
    data = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


REFUSED = "."  # any error
READ = ""

# --------------------------------------------------------------------------------------------- what is no medium at all

for name, content in {
    "zero bytes": b"",
    "one byte": b"x",
    "text": b"words, no medium\n" * 500,
    "nulls": bytes(5000),
    "html": b"<!doctype html><title>404</title>" + b" " * 5000,
    "json": b'{"error": "not found"}',
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a zip": b"PK\x03\x04" + bytes(2000),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(2000),
    "pdf": b"%PDF-1.7\n" + bytes(2000),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run showpage\n",
    "svg with an entity": b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:/etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&x;</svg>',
    "only magic of png": b"\x89PNG\r\n\x1a\n",
    "only magic of jpeg": b"\xff\xd8\xff",
    "only magic of mp4": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2",
    "only magic of mkv": b"\x1a\x45\xdf\xa3",
    "only magic of wav": b"RIFF\xff\xff\xff\xffWAVEfmt ",
    "only magic of flac": b"fLaC",
    "only magic of gif": b"GIF89a",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "random bytes": random.Random(1).randbytes(20_000),
}.items():
    case(name, all=REFUSED)(lambda folder, content=content: content)

# ------------------------------------------------------------------------------------------------ cut short and flipped

BROKEN = ("png", "jpeg", "webp", "tiff", "gif", "avif", "wav", "flac", "ogg", "mp3", "mp4", "webm")
for kind in BROKEN:
    for tenth in range(10):
        case(f"{kind} cut at {tenth}/10")(
            lambda folder, kind=kind, tenth=tenth: good(kind)[: max(1, len(good(kind)) * tenth // 10)]
        )


def flipped(kind: str, number: int) -> bytes:
    pick = random.Random(f"{kind} {number}")
    data = bytearray(good(kind))
    reach = pick.choice([64, 512, len(data)])  # headers are where it hurts
    for _ in range(pick.choice([1, 4, 16])):
        data[pick.randrange(min(reach, len(data)))] ^= 1 << pick.randrange(8)
    return bytes(data)


for kind in BROKEN:
    for number in range(20):
        case(f"{kind} flipped {number}")(lambda folder, kind=kind, number=number: flipped(kind, number))

# ------------------------------------------------------------------------------------------------------- odd but proper


def named(suffix: str, content: bytes) -> Callable[[Path], Source]:
    def make(folder: Path) -> str:
        path = folder / f"file{suffix}"
        path.write_bytes(content)
        return str(path)

    return make


case("a png named .mp4", image=READ, video=READ, audio=REFUSED)(named(".mp4", good("png")))
case("an mp4 named .png", image=REFUSED, video=READ, audio=READ)(named(".png", good("mp4")))
case("a wav named .jpg", image=REFUSED, video="no picture track|cannot be decoded", audio=READ)(
    named(".jpg", good("wav"))
)
case("a flac named .raw", image=REFUSED, video=REFUSED, audio=READ)(named(".raw", good("flac")))
case("spaces and unicode in the name", image=READ, video=READ)(named(" a é 漢 %s {0} .png", good("png")))


def image_of(format, image, **options):
    return lambda folder: picture(format, image, **options)


def frames_of(format, count=5):
    images = [Image.fromarray(np.full((40, 40, 3), 40 * i, np.uint8)) for i in range(count)]
    return lambda folder: picture(format, images[0], save_all=True, append_images=images[1:])


alpha = Image.fromarray(np.dstack([NOISE, NOISE[..., 0]]))
deep = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
case("alpha", image=READ, video=READ, audio=REFUSED)(image_of("PNG", alpha))
case("cmyk", image=READ, video=READ)(image_of("JPEG", Image.fromarray(NOISE).convert("CMYK")))
case("sixteen bits", image=READ, video=READ)(image_of("PNG", deep))
case("animated gif", image=READ, video=READ, audio="no sound track")(frames_of("GIF"))
case("animated webp", image=READ, video=READ)(frames_of("WEBP"))
case("animated png", image=READ, video=READ)(frames_of("PNG"))
case("one pixel", image=READ, video=READ)(image_of("PNG", Image.new("RGB", (1, 1))))
case("a line of pixels", image=READ, video=READ)(image_of("PNG", Image.new("RGB", (10_000, 1))))
case("a column of pixels", image=READ, video=READ)(image_of("PNG", Image.new("RGB", (1, 10_000))))
case("multi-page tiff", image=READ, video=READ)(frames_of("TIFF"))
case("floats without a scale", image="unknown scale", video="unknown scale")(
    image_of("TIFF", Image.fromarray(np.full((9, 9), 1e9, np.float32)))
)

for rate in (8000, 44100, 192_000):
    case(f"sound of {rate} Hz", audio=READ, image=REFUSED)(lambda folder, rate=rate: sound("WAV", rate=rate))
for channels in (2, 6):
    case(f"{channels} channels", audio=READ)(lambda folder, channels=channels: sound("WAV", channels=channels))

case("av1", image=REFUSED, video=READ)(lambda folder: film(codec="libsvtav1", sound_codec=None))
case("hevc with ac3", image=REFUSED, video=READ, audio=READ)(lambda folder: film("mpegts", "mpeg2video", "ac3"))
case("one frame", video=READ, audio=READ)(lambda folder: film(frames=1))
case("no frame", video=REFUSED)(lambda folder: film("matroska", frames=0))
case("no sound", video=READ, audio="no sound track")(lambda folder: film(sound_codec=None))
case("variable frame rate", video=READ)(
    lambda folder: film("matroska", sound_codec=None, frames=6, milliseconds=(0, 5, 900, 901, 3000, 3900))
)
for rotation in (90, 180, 270):
    case(f"turned by {rotation}", video=READ)(
        lambda folder, rotation=rotation: film("mov", sound_codec=None, rotation=rotation)
    )


@case("sound alone", image=REFUSED, video="no picture track", audio=READ)
def _(folder):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples(1, 48000).T, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return file.getvalue()


@case("a film with album art for a picture", audio=READ)
def _(folder):
    cover = b"\0" + b"image/png\0" + b"\x03" + b"\0" + good("png")
    frame = b"APIC" + struct.pack(">I", len(cover)) + b"\0\0" + cover
    size = len(frame)
    sevens = bytes((size >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + sevens + frame + good("mp3")


# --------------------------------------------------------------------------------------------------- headers that lie

PIXELS_OVER = "over the limit of 50,000,000|decompression bomb"
for rate in (0, 1, 999, 768_001, 2**31 - 1):
    case(f"sound that claims {rate} Hz", audio=REFUSED, image=REFUSED)(
        lambda folder, rate=rate: wav(samples().tobytes(), rate)
    )
for channels in (0, 65, 2000, 65535):
    case(f"{channels} channels claimed", audio=REFUSED)(
        lambda folder, channels=channels: wav(samples().tobytes(), channels=channels)
    )
for value in (np.nan, np.inf, -np.inf, 1e30):
    case(f"samples of {value}", audio="NaN, infinite or above")(
        lambda folder, value=value: wav(np.where(np.arange(16000) == 8000, value, 0.1).astype("<f4").tobytes())
    )
case("no samples", audio="holds no sound")(lambda folder: wav(b""))
case("one sample", audio="too short")(lambda folder: wav(bytes(4)))
case("4 GB claimed over 64 kB")(lambda folder: wav(samples().tobytes(), declared=2**32 - 40))
case("negative block size")(lambda folder: wav(samples().tobytes(), bits=0))
case("an unknown codec in wav", audio=REFUSED)(lambda folder: wav(bytes(9000), kind=0x4242, bits=16))
case("an id3 tag that claims 256 MB")(lambda folder: b"ID3\x03\0\0\x7f\x7f\x7f\x7f" + good("mp3"))
case("30000 x 30000 png", image=PIXELS_OVER, video=PIXELS_OVER)(lambda folder: png(30_000, 30_000))
case("9000 x 9000 png", image=PIXELS_OVER, video=PIXELS_OVER)(lambda folder: png(9000, 9000))
case("2^31 pixels wide", image=REFUSED, video=REFUSED)(lambda folder: png(2**31 - 1, 1, rows=0))
case("48 million pixels of which none is there", image="broken picture", video="broken picture")(
    lambda folder: png(8000, 6000, 8, 2, rows=0)
)
case("49 million pixels with alpha", image=READ, video=READ)(lambda folder: png(7000, 7000, 8, 6))
case("49 million turned pixels", image=READ, video=READ)(
    lambda folder: png(7000, 7000, 8, 2, extra=png_chunk(b"eXIf", TURNED))
)
case("a text chunk that unpacks to 1 GB", image=REFUSED, video=REFUSED)(
    lambda folder: png(64, 64, extra=png_chunk(b"zTXt", b"k\0\0" + packed_zeros(2**30)))
)
case("a colour profile that unpacks to 1 GB")(
    lambda folder: png(64, 64, extra=png_chunk(b"iCCP", b"k\0\0" + packed_zeros(2**30)))
)
case("65500 x 65500 jpeg", image=PIXELS_OVER, video=PIXELS_OVER)(
    lambda folder: lie(good("jpeg"), struct.pack(">HH", 48, 64), struct.pack(">HH", 65500, 65500))
)
case("65535 x 65535 gif", image=PIXELS_OVER)(lambda folder: good("gif")[:6] + b"\xff" * 4 + good("gif")[10:])
case("ppm without an end", image=REFUSED, video=REFUSED)(lambda folder: b"P6 7000 7000 255\n" + bytes(100))
case("ppm of huge numbers", image=REFUSED)(lambda folder: b"P6 " + b"9" * 4000 + b" 1 255\n")
case("bmp of negative size", image=REFUSED)(
    lambda folder: good("bmp")[:18] + struct.pack("<ii", -(2**31), -(2**31)) + good("bmp")[26:]
)


TURNED = b"II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 1, 6) + bytes(4)


@cache
def packed_zeros(size: int) -> bytes:
    packer, zeros = zlib.compressobj(9), bytes(2**20)
    return b"".join(packer.compress(zeros) for _ in range(size // 2**20)) + packer.flush()


@case("exif that refers to itself", image=READ)
def _(folder):
    """64 kB of EXIF: 5,400 entries, each a pointer to the directory that it stands in."""
    entries = 5400
    directory = struct.pack("<H", entries) + struct.pack("<HHII", 0x8769, 4, 1, 8) * entries + struct.pack("<I", 8)
    body = b"Exif\0\0II*\0\x08\0\0\0" + directory
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(body) + 2) + body + good("jpeg")[2:]


@case("exif of a billion values")
def _(folder):
    entry = struct.pack("<HHII", 0x0112, 3, 2**30, 8)
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)
    return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(body) + 2) + body + good("jpeg")[2:]


@case("a tiff whose directory is its own next", image=READ)
def _(folder):
    data = bytearray(good("tiff"))
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    return bytes(data)


@case("a gif of 10,000 frames", image=READ, video=READ, audio="no sound track")
def _(folder):
    data = picture("GIF", Image.fromarray(np.full((8, 8), 7, np.uint8)))
    start = data.index(b"\x2c", 13 + 3 * 2 ** ((data[10] & 7) + 1))
    delay = b"\x21\xf9\x04\x00\x04\x00\x00\x00"
    return data[:start] + (delay + data[start:-1]) * 10_000 + b"\x3b"


@case("an hour of silence", audio="lasts 3600 s at 16000 Hz, over the limit of 600 s", image=REFUSED)
def _(folder):
    path = folder / "hour.flac"
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 16000, np.int16))
    assert path.stat().st_size < 600_000
    return str(path)


@case("a film that claims 10 hours", video="lasts 36000 s, over the limit of 14400 s")
def _(folder):
    data = film("matroska", sound_codec=None)
    return lie(data, b"00:00:01.000000000", b"10:00:00.000000000")


@case("a film that claims 3 hours", video="should have a frame at .* but ends at 1.00 s; replace the file")
def _(folder):
    return lie(film("matroska", sound_codec=None), b"00:00:01.000000000", b"03:00:00.000000000")


@case("an mp4 that claims 2^32 samples a second and frames")
def _(folder):
    data = bytearray(film())
    for at in (index for index in range(len(data) - 4) if data[index : index + 4] in (b"mdhd", b"mvhd", b"stts")):
        data[at + 16 : at + 24] = b"\xff" * 8
    return bytes(data)


@case("a film of 30000 x 30000")
def _(folder):
    data = film("matroska", "mpeg4", sound_codec=None)
    return lie(data, b"\xb0\x81\x40\xba\x81\x30", b"\xb0\x81\xff\xba\x81\xff")


@case("an atom inside itself a thousand times", all=REFUSED)
def _(folder):
    data = b""
    for _ in range(1000):
        data = struct.pack(">I", len(data) + 8) + b"moov" + data
    return good("mp4")[:32] + data


@case("ebml that claims 2^56 bytes", all=REFUSED)
def _(folder):
    return good("webm")[:4] + b"\x01" + b"\xff" * 7 + good("webm")[12:]


# --------------------------------------------------------------------------------------------------- paths of all kinds


def path_case(name):
    return case(name, all=r"(cannot be opened|is no regular file).*; give the path of a")


@path_case("missing")
def _(folder):
    return str(folder / "nowhere.png")


@path_case("a directory")
def _(folder):
    return str(folder)


@path_case("a pipe that nobody writes to")
def _(folder):
    os.mkfifo(folder / "pipe.mp4")
    return str(folder / "pipe.mp4")


@path_case("a socket")
def _(folder):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))
    return str(folder / "s")


@path_case("links in a circle")
def _(folder):
    os.symlink(folder / "b.png", folder / "a.png")
    os.symlink(folder / "a.png", folder / "b.png")
    return str(folder / "a.png")


@path_case("a link to nowhere")
def _(folder):
    os.symlink(folder / "nowhere", folder / "a.png")
    return str(folder / "a.png")


for name, path in {
    "a device without an end": "/dev/zero",
    "a NUL in the name": "a\0b.png",
    "a name of 5000 letters": "a" * 5000,
    "no name": "",
    "bytes that are no text in the name": "\udcff.png",
    "a line break in the name": "none\n\x1b[31m.png",
    "an http address": "http://127.0.0.1:9/a.mp4",
    "a file address": "file:/" + "//etc/passwd",
    "a data address": "data:image/png;base64,iVBORw0KGgo=",
    "a concat address": "concat:/etc/hostname|/etc/passwd",
    "a subfile address": "subfile,,start,0,end,9,,:/etc/passwd",
    "a pipe address": "pipe:0",
    "a filter graph": "lavfi:testsrc",
    "a capture device": "/dev/video0",
}.items():
    path_case(name)(lambda folder, path=path: path)


@case("a link to a good file", image=READ, video=READ)
def _(folder):
    (folder / "real.png").write_bytes(good("png"))
    os.symlink(folder / "real.png", folder / "link.png")
    return str(folder / "link.png")
