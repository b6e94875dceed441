"""What lmms-eval hands over, as samples. That its tasks run on a run is for `make lmms-eval`."""

from io import BytesIO

import numpy as np
import pytest
import soundfile
from omnikit_lmms_eval.samples import sample_of, sample_of_messages
from PIL import Image

from omnikit.component import Medium


def picture(mode="RGB"):
    pixels = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    return Image.fromarray(pixels).convert(mode)


def pixels_of(medium):
    return np.asarray(Image.open(BytesIO(medium.source)).convert("RGB"))


def test_media_come_before_the_text_and_keep_every_pixel_and_sample():
    sound = np.array([0.0, 0.25, -1.0], np.float32)
    visuals = [picture(), "films/a.mp4", {"array": sound, "sampling_rate": 8000}]
    sample = sample_of("task:3", "what is it", visuals)
    assert sample.id == "task:3" and [turn.role for turn in sample.turns] == ["user", "assistant"]
    (image, video, audio, text), nothing = (turn.content for turn in sample.turns)
    assert nothing == () and text == ("text", "what is it")
    assert image[0] == "image" and (pixels_of(image[1]) == np.asarray(picture())).all()
    assert video[0] == "video" and video[1].source.endswith("/films/a.mp4") and video[1].source.startswith("/")
    heard, rate = soundfile.read(BytesIO(audio[1].source), dtype="float32")
    assert audio[0] == "audio" and rate == 8000 and (heard == sound).all()


def test_a_question_may_have_no_media_or_frames():
    assert sample_of("a", "why", None).turns[0].content == (("text", "why"),)
    frames = sample_of("a", "why", [[picture(), picture()]]).turns[0].content
    assert [name for name, _ in frames] == ["image", "image", "text"]


def test_a_picture_that_png_cannot_hold_keeps_its_colours():
    (_, medium), _ = sample_of("a", "why", [picture("CMYK")]).turns[0].content
    assert (pixels_of(medium) == np.asarray(picture("CMYK").convert("RGB"))).all()


def test_two_channels_of_sound_are_two():
    class Decoder:
        """As `datasets` hands over a column of sound."""

        def get_all_samples(self):
            return type("Samples", (), {"data": np.zeros((2, 5), np.float32), "sample_rate": 16000})

    ((name, medium), _) = sample_of("a", "why", [Decoder()]).turns[0].content
    assert name == "audio" and soundfile.read(BytesIO(medium.source))[0].shape == (5, 2)


def test_messages_keep_their_order_and_turns():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "here"}, {"type": "image", "url": picture()},
                                     {"type": "text", "text": "what"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "video", "url": "a.mp4", "start_time": 1.5, "end_time": 2.0},
                                     {"type": "text", "text": ""}]},
    ]  # fmt: skip
    turns = sample_of_messages("a", messages).turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert turns[0].content == (("text", "be brief"),) and turns[2].content == (("text", "red"),)
    assert [name for name, _ in turns[1].content] == ["text", "image", "text"]
    [(name, medium)] = turns[3].content
    assert name == "video" and (medium.start, medium.end) == (1.5, 2.0)


def test_a_film_may_say_which_seconds_are_meant():
    told = {"type": "video", "url": {"url": "a.mp4", "video_start": 3, "video_end": 4}}
    [(_, medium)] = sample_of_messages("a", [{"role": "user", "content": [told]}]).turns[0].content
    assert (medium.start, medium.end) == (3, 4)


def test_a_path_of_no_telling_name_is_what_the_message_says():
    told = [{"role": "user", "content": [{"type": "audio", "url": "clip"}]}]
    [(name, medium)] = sample_of_messages("a", told).turns[0].content
    assert name == "audio" and isinstance(medium, Medium)
    with pytest.raises(ValueError, match=r"clip: its name does not tell what it is; name it as \.png"):
        sample_of("a", "why", ["clip"])


def test_what_is_no_medium_is_said():
    with pytest.raises(ValueError, match="a set is no medium that omnikit knows"):
        sample_of("a", "why", [{1, 2}])
