"""The kit's own parts: specimens, helper processes, building on meta, variants and certificates."""

import os
import subprocess
import sys
import time
from pathlib import Path

import planted
import pytest
import torch
from omnikit_good_encoder import GoodEncoderReaderConfig
from omnikit_good_reader import GoodReaderConfig
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from omnikit.building import fill, parameters_on_meta, ties
from omnikit.component import ReaderConfig
from omnikit.media import audio_length, image_size, load_audio, load_image, open_video, video_header
from omnikit.testing import Fault, films, pictures, processes, sounds
from omnikit.testing.certificates import certify, variants
from omnikit.testing.costs import _on_cpu
from omnikit.testing.processes import Helper
from omnikit.testing.readers import no_decoding

# ----------------------------------------------------------------------------------------------------------- specimens


@pytest.mark.parametrize("write", [pictures, films, sounds])
def test_specimens_are_the_same_every_time_and_quick(write, tmp_path):
    first = write(tmp_path / "first")
    begin = time.process_time()
    second = write(tmp_path / "second")
    assert time.process_time() - begin < 1
    assert len(first) >= 6
    for one, other in zip(first, second, strict=True):
        assert one[1:] == other[1:]
        assert Path(one.source).read_bytes() == Path(other.source).read_bytes()


def test_pictures_are_of_odd_kinds(tmp_path):
    sizes = {Path(medium.source).name: image_size(medium) for medium in pictures(tmp_path)}
    assert sizes["one_pixel.png"] == (1, 1)
    assert sizes["turned.jpg"] == (30, 90), "stored 90 wide, and shown upright"
    assert {width > 3 * height for width, height in sizes.values()} == {True, False}
    assert {height > 3 * width for width, height in sizes.values()} == {True, False}
    assert all(load_image(medium).shape[:2] == sizes[Path(medium.source).name][::-1] for medium in pictures(tmp_path))


def test_films_are_of_odd_kinds(tmp_path):
    frames, shapes, loud = [], [], 0
    for medium in films(tmp_path):
        with open_video(medium) as container:
            header = video_header(medium, container)
            shapes.append(header.height > header.width)
            loud += len(container.streams.audio)
            frames.append(sum(1 for _ in container.decode(video=0)))
    assert min(frames) == 1 and max(frames) >= 20 and {*shapes} == {True, False} and loud == 1


def test_sounds_are_of_odd_kinds(tmp_path):
    lengths = [audio_length(medium) for medium in sounds(tmp_path)]
    assert {rate for _, rate in lengths} >= {8_000, 16_000, 44_100}
    assert min(samples / rate for samples, rate in lengths) < 0.1
    assert max(samples / rate for samples, rate in lengths) > 30
    assert all(abs(load_audio(medium, 16_000)).max() > 0.1 for medium in sounds(tmp_path))


def test_specimens_need_no_torch():
    code = "import sys, tempfile, pathlib; from omnikit.testing import films, pictures, sounds\n"
    code += "for write in films, pictures, sounds: write(pathlib.Path(tempfile.mkdtemp()))\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def frames_of(medium):
    with open_video(medium) as container:
        return next(container.decode(video=0))


def packets_of(medium):
    with open_video(medium) as container:
        return next(container.demux(container.streams.video[0])).decode()


def header_of(medium):
    with open_video(medium) as container:
        return video_header(medium, container)


@pytest.mark.parametrize(
    ("write", "decode", "look"),
    [
        (pictures, load_image, image_size),
        (sounds, lambda medium: load_audio(medium, 16_000), audio_length),
        (films, frames_of, header_of),
        (films, packets_of, header_of),
    ],
    ids=["pictures", "sounds", "frames", "packets"],
)
def test_where_nothing_can_be_decoded_headers_can_be_read(write, decode, look, tmp_path):
    medium = write(tmp_path)[0]
    expected = look(medium)
    decode(medium)
    with no_decoding(__name__):
        assert look(medium) == expected
        with pytest.raises(Fault, match="look at the header alone"):
            decode(medium)
    decode(medium)


# ----------------------------------------------------------------------------------------------------- helper processes


@pytest.mark.parametrize(
    ("function", "argument", "words"),
    [
        (os._exit, 3, "died"),
        (time.sleep, 30, "no answer in"),
        (int, "x", "ValueError: invalid literal"),
        (int, (one for one in "x"), "cannot be pickled"),
    ],
)
def test_what_a_helper_cannot_do_is_a_fault(function, argument, words):
    helper = Helper()
    try:
        assert helper.call(int, "7") == 7
        with pytest.raises(Fault, match=words):
            helper.call(function, argument, seconds=0.5 if function is time.sleep else 60)
        assert helper.lives is (function is int), "who is silent is not asked again: the answer may come late"
    finally:
        helper.close()
    assert helper.process.returncode is not None


def test_of_ranks_that_do_not_meet_none_is_asked_again(monkeypatch):
    """What the second says of it would be taken for its answer to the next question."""
    monkeypatch.setattr(processes, "join_group", int)
    with pytest.raises(Fault, match="TypeError"):
        processes._helpers("strangers", 2)
    assert not any(helper.lives for helper in processes._started.pop("strangers"))


def test_a_helper_imports_what_its_owner_can(tmp_path, monkeypatch):
    (tmp_path / "added_later.py").write_text("def answer():\n    return 42\n")
    helper = Helper()
    try:
        monkeypatch.syspath_prepend(str(tmp_path))
        from added_later import answer

        assert helper.call(answer) == 42
    finally:
        helper.close()


# --------------------------------------------------------------------------------------------------- building on meta


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        shared = nn.Parameter(torch.ones(3))
        self.first, self.second = nn.ParameterList([shared]), nn.ParameterList([shared])
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("angles", torch.arange(3.0), persistent=False)

    def tied(self):
        yield "head.weight", "embed.weight"
        yield "second.0", "first.0"


def test_parameters_go_to_meta_and_buffers_stay():
    with parameters_on_meta():
        module = Tied()
    assert all(parameter.is_meta for parameter in module.parameters())
    assert torch.equal(module.angles, torch.arange(3.0))
    assert module.head.weight is module.embed.weight and module.first[0] is module.second[0], "one tensor is one still"
    assert module.embed.weight.requires_grad and not module.frozen.requires_grad
    assert not nn.Linear(2, 2).weight.is_meta, "only within"


def test_filled_it_is_tied_as_before():
    normal = Tied()
    with parameters_on_meta():
        module = Tied()
    fill(module, normal.state_dict())
    assert ties(module) == {"head.weight": "embed.weight", "second.0": "first.0"}
    assert module.head.weight is module.embed.weight and module.first[0] is module.second[0]
    for name, tensor in normal.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)


def test_a_failed_build_leaves_torch_as_it_was():
    with pytest.raises(ZeroDivisionError), parameters_on_meta():
        raise ZeroDivisionError
    assert not nn.Linear(2, 2).weight.is_meta


# ------------------------------------------------------------------------------------------------------- certificates


def test_attention_is_counted_on_a_cpu_too():
    states = torch.randn(1, 2, 8, 4)
    with FlopCounterMode(display=False, custom_mapping=_on_cpu()) as counter:
        scaled_dot_product_attention(states, states, states)
    assert counter.get_total_flops() == 2 * (2 * 2 * 8 * 8 * 4), "two products of 8 x 8 x 4, in two heads"


def test_every_option_is_varied(tmp_path):
    found = {name: config for name, config, _ in variants(planted.Choosy, tmp_path)}
    assert set(found) == {"", "bias=False", "mode=a", "mode=b", "strict=False", "strict=True"}
    assert found["mode=b"] == planted.Choosy(mode="b")


def test_a_certificate_says_in_which_option_a_check_fails():
    certificate = certify(planted.Choosy, [GoodEncoderReaderConfig])
    failed = {result.check: result.detail for result in certificate.results if not result.passed}
    assert not certificate.passed
    assert "torch counts" in failed["cost_matches_flops"] and "mode=b" in failed["cost_matches_flops"]
    # What cannot be built is not tried any further.
    assert "no such mode" in failed["tiny_is_tiny"] and failed["tiny_is_tiny"].endswith("(with mode=a)")
    assert "comes_back_from_json" not in failed


@pytest.mark.parametrize(
    ("component", "words"),
    [
        (planted.Sized, "is_made_by_name: cannot be made without size; give the fields defaults, or the class presets"),
        (planted.Untiny, "tiny_is_tiny: tiny() has 50,364,416 parameters; at most 2,000,000 are tiny"),
        (planted.Unread, "can_be_tried: no installed encoder eats Strange, which this reader makes; install one"),
    ],
)
def test_what_cannot_be_checked_fails(component, words):
    certificate = certify(component, [GoodEncoderReaderConfig, component])
    failed = [result for result in certificate.results if not result.passed]
    assert [str(result).removeprefix("FAIL  ") for result in failed] == [words]


def test_a_method_that_is_missing_is_named():
    class Mute(GoodReaderConfig):
        specimens = ReaderConfig.specimens

    made, result = certify(Mute, []).results
    assert (
        made.passed
        and result.detail == "NotImplementedError: specimens() is missing; omnikit.component says what it gives"
    )
