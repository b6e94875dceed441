"""Every benchmark, end to end over its rows: a right, a wrong and a malformed answer, the score worked out by hand."""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from omnikit.component import Medium
from omnikit.evaluate.judges import JudgeFailed
from omnikit.evaluate.running import Asked, evaluate

ROOT = Path(__file__).parents[2]
BROKEN = None
"""In place of a letter: the run's likelihoods are no numbers."""


class Case(NamedTuple):
    answers: list
    """Of the questions, in their order; where choices are weighed, the likeliest letter."""
    value: float
    parts: dict = {}  # noqa: RUF012  (never changed)
    replies: tuple[str, ...] = ()
    """Of the judge, in the order in which it is asked."""


THIRD = 100 / 3
YES_NO = ('{"pred": "yes", "score": 5}', '{"pred": "no", "score": 1}', '{"pred": "no", "score": 0}')
# Two of the three questions are of one category; one right of two, none of one.
HALF = 25.0
# Of 11 characters, one is another and two are missing.
ERRORS = 100 * 3 / 11
LETTERS = ["A", "C", "I have no idea"]
SPOKEN = ["声音很低", "声音在升天", ""]

CASES = {
    "mmlu": Case(["B", "A", BROKEN], THIRD, {"astronomy": 50.0, "high_school_geography": 0.0}),
    "cmmlu": Case(["B", "A", BROKEN], HALF, {"astronomy": 50.0, "college_education": 0.0}),
    # Two of its six rows have several right choices, or none to choose among; jec-qa lists its one.
    "agieval": Case(["B", "A", "D", BROKEN], 2 * THIRD, {"jec-qa-kd": 100.0, "lsat-ar": 100.0, "sat-math": 0.0}),
    "ceval": Case(["A", "D", BROKEN], HALF, {"law": 50.0, "physics": 0.0}),
    "gaokao": Case(["B", "A", BROKEN, "B", "B", "B", "B"], 100 * 5 / 7),
    # Pairs of rotations: both right; one wrong; one malformed.
    "mmbench_en": Case(
        ["A", "B.", "A", "A", "A", "no idea"], THIRD, {"attribute_recognition": 50.0, "object_localization": 0.0}
    ),
    "mmbench_cn": Case(
        ["A", "选B", "A", "A", "A", "不知道"], THIRD, {"attribute_recognition": 50.0, "object_localization": 0.0}
    ),
    "m3gia": Case(["B", "C. blue", "no idea"], THIRD, {"Visualization": 50.0, "Number Seres": 0.0}),
    "seed_img": Case(["A", "The answer is D", "no idea"], THIRD, {"3": 50.0, "5": 0.0}),
    # Colours: 3 of 4 right, one picture of two wholly: 75 + 50. Code: 1 of 2, none wholly: 50 + 0.
    "mme": Case(
        ["Yes", "No", "Yes, it is", "Yes", "maybe", "No"],
        175.0,
        {"color": 125.0, "code_reasoning": 50.0, "perception": 125.0, "cognition": 50.0},
    ),
    "mmmu": Case(["A", "A", "unclear"], THIRD, {"Drawing": 50.0, "Geometry": 0.0}),
    # 2 of 4 answers; of three figures one, of three questions one.
    "hallusionbench": Case(
        ["Yes", "Yes", "No.", "perhaps"],
        (50 + THIRD + THIRD) / 3,
        {"aAcc": 50.0, "fAcc": THIRD, "qAcc": THIRD},
    ),
    "realworldqa": Case(["A", "2", "what"], THIRD),
    "mmvet": Case(["red", "a dog", ""], THIRD, {"rec": 50.0, "spat": 0.0, "ocr": 0.0}, ("1.0", "0.0", "0.0")),
    # The first two are read by rule; of the third the judge says that it holds no answer.
    "mathvista": Case(["(A)", "2", "hard to say"], THIRD, {"figure QA": 50.0, "geometry": 0.0}, ("",)),
    "textvqa": Case(["Red.", "blue", ""], THIRD),
    "chartqa": Case(["16.5", "Yes", "about a quarter"], HALF, {"human_test": 50.0, "augmented_test": 0.0}),
    "ocrbench": Case(["It says Omni.", "1250", ""], THIRD, {"points": 1.0}),
    "mvbench": Case(["(A) red", "(A)", "no idea"], THIRD, {"action_sequence": 100.0, "moving_count": 0.0}),
    "egoschema": Case(LETTERS, THIRD),
    "videomme": Case(LETTERS, THIRD, {"short": 50.0, "long": 0.0}),
    "perceptiontest": Case(LETTERS, THIRD, {"physics": 50.0, "memory": 0.0}),
    "activitynet_qa": Case(["yes", "red", "??"], THIRD, {"score": 2.0, "3": 100.0, "4": 0.0}, YES_NO),
    "msvd_qa": Case(["red", "blue", "??"], THIRD, {"score": 2.0}, YES_NO),
    # The references are 4, 5 ("400") and 2 words.
    "fleurs_en": Case(["The tone is low.", "a tone of 400 herbs", ""], 100 * 3 / 11),
    "fleurs_zh": Case(SPOKEN, ERRORS),
    "wenetspeech_net": Case(SPOKEN, ERRORS),
    "wenetspeech_meeting": Case(SPOKEN, ERRORS),
    "kespeech": Case(SPOKEN, (0 + 100 * 3 / 7) / 2, {"Mandarin": 0.0, "Beijing": 100 * 3 / 7}),
    # 11 tokens for 19; 11 of 11, 9 of 9, 6 of 7 and 4 of 5 n-grams.
    "covost2_zh2en": Case(
        ["The tone is very low today.", "The tone rises.", ""], 100 * math.exp(1 - 19 / 11) * (6 / 7 * 4 / 5) ** 0.25
    ),
    # 13 characters for 22; 13 of 13, 10 of 11, 7 of 9 and 5 of 7.
    "covost2_en2zh": Case(
        ["今天声音很低。", "声音在升高。", ""], 100 * math.exp(1 - 22 / 13) * (10 / 11 * 7 / 9 * 5 / 7) ** 0.25
    ),
    # Each answer is rated twice, second and first: 8 and 8, 3 and 3, 1 and 1; a category each.
    "airbench_chat": Case(
        ["A tone.", "Yes.", ""],
        4.0,
        {"speech": 8.0, "sound": 3.0, "mix": 1.0},
        ("8 8", "8 8", "9 3", "3 9", "9 1", "1 9"),
    ),
    "omnibench": Case(LETTERS, THIRD, {"Object Identification": 50.0, "Count and Quantity": 0.0}),
}


class Told:
    """A run that answers what it is told, and keeps what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked = iter(answers), []

    def answer(self, samples, *, max_tokens):
        self.asked += samples
        return [next(self.answers) for _ in samples]

    def likelihoods(self, samples, choices):
        self.asked += samples
        weights = []
        for texts in choices:
            letter = next(self.answers)
            weights.append([math.nan if letter is BROKEN else -0.5 if text == letter else -2.0 for text in texts])
        return weights


class Replies:
    """A judge that replies what it is told."""

    model = "told"

    def __init__(self, replies):
        self.replies = iter(replies)

    def ask(self, messages, temperature=0.0):
        try:
            return next(self.replies)
        except StopIteration:
            raise JudgeFailed("nothing left to say") from None


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_worked_out_by_hand(name, registry, tmp_path):
    case = CASES[name]
    benchmark = registry.get("benchmark", name)()
    run, judge = Told(case.answers), Replies(case.replies)
    found = evaluate(run, Asked(benchmark, benchmark.specimen()), "weights", tmp_path, judge).score
    assert found["value"] == pytest.approx(case.value, abs=1e-6)
    assert {part: found["parts"][part] for part in case.parts} == pytest.approx(case.parts, abs=1e-6)
    assert found["low"] <= found["value"] <= found["high"] and found["left_out"] == []
    assert next(run.answers, "none") == "none" and next(judge.replies, "none") == "none", "all were asked for"
    assert benchmark.metric.judged == bool(case.replies)
    assert [note for note in found["notes"] if "judge" in note or "told" in note] == ["graded by told"] * bool(
        case.replies
    )


@pytest.mark.parametrize("name", CASES)
def test_questions_show_what_they_are_about(name, registry):
    benchmark = registry.get("benchmark", name)()
    modalities = set(benchmark.about.modality.split("+")) - {"text"}
    shown = set()
    for question in benchmark.questions(benchmark.specimen()):
        user, assistant = question.sample.turns
        assert (user.role, assistant.role, assistant.content) == ("user", "assistant", ())
        media = [(kind, part) for kind, part in user.content if isinstance(part, Medium)]
        assert all(Path(part.source).is_file() for _, part in media if isinstance(part.source, str))
        shown |= {kind for kind, _ in media}
        texts = [part for kind, part in user.content if kind == "text"]
        assert "".join(texts).strip() and "{" not in "".join(texts).replace("x ^ {", "")
    assert shown == modalities


def test_the_issue_s_benchmarks_are_all_there(registry):
    assert set(registry.types("benchmark")) >= set(CASES)
    files = {path.stem for path in (ROOT / "omnikit/evaluate/definitions").glob("*.yaml")}
    assert files == set(CASES) == {path.name for path in (ROOT / "omnikit/evaluate/rows").iterdir()}


def test_rows_are_few_and_can_be_made_again(tmp_path, registry):
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import make_rows
    finally:
        sys.path.remove(str(ROOT / "tests"))
    kept = [path for path in make_rows.ROWS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 2**20
    make_rows.make(tmp_path)
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert made == sorted(str(path.relative_to(make_rows.ROWS)) for path in kept)
    for name in CASES:
        benchmark = registry.get("benchmark", name)()
        old, new = (benchmark.questions(folder) for folder in (benchmark.specimen(), tmp_path / name))
        assert [_without_media(question) for question in old] == [_without_media(question) for question in new], name


def _without_media(question):
    texts = [part for turn in question.sample.turns for kind, part in turn.content if kind == "text"]
    return (*question._replace(sample=None), texts)


def test_pictures_stand_where_the_question_means_them(registry):
    benchmark = registry.get("benchmark", "mmmu")()
    first, second, _ = benchmark.questions(benchmark.specimen())
    assert [kind for kind, _ in first.sample.turns[0].content] == ["text", "image", "text"]
    assert first.choices == ("red", "it's green")
    kinds = [kind if kind == "image" else part for kind, part in second.sample.turns[0].content]
    assert kinds[:5] == ["image", " Which of the two is blue?\nA. ", "image", "\nB. ", "image"]


def test_an_open_answer_is_right_by_words_or_number(registry):
    benchmark = registry.get("benchmark", "mmmu")()
    question = benchmark.questions(benchmark.specimen())[2]
    assert question.reference == ["1", "one"]
    answers = {"1": 1, " 1.0 ": 1, "1.": 1, "One.": 1, "11": 0, "": 0, "it is one": 0}
    assert {text: benchmark.metric.grade(question, text, None).right for text in answers} == answers
