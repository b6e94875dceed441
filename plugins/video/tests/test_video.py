"""The reader `frames` (right frames at right times, by both decoders) and the projector `video_conv`."""

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
import pytest
import torch
from omnikit_video import FramesConfig, VideoConvConfig, omnikit_components, reader
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from omnikit.builtin.projector_configs import PoolMlp
from omnikit.component import Medium, Pixels, count
from omnikit.media import load_image
from omnikit.resizing import resize

torch.set_num_threads(1)
PIXELS = Pixels(size=32, patch=8, mean=(0, 0, 0), std=(1, 1, 1))  # values are pixels / 255
FPS = 25


def draw(index: int, width: int, height: int) -> np.ndarray:
    """A frame that tells its number by its brightness, up to 51, and its left from its right and top from bottom."""
    frame = np.full((height, width, 3), 5 * index, np.uint8)
    frame[: height // 4, : width // 4] = (255, 0, 0)
    return frame


def film(
    path: Path,
    frames: int = 50,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    format: str = "yuv420p",
    gop: int = 10,
    options: dict[str, str] | None = None,
    milliseconds: list[int] | None = None,
    rotation: int = 0,
) -> Medium:
    """A film whose frame i shows `draw(i)`, at i / 25 s or at these milliseconds."""
    with av.open(str(path), "w") as container:
        track = container.add_stream(codec, rate=FPS, options=options or {})
        track.width, track.height, track.pix_fmt = *size, format
        track.codec_context.gop_size = gop
        if milliseconds:
            track.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            track.set_display_rotation(rotation)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(index, *size), format="rgb24")
            if milliseconds:
                frame.pts, frame.time_base = milliseconds[index], Fraction(1, 1000)
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return Medium(str(path))


def read(medium: Medium, frames: int | None = None, **options: object) -> np.ndarray:
    """Views (n, 3, 32, 32), of all frames or of so many."""
    config = FramesConfig(**options)
    grids = config.grids(medium, PIXELS)
    grid = grids[0] if frames is None else next(grid for grid in grids if grid[0] == frames)
    item = config.read(medium, PIXELS, grid)
    assert item.grid == grid and item.value.shape == (grid[0], 3, 32, 32) and item.value.dtype == np.float32
    return item.value


def numbers(views: np.ndarray) -> list[int]:
    """The numbers of the frames, read off their lower right part."""
    return [round(float(view[:, 16:, 16:].mean()) * 255 / 5) for view in views]


X265 = {"x265-params": "log-level=none"}
KINDS = {
    "h264.mp4": {"options": {"bf": "3"}},
    "open gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3"}},
    "h264.mkv": {},
    "h264.ts": {},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "hevc.mp4": {"codec": "libx265", "options": X265},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"b": "4000000"}},
    "full range.mp4": {"format": "yuvj420p"},
    "ten bits.mp4": {"format": "yuv420p10le"},
}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Medium]:
    folder = tmp_path_factory.mktemp("films")
    return {name: film(folder / name, **options) for name, options in KINDS.items()}


# ------------------------------------------------------------------------------------------------------ which frames


@pytest.mark.parametrize("name", KINDS)
def test_frame_i_is_the_one_shown_at_i_over_fps(films: dict[str, Medium], name: str) -> None:
    assert numbers(read(films[name], fps=5)) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert numbers(read(films[name], fps=1)) == [0, 25]


# Of H.264 with open groups of pictures decord damages frames; that nothing tells of it is why PyAV is the default.
@pytest.mark.parametrize("name", [name for name in KINDS if name != "open gop.mp4"])
def test_both_decoders_give_the_same_pixels(films: dict[str, Medium], name: str) -> None:
    for options in ({"fps": 5.0}, {"fps": 7.3, "max_frames": 4}):
        by_pyav, by_decord = (read(films[name], decoder=decoder, **options) for decoder in ("pyav", "decord"))
        np.testing.assert_array_equal(by_pyav, by_decord)


@pytest.mark.parametrize(("name", "used"), [("h264.mp4", True), ("vp9.webm", True), ("hevc.mp4", False)])
def test_decord_is_used_where_it_is_right_and_asked_for(
    films: dict[str, Medium], name: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, original = [], decord.VideoReader
    monkeypatch.setattr(decord, "VideoReader", lambda *args, **kw: opened.append(1) or original(*args, **kw))
    read(films[name], decoder="pyav")
    assert not opened
    read(films[name], decoder="decord")
    assert bool(opened) == used


def test_pyav_reads_what_decord_cannot(tmp_path: Path) -> None:
    medium = film(tmp_path / "a.mp4", frames=50, codec="libsvtav1", options={"preset": "12"})
    with pytest.raises(decord.DECORDError):
        decord.VideoReader(medium.source)
    assert numbers(read(medium, decoder="decord", fps=5)) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]


@pytest.mark.parametrize("name", KINDS)
def test_seeking_gives_the_frames_of_decoding_through(
    films: dict[str, Medium], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_chosen = read(films[name], fps=5)
    monkeypatch.setattr(reader, "_worth_seeking", lambda track, position, target: False)
    np.testing.assert_array_equal(as_chosen, read(films[name], fps=5))
    monkeypatch.setattr(reader, "_worth_seeking", lambda track, position, target: target > position)
    np.testing.assert_array_equal(as_chosen, read(films[name], fps=5))


def test_a_long_film_is_not_decoded_through(films: dict[str, Medium], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, original = [], reader.decoded
    monkeypatch.setattr(reader, "decoded", lambda *args: (decoded.append(1) or frame for frame in original(*args)))
    read(films["h264.mp4"], fps=25, frames=2)  # in its middle quarters: frames 12 and 37 of key frames 10 and 30
    assert len(decoded) <= 14


def test_of_too_many_frames_some_are_taken_at_even_distances(films: dict[str, Medium]) -> None:
    config = FramesConfig(fps=5, max_frames=4)
    assert config.grids(films["h264.mp4"], PIXELS) == [(4, 4, 4), (3, 4, 4), (2, 4, 4), (1, 4, 4)]
    assert numbers(read(films["h264.mp4"], fps=5, max_frames=4)) == [5, 15, 30, 40]  # of 0, 5, ..., 45
    assert numbers(read(films["h264.mp4"], fps=5, frames=1)) == [25]


def test_only_the_part_that_is_meant(films: dict[str, Medium]) -> None:
    part = films["h264.mp4"]._replace(start=0.4, end=1.2)
    assert numbers(read(part, fps=5)) == [10, 15, 20, 25]
    with pytest.raises(ValueError, match=r"h264.mp4\[3.0:None\]: lasts 2.000 s; give a start and an end within it"):
        read(films["h264.mp4"]._replace(start=3.0))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_uneven_and_late_time_stamps(tmp_path: Path, suffix: str, decoder: str) -> None:
    times = [700, 740, 780, 1100, 1700, 1703, 2900, 2940, 3400, 3500]
    medium = film(tmp_path / f"a.{suffix}", frames=10, milliseconds=times)
    # from the first frame on: 0, 40, 80, 400, 1000, 1003, 2200, 2240, 2700, 2800 ms
    found = numbers(read(medium, fps=2, decoder=decoder))
    assert found == [0, 3, 4, 5, 5, 7] if suffix == "mkv" else found[:4] == [0, 3, 4, 5]  # this mp4 tells no length


def test_bytes_are_read_like_a_file(films: dict[str, Medium]) -> None:
    for decoder in ("pyav", "decord"):
        for name in ("h264.mp4", "vp9.webm"):
            in_memory = Medium(Path(str(films[name].source)).read_bytes())
            np.testing.assert_array_equal(read(in_memory, decoder=decoder), read(films[name]))


def test_one_frame_and_less_than_a_period(tmp_path: Path) -> None:
    assert numbers(read(film(tmp_path / "one.mp4", frames=1))) == [0]
    assert numbers(read(film(tmp_path / "few.mp4", frames=7), fps=0.1)) == [0]


def test_one_frame_a_second_and_48_at_most(tmp_path: Path) -> None:
    each_second = [1000 * index for index in range(51)]
    long = film(tmp_path / "long.mkv", frames=51, milliseconds=each_second)
    grids = FramesConfig().grids(long, PIXELS)
    assert grids[:3] == [(48, 4, 4), (36, 4, 4), (27, 4, 4)] and grids[-1] == (1, 4, 4)
    found = numbers(read(long))
    assert len(found) == 48 and found[0] == 0 and found[-1] == 50
    assert set(np.diff(found)) == {1, 2} and np.diff(found).tolist().count(2) == 3, "the three left out lie apart"
    short = film(tmp_path / "short.mkv", frames=20, milliseconds=each_second[:20])
    assert numbers(read(short)) == list(range(20))
    assert numbers(read(short, frames=6)) == [1, 5, 8, 11, 15, 18]


def test_what_shows_nothing_is_a_value_error(tmp_path: Path) -> None:
    for name in ("sound.m4a", "no frames.mkv"):
        with av.open(str(tmp_path / name), "w") as container:
            if name == "no frames.mkv":
                picture = container.add_stream("mpeg4", rate=FPS)
                picture.width = picture.height = 32
                picture.pix_fmt = "yuv420p"
            track = container.add_stream("aac", rate=48000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48000
            container.mux(track.encode(frame))
            container.mux(track.encode())
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, said in {
        "sound.m4a": "has no picture track that can be decoded; give a film",
        "no frames.mkv": "holds no frame that can be decoded; replace the file",
        "empty.mp4": r"is empty \(0 bytes\); replace the file",
    }.items():
        for decoder in ("pyav", "decord"):
            with pytest.raises(ValueError, match=f"{name}: ({said})"):
                read(Medium(str(tmp_path / name)), decoder=decoder)


def test_specimens_are_films_that_are_read(tmp_path: Path) -> None:
    media = FramesConfig().specimens(tmp_path, PIXELS)
    for medium in media:
        assert np.isfinite(read(medium)).all()
    counts = [FramesConfig().grids(medium, PIXELS)[0][0] for medium in media]
    assert counts[:4] == [3 * 3, 2 * 3, 4 * 3, 3] and len(media) >= 8


def test_animated_gif_is_a_film(tmp_path: Path) -> None:
    frames = [Image.fromarray(draw(i, 40, 40)) for i in range(0, 50, 10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
    assert numbers(read(Medium(str(tmp_path / "a.gif")), fps=1)) == [0, 20, 40]


def shortened(path: Path, seconds: float) -> Medium:
    """A film of 50 frames whose header says that it lasts this long: matroska's, as text."""
    film(path)
    data = path.read_bytes()
    told = b"00:00:02.000000000"
    assert data.count(told) == 1
    path.write_bytes(data.replace(told, f"00:00:{seconds:012.9f}".encode()))
    return Medium(str(path))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_the_last_frame_repeats_where_the_header_promised_a_little_more(tmp_path: Path, decoder: str) -> None:
    assert numbers(read(shortened(tmp_path / "a.mkv", 2.9), fps=2, decoder=decoder)) == [0, 12, 25, 37, 49, 49]
    with pytest.raises(ValueError, match=r"b.mkv: should have a frame at 3.50 s but ends at 2.00 s; replace the file"):
        read(shortened(tmp_path / "b.mkv", 4.0), fps=2, decoder=decoder)


# -------------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    ("size", "views"), [((64, 48), 1), ((48, 32), 3), ((32, 48), 3), ((32, 20), 1), ((128, 32), 3), ((46, 32), 1)]
)
def test_wide_and_tall_frames_larger_than_a_view_are_cut_in_two(
    tmp_path: Path, size: tuple[int, int], views: int
) -> None:
    medium = film(tmp_path / "a.mp4", size=size)
    assert FramesConfig().grids(medium, PIXELS)[0] == (2 * views, 4, 4)
    assert FramesConfig(max_tiles=1).grids(medium, PIXELS)[0] == (2, 4, 4)
    assert FramesConfig().grids(medium, PIXELS)[-1] == (views, 4, 4)


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_views_of_a_frame_are_the_whole_and_its_halves(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    views = np.round(read(Medium(file.getvalue())) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(views[0], resize(noise, 32, 32))
    np.testing.assert_array_equal(np.concatenate(views[1:], axis=1 if size[0] > size[1] else 0), noise)


def test_a_still_picture_is_a_film_of_one_frame(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "bmp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(draw(10, 40, 40)).save(path)
        views = read(Medium(str(path)), fps=30)
        expected = resize(load_image(Medium(str(path))), 32, 32).astype(np.float32) / 255
        np.testing.assert_allclose(views[0], expected.transpose(2, 0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_turned_films_are_seen_upright(tmp_path: Path, rotation: int, corner: tuple[int, int], decoder: str) -> None:
    medium = film(tmp_path / "a.mp4", size=(96, 48), rotation=rotation)
    views = read(medium, decoder=decoder)
    assert len(views) == 2 * 3
    red, _, blue = views[0][(slice(None), *corner)]
    assert red > 0.9 and blue < 0.1
    stacked = np.concatenate(views[1:3], axis=1 if rotation % 180 else 2)  # tall: one half above the other
    red, _, blue = stacked[(slice(None), *corner)]
    assert red > 0.9 and blue < 0.1


def test_sizes_name_what_the_paper_states() -> None:
    sizes = FramesConfig(max_frames=48).sizes(Pixels(size=384, patch=14))
    tokens = {name: count(VideoConvConfig().shrink(grid)) for name, grid in sizes.items()}
    assert tokens == {"frame": 182, "wide frame": 546, "longest video": 48 * 546}


# ---------------------------------------------------------------------------------------------------------- bad files


def test_grids_the_film_does_not_make_are_refused(films: dict[str, Medium]) -> None:
    for num_views in (0, 3):
        with pytest.raises(ValueError, match=f"makes 1 views of each of at most 2 frames, not {num_views}"):
            FramesConfig().read(films["h264.mp4"], PIXELS, (num_views, 4, 4))


def test_a_film_cut_short_is_a_value_error(films: dict[str, Medium]) -> None:
    whole = Path(str(films["vp9.webm"].source)).read_bytes()
    for kept in range(1, len(whole), len(whole) // 20):
        medium = Medium(whole[:kept])
        try:
            views = read(medium)
        except ValueError as error:
            assert str(error).startswith(f"{medium}: ")
        else:
            assert np.isfinite(views).all()
    with pytest.raises(ValueError, match="cannot be decoded"):
        read(Medium(whole[:100]))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_a_list_of_films_disguised_as_a_film_opens_none(films: dict[str, Medium], tmp_path: Path, decoder: str) -> None:
    script = f"ffconcat version 1.0\nfile '{films['h264.mp4'].source}'\n"
    path = tmp_path / "innocent.mp4"
    path.write_text(script)
    with av.open(str(path), options={"safe": "0"}) as container:  # without a whitelist FFmpeg does open the other file
        assert next(container.decode(video=0)).width == 64
    for medium in (Medium(str(path)), Medium(script.encode())):
        with pytest.raises(ValueError, match="cannot be decoded"):
            read(medium, decoder=decoder)


# ----------------------------------------------------------------------------------------------------------- projector


@pytest.mark.parametrize("newline", [True, False])
@pytest.mark.parametrize(("pool", "own"), [("mean", {"conv.weight", "conv.bias"}), ("conv", set())])
def test_with_the_tensors_of_pool_mlp_it_computes_the_same(newline: bool, pool: str, own: set[str]) -> None:
    grids = [(2, 5, 4), (1, 2, 7), (3, 5, 4)]
    features = torch.randn(sum(map(count, grids)), 6, generator=torch.Generator().manual_seed(0))
    pool_mlp = PoolMlp(pool=pool, newline=newline)
    pooled, conv = pool_mlp.build(6, 10), VideoConvConfig(newline=newline).build(6, 10)
    with torch.no_grad():  # away from its start, so that nothing agrees by chance
        for parameter in pooled.parameters():
            parameter.normal_()
    given = pooled.state_dict()
    assert set(conv.state_dict()) - set(given) == own
    assert all(conv.state_dict()[name].shape == tensor.shape for name, tensor in given.items())
    conv.load_state_dict(given, strict=False)
    torch.testing.assert_close(conv(features, grids), pooled(features, grids), rtol=1e-5, atol=1e-5)
    assert [VideoConvConfig(newline=newline).shrink(g) for g in grids] == [pool_mlp.shrink(g) for g in grids]


def test_cost_of_video_conv_is_what_torch_counts() -> None:
    for grid in [(1, 27, 27), (48, 5, 4), (3, 2, 9)]:
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            VideoConvConfig().build(6, 10)(torch.empty(count(grid), 6), [grid])
        assert VideoConvConfig().cost(grid, 6, 10) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_video_conv_convolves_each_view_by_itself() -> None:
    grids = [(2, 5, 4), (1, 2, 7), (3, 5, 4)]
    module = VideoConvConfig().build(6, 10)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    features = torch.randn(sum(map(count, grids)), 6)
    tokens = module(features, grids).split([count(VideoConvConfig().shrink(grid)) for grid in grids])
    for item, grid, together in zip(features.split([*map(count, grids)]), grids, tokens, strict=True):
        views = item.view(*grid, 6)
        alone = torch.cat([module(view.flatten(0, 1), [(1, *grid[1:])]) for view in views])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
        weight = module.conv.weight.view(6, 2, 2, 6).permute(0, 3, 1, 2)
        convolved = torch.nn.functional.conv2d(views.permute(0, 3, 1, 2), weight, module.conv.bias, stride=2)
        expected = module.linear_2(torch.nn.functional.gelu(module.linear_1(convolved.permute(0, 2, 3, 1))))
        rows = together.view(grid[0], grid[1] // 2, grid[2] // 2 + 1, 10)
        torch.testing.assert_close(rows[:, :, :-1], expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(tokens[0][2], module.newline)


@pytest.mark.parametrize("autocast", [True, False])
def test_every_parameter_of_video_conv_gets_a_gradient_in_bfloat16(autocast: bool) -> None:
    dtype = torch.float32 if autocast else torch.bfloat16
    module, features = VideoConvConfig().build(6, 10).to(dtype), torch.randn(40, 6, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens = module(features, [(2, 5, 4)])
    assert tokens.dtype == torch.bfloat16
    tokens.float().square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_a_grid_too_small_names_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"video_conv: grid \(1, 4, 1\) holds no 2 x 2 features; give larger views"):
        VideoConvConfig().shrink((1, 4, 1))


def test_the_hook_lists_reader_and_projector() -> None:
    assert [component.type for component in omnikit_components()] == ["frames", "video_conv"]


def test_the_package_imports_no_heavy_library() -> None:
    code = "import sys, omnikit_video; print(sorted({'torch', 'av', 'decord', 'PIL', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
