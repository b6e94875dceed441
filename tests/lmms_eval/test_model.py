"""How lmms-eval's settings are understood, and that its registry finds the model."""

import pytest
from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from omnikit_lmms_eval.model import Omnikit, OmnikitChat, _alike, _cut, _sampling, _tokens

from omnikit.sampling import Sampling


def test_the_registry_of_lmms_eval_finds_the_model():
    assert get_model("omnikit") is OmnikitChat and get_model("omnikit", force_simple=True) is Omnikit


def test_an_answer_ends_before_the_first_of_its_ends():
    assert _cut("red. And blue\n\nno", ["\n\n", "."]) == "red"
    assert _cut("red", ["\n\n", ""]) == _cut("red", None) == "red" and _cut("a b", "b") == "a "


def test_settings_of_generation_are_what_they_say():
    assert _sampling({"temperature": 0, "top_p": 1.0, "num_beams": 1}) is None
    assert _sampling({"temperature": 0.7, "do_sample": False}) is None and _sampling({"temperature": None}) is None
    assert _sampling({"temperature": 0.7, "top_k": 5, "top_p": None}) == Sampling(0.7, 5, 1.0)
    assert (_tokens({"max_new_tokens": 16}), _tokens({})) == (16, 256)
    with pytest.raises(ValueError, match="searches no beams"):
        _sampling({"num_beams": 3})


def test_requests_that_want_the_same_are_asked_together():
    def request(number, settings):
        told = {"task": "t", "doc_id": number, "repeats": 1}
        return Instance("generate_until", ("text", settings, None, number, "t", "test"), 0, told)

    asked = [request(0, {"max_new_tokens": 4}), request(1, {"max_new_tokens": 8}), request(2, {"max_new_tokens": 4})]
    assert [numbers for _, numbers in _alike(asked)] == [[0, 2], [1]]


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="runs as one process"):
        Omnikit("nowhere")
