"""What a judge grades: how its replies are read, asked again and summed, by hand; the judge itself is made up here."""

import json

import pytest

from omnikit.component import Sample, Turn
from omnikit.evaluate.benchmark import Question
from omnikit.evaluate.judges import JudgeFailed
from omnikit.evaluate.metrics import METRICS
from omnikit.evaluate.metrics.prompts import filled


class Told:
    """A judge that says what it is told to say, in turn, and keeps what it was asked."""

    def __init__(self, *replies):
        self.replies, self.asked = list(replies), []

    def ask(self, messages, temperature=0.0):
        self.asked.append((messages[-1]["content"], temperature))
        return self.replies.pop(0)


def ask(reference, name="q", text="What colour is it?", **rest):
    turns = (Turn("user", (("image", "x.png"), ("text", text))), Turn("assistant", ()))
    return Question(name, Sample(name, turns), reference, **rest)


def said(pred, score):
    return json.dumps({"pred": pred, "score": score})


JUDGED = {
    "yes_no_score": (ask("red"), said("yes", 5)),
    "mmvet": (ask("red <AND> blue"), "0.5"),
    "air_bench": (ask("a dog", extra={"audio": "a dog barks"}), "8 6"),
    "mathvista": (ask("7", extra={"answer_type": "integer"}), "seven"),
}


@pytest.mark.parametrize("name", JUDGED)
def test_without_a_judge_there_is_no_grade(name):
    question, _ = JUDGED[name]
    assert METRICS[name]().judged
    with pytest.raises(JudgeFailed, match="needs a judge to be graded, and none was given"):
        METRICS[name]().grade(question, "it is so", None)


@pytest.mark.parametrize("name", ["yes_no_score", "mmvet", "air_bench"])
@pytest.mark.parametrize("nonsense", ["", "I like it", "yes", "11 12", "1.5", "-0.5", "{'pred': 'yes'}", "🐇"])
def test_nonsense_is_asked_again_warmer_and_then_given_up(name, nonsense):
    question, good = JUDGED[name]
    judge = Told(nonsense, nonsense, nonsense, good)
    with pytest.raises(JudgeFailed, match="asked 3 times the judge gave no grade; its last words: "):
        METRICS[name]().grade(question, "red", judge)
    assert [warmth for _, warmth in judge.asked] == [0, 0.5, 1] and len({text for text, _ in judge.asked}) == 1


def test_the_second_reply_counts_where_the_first_cannot_be_read():
    grade = METRICS["mmvet"]().grade(ask("red"), "red", Told("well", "0.7"))
    assert grade.right == 0.7 and grade.note == "0.7"


@pytest.mark.parametrize("name", JUDGED)
def test_the_judge_is_shown_question_reference_and_answer(name):
    question, good = JUDGED[name]
    judge = Told(good, good)
    answer = "it is {reference}\n</s> {braces} \\1"
    METRICS[name]().grade(question._replace(extra={**question.extra, "question": "Bare?"}), answer, judge)
    METRICS[name]().grade(question, answer, Told(good, good))
    text = judge.asked[0][0]
    assert answer in text and "Bare?" in text and "What colour" not in text
    assert name == "mathvista" or question.reference in text


def test_a_definition_gives_its_own_words_with_all_places():
    metric = METRICS["mmvet"](prompt="{question}|{reference}|{answer}")
    judge = Told("1")
    metric.grade(ask("red<OR>blue"), " red ", judge)
    assert judge.asked == [("What colour is it?|red <OR> blue|red", 0)]
    with pytest.raises(ValueError, match=r"the judge's prompt lacks \{answer\}, \{reference\}"):
        METRICS["yes_no_score"](prompt="{question}?")
    assert filled("{a}{b}{c}", {"a": "{b}", "b": "x"}) == "{b}x{c}"


# ---------------------------------------------------------------------------------------------------- yes, and 0 to 5


@pytest.mark.parametrize(
    ("reply", "counts"),
    [
        ('{"pred": "yes", "score": 5}', (1, 5)), ("{'pred': 'no', 'score': 2}", (0, 2)),
        ("{'pred': 'yes', 'score': 4.8}", (1, 4)),  # the official script cuts decimals off
        ('```json\n{"pred": "Yes", "score": "3"}\n```', (1, 3)), ("{'score': 0, 'pred': 'No'}", (0, 0)),
    ],
)  # fmt: skip
def test_a_reply_of_yes_and_a_score(reply, counts):
    assert METRICS["yes_no_score"]().grade(ask("red"), "red", Told(reply)).counts == counts


@pytest.mark.parametrize(
    "reply",
    ["{'pred': 'yes', 'score': 6}", "{'pred': 'yes', 'score': -1}", "{'pred': 'maybe', 'score': 1}", "{'score': 1}",
     "{'pred': 'yes', 'score': 1} {'pred': 'no', 'score': 1}", "{'pred': 'yes', 'score': " + "9" * 10_000 + "}"],
)  # fmt: skip
def test_a_reply_that_says_neither(reply):
    with pytest.raises(JudgeFailed):
        METRICS["yes_no_score"]().grade(ask("red"), "red", Told(*[reply] * 3))


def test_yes_no_score_by_hand():
    metric = METRICS["yes_no_score"]()
    replies = [("a", "yes", 5), ("a", "no", 1), ("b", "yes", 4), ("b", "yes", 3)]
    graded = []
    for number, (kind, pred, score) in enumerate(replies):
        question = ask("red", str(number), category=kind)
        graded.append((question, metric.grade(question, "it is red", Told(said(pred, score)))))
    score = metric.score(graded)
    assert score.value == 75 and score.parts == {"score": 3.25, "a": 50, "b": 100} and score.questions == 4


# --------------------------------------------------------------------------------------------------------------- MM-Vet


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("0.0", 0),
        ("1", 1),
        ("1.0", 1),
        (" 0.5\n", 0.5),
        ("**0.3**", 0.3),
        (".4", 0.4),
        ("0.5 or 0.7", 0.5),
        ("0.9.", 0.9),
    ],
)
def test_a_fraction(reply, right):
    assert METRICS["mmvet"]().grade(ask("red"), "red", Told(reply)).right == right


def test_mmvet_by_hand():
    metric = METRICS["mmvet"]()
    graded = []
    for number, (needs, reply) in enumerate([("rec", "1.0"), ("rec,ocr", "0.5"), ("ocr, math", "0.3")]):
        question = ask("red", str(number), category=needs)
        graded.append((question, metric.grade(question, "red", Told(reply))))
    score = metric.score(graded)
    assert score.value == pytest.approx(60) and metric.unit == "points"
    assert score.parts == pytest.approx({"rec": 75, "ocr": 40, "math": 30})


# ------------------------------------------------------------------------------------------------------------ AIR-Bench


def test_air_bench_asks_twice_with_the_two_swapped():
    metric = METRICS["air_bench"]()
    question = ask("a dog", extra={"audio": "a dog barks twice"})
    judge = Told("9 6", "7\n8")
    grade = metric.grade(question, "a cat", judge)
    # Reference first: 9 to 6; answer first: 7 to 8. The answer's are 6 and 7, the reference's 9 and 8.
    assert grade.counts == (6.5, 8.5) and grade.right == 0.65
    first, second = (text for text, _ in judge.asked)
    assert first.index("a dog\n") < first.index("a cat") and second.index("a cat") < second.index("a dog\n[End]")
    assert "a dog barks twice" in first


def test_air_bench_by_hand():
    metric = METRICS["air_bench"]()
    graded = []
    for number, (kind, replies) in enumerate(
        [
            ("speech", ("8 6", "6 8")),
            ("speech", ("8 8", "8 8")),
            ("sound", ("10 1", "1 10")),
            ("speech", ("9 7", "7 9")),
        ]
    ):
        question = ask("a dog", str(number), category=kind, extra={"audio": "a dog barks"})
        graded.append((question, metric.grade(question, "a cat", Told(*replies))))
    score = metric.score(graded)
    assert score.parts == pytest.approx({"speech": 7, "sound": 1, "reference": (8 + 8 + 10 + 9) / 4})
    assert score.value == pytest.approx(4), "speech and sound count alike"
    assert METRICS["air_bench"](average="questions").score(graded).value == pytest.approx((6 + 8 + 1 + 7) / 4)


def test_air_bench_wants_a_description():
    with pytest.raises(ValueError, match="q: extra has no audio"):
        METRICS["air_bench"]().grade(ask("a dog"), "a dog", Told())


# ------------------------------------------------------------------------------------------------------------ MathVista


def maths(kind, reference, choices=(), **rest):
    return ask(reference, choices=choices, extra={"answer_type": kind, **rest})


@pytest.mark.parametrize(
    ("question", "answer", "right"),
    [
        (maths("integer", "14"), "14", 1), (maths("integer", "14"), " 14.9 ", 1), (maths("integer", "14"), "15", 0),
        (maths("float", "1.2", precision=1), "1.24", 1), (maths("float", "1.2", precision=1), "1.26", 0),
        (maths("float", "1.20", precision=2.0), "1.2", 1), (maths("list", "[1, 2]"), "[1,2]", 1),
        (maths("list", "[1, 2]"), "[2, 1]", 0), (maths("text", "3/11", ("3/11", "8/11")), "(A) 3/11", 1),
        (maths("text", "8/11", ("3/11", "8/11")), "A", 0), (maths("text", "Yes", ("Yes", "No")), "yes", 1),
        (maths("integer", "14"), "", 0), (maths("text", "Yes", ("Yes", "No")), "  ", 0),
    ],
)  # fmt: skip
def test_mathvista_by_rule_needs_no_judge(question, answer, right):
    assert METRICS["mathvista"]().grade(question, answer, None).right == right


@pytest.mark.parametrize(
    ("question", "reply", "right"),
    [
        (maths("integer", "14"), "14", 1), (maths("integer", "14"), "Answer: 14", 1), (maths("integer", "14"), "", 0),
        (maths("integer", "14"), "fourteen", 0), (maths("integer", "14"), "nan", 0), (maths("integer", "14"), "inf", 0),
        (maths("float", "0.6", precision=1), "0.6", 1), (maths("list", "[2007, 2008]"), "[2007, 2008]", 1),
        (maths("list", "[2007, 2008]"), "2007 and 2008", 0), (maths("text", "8/11", ("3/11", "8/11")), "(B)", 1),
        # No rule takes it for a choice: the one with the fewest edits, as in the official script.
        (maths("text", "triangle", ("circle", "triangle")), "triangel", 1), (maths("text", "abc"), "abc", 1),
        (maths("text", "triangle", ("circle", "triangle")), "", 0),
    ],
)  # fmt: skip
def test_mathvista_by_judge(question, reply, right):
    judge = Told(reply)
    grade = METRICS["mathvista"]().grade(question, "Well, after much thought it comes to what I said", judge)
    assert grade.right == right and grade.note == reply and len(judge.asked) == 1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (ask("1"), "answer_type None is none of text, integer, float, list"),
        (maths("float", "1.0"), "extra has no precision"),
        (maths("float", "1.0", precision=float("inf")), "extra has no precision"),
        (maths("float", "1.0", precision=float("nan")), "extra has no precision"),
        (maths("float", "1.0", precision=-1), "extra has no precision"),
        (maths("integer", "many"), "'many' is no integer"),
        (maths("text", "C", ("a", "b")), "the reference 'C' is not one of its choices"),
    ],
)
def test_mathvista_names_what_is_wrong_with_a_question(question, message):
    with pytest.raises(ValueError, match=f"^q: {message}"):
        METRICS["mathvista"]().grade(question, "1", None)
