"""Every case of the corpus through every reader, in a worker: an item, or one line that says what is wrong; in time, in
memory, and with the worker alive."""

import ctypes
import os
import re
import select
import socket
import struct
import time
from pathlib import Path

import av
import corpus
import numpy as np
import pytest
from corpus import CASES, EXPECT, REFUSED, film
from omnikit_siglip import AnyresConfig, SquareConfig
from omnikit_video import FramesConfig
from omnikit_whisper import WaveformConfig

from omnikit import reading
from omnikit.component import Medium, Mel, Pixels
from omnikit.media import MediaError
from omnikit.reading import Reading, prepare

PIXELS, MEL = Pixels(size=96, patch=16), Mel()
READERS = {
    "square": ("image", SquareConfig(), PIXELS),
    "anyres": ("image", AnyresConfig(max_tiles=9), PIXELS),
    "frames": ("video", FramesConfig(), PIXELS),
    "frames by decord": ("video", FramesConfig(decoder="decord"), PIXELS),
    "waveform": ("audio", WaveformConfig(), MEL),
}
SECONDS, MEGABYTES = 10.0, 500
READING = Reading(workers=1)


@pytest.fixture(scope="module", autouse=True)
def worker():
    """One worker for all of them, which must live to the end, warm: what libraries take is not the media's doing."""
    prepare(reader for _, reader, _ in READERS.values())
    read_by("square", Medium(corpus.good("png")))
    read_by("frames", Medium(corpus.good("mp4")))
    read_by("frames by decord", Medium(corpus.good("mp4")))
    read_by("waveform", Medium(corpus.good("wav")))
    [made] = reading._idle
    yield made
    assert reading._idle == [made] and made.process.is_alive()
    made.end()
    reading._idle.clear()


@pytest.fixture(autouse=True)
def own_workers():
    """Not of one test's own here."""


def read_by(name, medium):
    """The item, or the error's line."""
    _, reader, input = READERS[name]
    try:
        grids = READING.grids(reader, medium, input)
        assert grids, "at least one grid"
        item = READING.read(reader, medium, input, grids[0])
    except MediaError as error:
        return str(error)
    assert item.grid == grids[0] and np.isfinite(item.value).all() and item.value.dtype == np.float32
    if name != "waveform":
        assert item.value.shape == (item.grid[0], 3, 96, 96)
    return item


class Peak:
    """The most memory that a process has had since this was made, in MB above what it had then."""

    def __init__(self, pid):
        self.status = Path(f"/proc/{pid}/status")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the kernel begins anew
        self.before = self._of("VmRSS")

    def _of(self, key):
        return int(re.search(rf"{key}:\s+(\d+) kB", self.status.read_text())[1]) / 1024

    def growth(self):
        return self._of("VmHWM") - self.before


def check(name, medium, expect, worker):
    """Read the medium by every reader; what each made of it."""
    outcomes = {}
    for reader, (kind, _, _) in READERS.items():
        peak, began = Peak(worker.process.pid), time.monotonic()
        outcome = outcomes[reader] = read_by(reader, medium)
        seconds, grown = time.monotonic() - began, peak.growth()
        assert seconds < SECONDS, f"{reader}: {seconds:.1f} s"
        assert grown < MEGABYTES, f"{reader}: {grown:.0f} MB"
        assert reading._idle == [worker] and worker.process.is_alive(), f"{reader}: the worker died: {outcome}"
        if isinstance(outcome, str):
            assert outcome.isprintable() and "failed (" not in outcome, outcome
            shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(medium))
            assert outcome.startswith(f"{shown}: "), outcome
        wanted = expect.get("all", expect.get(kind))
        if wanted == "":
            assert not isinstance(outcome, str), f"{reader}: {outcome}"
        elif wanted is not None:
            assert isinstance(outcome, str), f"{reader}: was read"
            assert wanted == REFUSED or re.search(wanted, outcome), f"{reader}: {outcome}"
    return outcomes


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_an_item_or_a_line(name, tmp_path, worker):
    check(name, Medium(CASES[name](tmp_path)), EXPECT[name], worker)


def test_the_corpus_is_as_large_as_it_should_be():
    assert len(CASES) > 400
    whole = [name for name in CASES if not re.search(r"cut at|flipped", name)]
    assert len(whole) > 100


def test_what_is_measured_would_be_seen(worker):
    """A picture of 49 million pixels takes memory, and the gauge shows it."""
    peak = Peak(worker.process.pid)
    assert not isinstance(read_by("square", Medium(corpus.png(7000, 7000, 8, 0))), str)
    assert 40 < peak.growth() < MEGABYTES


# ------------------------------------------------------------------------------------------------------- other files

LIBC = ctypes.CDLL(None, use_errno=True)
IN_OPEN = 0x20


class Canary:
    """A good film that nobody may open; whether somebody did, by whatever process, the kernel tells."""

    def __init__(self, path):
        self.path = path
        path.write_bytes(film("mpegts", sound_codec="mp2"))
        self.watch = LIBC.inotify_init1(os.O_NONBLOCK)
        assert self.watch >= 0 and LIBC.inotify_add_watch(self.watch, os.fsencode(path), IN_OPEN) >= 0

    def opened(self):
        try:
            data = os.read(self.watch, 65536)
        except BlockingIOError:
            return 0
        return len(data) // struct.calcsize("iIII")


@pytest.fixture
def canary(tmp_path):
    made = Canary(tmp_path / "secret.ts")
    yield made
    os.close(made.watch)


@pytest.fixture
def server():
    """A port at which nobody may knock."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def knocked(server):
    return bool(select.select([server], [], [], 0)[0])


def playlist(kind, path, port):
    address = f"http://127.0.0.1:{port}/a.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n{}#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "ffconcat, absolute": f"ffconcat version 1.0\nfile '{path}'\n",
        "ffconcat, relative": f"ffconcat version 1.0\nfile {path.name}\n",
        "ffconcat, address": f"ffconcat version 1.0\nfile '{address}'\n",
        "concat with options": f"ffconcat version 1.0\nfile 'file:{path}'\noption safe 0\n",
        "m3u8, absolute": hls.format("", path),
        "m3u8, relative": hls.format("", path.name),
        "m3u8, file address": hls.format("", f"file:{path}"),
        "m3u8, address": hls.format("", address),
        "m3u8, key elsewhere": hls.format(f'#EXT-X-KEY:METHOD=AES-128,URI="{address}"\n', path),
        "m3u8, master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{address}\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        f'<Representation id="1" bandwidth="1" mimeType="video/mp4"><BaseURL>{address}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "real media reference": f"rtsp://127.0.0.1:{port}/a\n",
        "asx": f'<asx version="3.0"><entry><ref href="{address}"/></entry></asx>',
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{address}"/></svg>',
    }[kind]


KINDS = [
    "ffconcat, absolute", "ffconcat, relative", "ffconcat, address", "concat with options", "m3u8, absolute",
    "m3u8, relative", "m3u8, file address", "m3u8, address", "m3u8, key elsewhere", "m3u8, master", "dash",
    "real media reference", "asx", "svg",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_of_other_files_opens_none_and_calls_nobody(kind, tmp_path, canary, server, worker):
    script = playlist(kind, canary.path, server.getsockname()[1])
    for suffix in (".mp4", ".m3u8", ".png", ".wav"):
        path = tmp_path / f"innocent{suffix}"
        path.write_text(script)
        check(kind, Medium(str(path)), {"all": REFUSED}, worker)
    check(kind, Medium(script.encode()), {"all": REFUSED}, worker)
    assert canary.opened() == 0 and not knocked(server)


def test_the_traps_are_real(tmp_path, canary, server):
    """Without our options FFmpeg opens the other file and calls the address; the canary and the server tell."""
    path = tmp_path / "innocent.mp4"
    path.write_text(playlist("ffconcat, absolute", canary.path, 0))
    with av.open(str(path), options={"safe": "0"}) as container:
        assert next(container.decode(video=0)).width == 64
    assert canary.opened() >= 1
    path.write_text(playlist("ffconcat, address", canary.path, server.getsockname()[1]))
    options = {"safe": "0", "protocol_whitelist": "file,http,tcp"}
    server.settimeout(20)
    import threading

    def hang_up():
        server.accept()[0].close()
        heard.append(True)

    heard = []
    answering = threading.Thread(target=hang_up)
    answering.start()
    with pytest.raises(av.FFmpegError):
        av.open(str(path), options=options)
    answering.join(30)
    assert heard
