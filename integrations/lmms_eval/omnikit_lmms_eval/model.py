"""The model of lmms-eval that a run of omnikit is."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from omnikit.component import Sample
from omnikit.generate import Run
from omnikit.sample import BadSample
from omnikit.sampling import Sampling
from omnikit_lmms_eval.samples import sample_of, sample_of_messages

AT_ONCE = 128
"""Requests whose media are held at the same time."""
TOKENS = 256
"""Tokens of an answer where a task does not say how many."""


class Omnikit(lmms):
    """A run, or its export, as the tasks' `doc_to_visual` and `doc_to_text` ask it: media first, then the text.

    A task's greedy, sampled and cut answers are what they are elsewhere. A request that cannot be asked (a medium that
    is broken, a prompt longer than the context) is logged and answered with nothing, for lmms-eval has no other way.
    """

    is_simple = True

    def __init__(self, pretrained: str, batch_size: object = None) -> None:
        """`pretrained` is the folder of a run or an export. `batch_size` is not looked at: batches are made by tokens.

        lmms-eval always gives one.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("omnikit in lmms-eval runs as one process; start it without a launcher of several")
        self.run = Run.load(pretrained)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, cut before the first of its task's `until`."""
        answers = [""] * len(requests)
        progress = tqdm(total=len(requests), desc="omnikit")
        for wanted, numbers in _alike(requests):
            for chosen in _at_once(numbers):
                samples = [self._sample(requests[number]) for number in chosen]
                for at, answer in self.run.answers(samples, max_tokens=_tokens(wanted), sampling=_sampling(wanted)):
                    progress.update()
                    if isinstance(answer, BadSample):
                        logger.error(f"not asked, counted as answered with nothing: {answer}")
                    else:
                        answers[chosen[at]] = _cut(answer, wanted.get("until"))
        progress.close()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """(loss, greedy) of each request's continuation: minus the mean logarithm of the probability of its tokens, for
        lmms-eval takes the choice with the least; and whether the likeliest answer begins with it.

        A pair by itself is made a text by lmms-eval 0.7.3 (its `unwrap_generation_output`), of which no task makes
        anything; what a GenerationResult holds is left as it is.
        """
        found: list[GenerationResult] = []
        for chosen in _at_once(range(len(requests))):
            pairs = [self._continued(requests[number]) for number in chosen]
            samples = [sample for sample, _ in pairs]
            encode = self.run.layouter.tokenizer.encode
            lengths = [len(encode(text, add_special_tokens=False).ids) for _, text in pairs]
            likely = self.run.likelihoods(samples, [[text] for _, text in pairs])
            asked = list({sample.id: sample for sample in samples}.values())  # once, however many choices it has
            greedy = dict(zip([one.id for one in asked], self.run.answer(asked, max_tokens=max(lengths)), strict=True))
            for (sample, text), tokens, [logarithm] in zip(pairs, lengths, likely, strict=True):
                found.append(GenerationResult((-logarithm / tokens, greedy[sample.id].startswith(text))))
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Tasks of several rounds are not supported."""
        raise NotImplementedError("omnikit answers single turns in lmms-eval; choose tasks of one round")

    def _document(self, task: str, split: str, number: int) -> Any:  # noqa: ANN401
        return self.task_dict[task][split][number]

    def _sample(self, request: Instance) -> Sample:
        text, _, visuals_of, number, task, split = request.args
        return sample_of(f"{task}:{number}", text, visuals_of(self._document(task, split, number)))

    def _continued(self, request: Instance) -> tuple[Sample, str]:
        """What is asked, and the text whose likelihood is wanted, without the blank that lmms-eval puts before it."""
        if len(request.args) == 2:  # the choice by itself, without a question
            text, target = request.args
            return sample_of("unconditional", text, None), target.strip()
        text, target, visuals_of, number, task, split = request.args
        document = self._document(task, split, number)
        told = target(document) if callable(target) else target
        return sample_of(f"{task}:{number}", text, visuals_of(document)), str(told).strip()


class OmnikitChat(Omnikit):
    """The same as tasks' messages ask it, media within the text where a task puts them. lmms-eval's choice by default;
    it has no likelihoods this way: `--force_simple` gives them.
    """

    is_simple = False

    def _sample(self, request: Instance) -> Sample:
        _, messages_of, _, number, task, split = request.args
        return sample_of_messages(f"{task}:{number}", messages_of(self._document(task, split, number)))


def _settings(request: Instance) -> dict[str, Any]:
    """How a request wants its answer made: the one mapping among its arguments."""
    (found,) = [one for one in request.args if isinstance(one, dict)]
    return found


def _alike(requests: Sequence[Instance]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """The requests' numbers by how their answers are to be made."""
    groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for number, request in enumerate(requests):
        settings = _settings(request)
        groups.setdefault(repr(sorted(settings.items())), (settings, []))[1].append(number)
    yield from groups.values()


def _at_once(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for begin in range(0, len(numbers), AT_ONCE):
        yield numbers[begin : begin + AT_ONCE]


def _tokens(settings: Mapping[str, Any]) -> int:
    return int(settings.get("max_new_tokens") or TOKENS)


def _sampling(settings: Mapping[str, Any]) -> Sampling | None:
    """None where the likeliest tokens are wanted."""
    if int(settings.get("num_beams") or 1) > 1:
        raise ValueError("omnikit searches no beams; give --gen_kwargs num_beams=1")
    temperature = float(settings.get("temperature") or 0)
    if not temperature or settings.get("do_sample") is False:
        return None
    top_p = settings.get("top_p")
    return Sampling(temperature, int(settings.get("top_k") or 0), 1.0 if top_p is None else float(top_p))


def _cut(answer: str, until: str | Sequence[str] | None) -> str:
    ends = [until] if isinstance(until, str) else until or []
    return answer[: min((at for end in ends if end and (at := answer.find(end)) >= 0), default=len(answer))]
