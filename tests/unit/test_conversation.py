"""Conversations: what is cached is what would be computed, earlier turns cost nothing, pieces are whole characters."""

import pytest
import torch

from omnikit.component import Medium, Sample, Turn
from omnikit.conversation import Conversation, _Pieces
from omnikit.packing import collate, positions_of, read_items
from omnikit.sample import BadSample
from omnikit.sampling import Sampling

TOKENS = 6


@pytest.fixture
def said(world):
    """Four turns, media in most of them."""
    return [
        [("image", Medium(str(world / "0.png"))), ("text", "colour?")],
        [("text", "and this one "), ("audio", Medium(str(world / "1.wav"))), ("text", "?")],
        [("text", "sure?")],
        [("video", Medium(str(world / "2.mp4"))), ("image", Medium(str(world / "3.png")))],
    ]


def embedded(run, layout):
    items = read_items((layout,), run.layouter.branches)
    return run.model.embed(collate([(layout,)], items, len(layout.ids)))


def recomputed(run, turns, most):
    """The answers with all that was said computed anew for each token, as training computes it."""
    stop, layouter, answers = run.layouter.stop, run.layouter, []
    history = None
    for content in turns:
        user = (Turn("user", tuple(content)), Turn("assistant", ()))
        if history is None:
            layout = layouter(Sample("t", user), answer=False)
            history = embedded(run, layout)
        else:
            layout = layouter(Sample("t", (Turn("assistant", (("text", "x"),)), *user)), answer=False)
            after = layout.ids.index(stop) + 1
            history = torch.cat([history, embedded(run, layout)[:, after:]], 1)
        written = []
        while len(written) < most and stop not in written:
            segments = torch.ones(history.shape[:2], dtype=torch.long)
            hidden = run.model.backbone.hidden(history, segments, positions_of(segments))
            written.append(int(run.model.backbone.head(hidden[:, -1]).argmax(-1)))
            history = torch.cat([history, run.model.backbone.embed(torch.tensor([written[-1:]]))], 1)
        if written[-1] != stop:  # cut off: it is closed all the same
            history = torch.cat([history, run.model.backbone.embed(torch.tensor([[stop]]))], 1)
        answers.append(layouter.tokenizer.decode([token for token in written if token != stop]))
    return answers


@torch.inference_mode()
@pytest.mark.parametrize("most", [3, TOKENS])
def test_turns_are_answered_as_if_all_was_computed_anew(wild, said, most):
    expected = recomputed(wild, said, most)
    assert len(set(expected)) == len(said), "answers that are alike would prove nothing"
    talk = Conversation(wild, most)
    assert ["".join(talk.say(content)) for content in said] == expected


@torch.inference_mode()
def test_an_answer_that_stops_by_itself_is_closed_once(wild, said, monkeypatch):
    """The head says `stop` third, in both ways of computing."""
    head, stop = wild.model.backbone.head, wild.layouter.stop
    calls = []

    def stopping(hidden):
        calls.append(1)
        logits = head(hidden)
        logits[:, stop] += 1e6 * (len(calls) % 3 == 0)
        return logits

    monkeypatch.setattr(wild.model.backbone, "head", stopping)
    expected = recomputed(wild, said, TOKENS)
    calls.clear()
    talk = Conversation(wild, TOKENS)
    assert ["".join(talk.say(content)) for content in said] == expected
    assert all(len(answer.split()) == 2 for answer in expected)


def test_what_was_said_before_is_neither_read_nor_computed_again(wild, said, monkeypatch):
    embed, extend = wild.model.embed, wild.model.backbone.extend
    media, places = [], []
    monkeypatch.setattr(
        wild.model,
        "embed",
        lambda batch: (media.append({name: len(m.items) for name, m in batch.media.items()}), embed(batch))[1],
    )
    monkeypatch.setattr(
        wild.model.backbone,
        "extend",
        lambda embeds, mask, cache: (places.append(embeds.shape[1]), extend(embeds, mask, cache))[1],
    )
    talk = Conversation(wild, TOKENS)
    for content in said:
        "".join(talk.say(content))
    assert media == [{"image": 1}, {"audio": 1}, {}, {"video": 1, "image": 1}]
    assert sum(places) == talk.positions, "each position went through the model once"


def test_what_cannot_be_asked_is_as_if_unsaid(wild, said, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    broken = [("image", Medium(str(tmp_path / "a.png"))), ("text", "colour?")]
    plain, troubled = Conversation(wild, TOKENS), Conversation(wild, TOKENS)
    expected = ["".join(plain.say(content)) for content in said]
    answers = []
    for content in said:
        with pytest.raises(BadSample, match=r"the message: image: .*a\.png"):
            "".join(troubled.say(broken))
        with pytest.raises(ValueError, match="the message is empty; write something, or give a medium"):
            troubled.ask()
        answers.append("".join(troubled.say(content)))
    assert answers == expected


def test_an_answer_that_is_broken_off_is_closed_where_it_was(wild, said):
    talk, short = Conversation(wild, TOKENS), Conversation(wild, 2)
    stream = talk.say(said[0])
    assert next(stream) + next(stream) == "".join(short.say(said[0]))
    stream.close()
    short.max_tokens = TOKENS
    assert "".join(talk.say(said[1])) == "".join(short.say(said[1]))


@pytest.mark.parametrize("turn", [0, 1])
def test_what_is_raised_within_a_token_spoils_the_conversation_until_it_is_reset(wild, said, monkeypatch, turn):
    """Such as a KeyboardInterrupt in a notebook, some layers after the first: their caches are of different lengths."""
    expected = ["".join(Conversation(wild, TOKENS).say(said[0]))]
    talk, last = Conversation(wild, TOKENS), wild.model.backbone.blocks[-1]
    for content in said[:turn]:
        "".join(talk.say(content))

    def interrupted(*arguments, **rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(last, "forward", interrupted)
        "".join(talk.say(said[turn]))
    with pytest.raises(ValueError, match="the conversation was broken off within a token, and is of no use; reset it"):
        talk.ask("sure?")
    talk.reset()
    assert ["".join(talk.say(said[0]))] == expected


def test_reset_forgets(wild, said):
    for sampling in (None, Sampling(temperature=30.0)):
        talk = Conversation(wild, TOKENS, sampling)
        first = ["".join(talk.say(content)) for content in said]
        assert talk.positions
        talk.reset()
        assert talk.positions == 0 and ["".join(talk.say(content)) for content in said] == first


def test_files_by_modality_come_before_the_text(wild, world, said):
    asked, told = Conversation(wild, TOKENS), Conversation(wild, TOKENS)
    assert asked.ask("colour?", image=world / "0.png") == "".join(told.say(said[0]))
    two = [("image", Medium(str(world / name))) for name in ("1.png", "2.png")]
    expected = "".join(told.say([*two, ("audio", Medium(str(world / "1.wav")))]))
    assert asked.ask(image=[world / "1.png", str(world / "2.png")], audio=world / "1.wav") == expected


def test_a_conversation_that_fills_the_context_is_told(wild, said):
    talk = Conversation(wild, TOKENS)
    "".join(talk.say(said[0]))
    before = talk.positions
    wild.context = before + TOKENS + 8
    told = f"^the conversation with this message has more than the {before + 8} positions that a context of "
    with pytest.raises(BadSample, match=told):
        talk.ask("why " * 40)
    assert talk.positions == before
    wild.context, talk.max_tokens = before + 60, 1000
    assert talk.ask("why") and talk.positions == wild.context - 1, "an answer ends where the context does"


def test_pieces_are_whole_characters_and_the_rest_comes_at_the_end():
    pieces = _Pieces(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    found = [pieces.add(byte) for byte in "aé漢".encode()]
    assert found == ["a", "", "é", "", "", "漢"] and pieces.rest() == ""
    cut = _Pieces(lambda ids: bytes(ids).decode("utf-8", errors="replace"))
    assert [cut.add(byte) for byte in "é".encode()[:1]] == [""] and cut.rest() == "\ufffd"
