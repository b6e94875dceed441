"""Choices, rotations, yes and no: what an answer is taken for, and scores worked out by hand."""

# ruff: noqa: RUF001  (full-width forms are what is tested)

import time

import pytest

from omnikit.component import Sample
from omnikit.evaluate.benchmark import Question
from omnikit.evaluate.metrics import METRICS
from omnikit.evaluate.metrics.letters import letter_in, yes_or_no
from omnikit.evaluate.metrics.yes_no import MME

PETS = ("a teddy bear", "a rabbit", "a cat", "a dog")


def ask(name="q", reference="B", choices=PETS, **rest):
    return Question(name, Sample(name, ()), reference, choices, **rest)


def graded(metric, cases, judge=None):
    """(question, answer) pairs, graded."""
    return [(question, metric.grade(question, answer, judge)) for question, answer in cases]


# ------------------------------------------------------------------------------------------------------------- letters


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        # alone, in any dress
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B.", "B"), ("**B**", "B"), (" b) \n", "B"), ("Ｂ", "B"), ("[D]", "D"),
        # a choice's text
        ("a rabbit", "B"), ("A rabbit.", "B"), ("A Cat", "C"),
        # one letter as a word
        ("B. a rabbit", "B"), ("B: the animal in the middle of this picture has long ears", "B"),
        ("(C) because it has whiskers and a long tail, as one can see", "C"), ("D\nIt barks at all who come by.", "D"),
        ("A\nIt was sewn by somebody out of plush and straw", "A"), ("I say A because of it", "A"),
        ("It must be C", "C"), ("I choose the option B here", "B"), ("我选B。", "B"), ("答案：C", "C"),
        # several letters, but one is stated
        ("The answer is B, not A.", "B"), ("A and C are wrong. The correct answer is **D**.", "D"),
        ("Answer: A. Wait, that is B's ear, and C has none. Answer: C", "C"), ("A和C不对，所以选D", "D"),
        ("A、C都不是，答案是B", "B"),
        # an article is no letter
        ("A small dog", ""), ("The answer is a dog, as far as one can see in this light.", "D"),
        # a choice's text within
        ("I see a rabbit in the grass", "B"), ("It looks like A CAT to me", "C"),
        # nothing that decides
        ("", ""), ("   ", ""), ("...", ""), ("spider", ""), ("E", ""), ("Z", ""), ("A or B", ""), ("A, B, C, D", ""),
        ("either a cat or a dog", ""), ("I'm sorry, but I cannot determine the answer.", ""), ("AB", ""), ("🐇", ""),
        ("vitamin B-12 or D-3", ""), ("\x00\ufffd", ""),
        # a lone letter early in a long answer may be a name
        ("The one called B goes over the hill to see what is there today", ""),
    ],
)  # fmt: skip
def test_the_letter_of_an_answer(answer, letter):
    assert letter_in(answer, PETS) == letter


def test_a_text_that_two_choices_share_decides_nothing():
    assert letter_in("red", ("red", "dark red", "red", "blue")) == ""
    assert letter_in("dark red", ("red", "dark red")) == "B", "the whole answer is one of them"
    assert letter_in("it is dark red", ("red", "dark red")) == ""


def test_a_text_within_a_long_answer_is_not_looked_for():
    told = "The animal sits in the grass, and beside it there lies a ball; perhaps it is a rabbit, perhaps not at all."
    assert len(told) > 2 * sum(map(len, PETS)) and letter_in(told, PETS) == ""


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("it is 13", "B"), ("it is 3!", "A"), ("it is 3.5", "C"), ("x = 33", ""), ("about 13.5", ""), ("3 or 13", "")],
)
def test_a_number_is_looked_for_whole(answer, letter):
    assert letter_in(answer, ("3", "13", "3.5", "-7")) == letter


def test_where_the_choices_are_letters_alone_none_is_found_in_a_word():
    assert letter_in("map", ("A", "B", "C")) == "" and letter_in("b", ("A", "B", "C")) == "B"


def test_letters_beyond_the_choices_are_none():
    assert letter_in("C", ("yes", "no")) == "" and letter_in("B", ("yes", "no")) == "B"
    assert letter_in("J", tuple("abcdefghij")) == "J"
    with pytest.raises(ValueError, match="2 to 26 choices, this one 1"):
        letter_in("A", ("one",))


def test_a_very_long_answer_takes_no_time():
    begun = time.process_time()
    assert letter_in("answer is " * 100_000 + "B", PETS) == "B"
    assert letter_in("A dog " * 100_000, PETS) == ""
    assert letter_in("answer is" + " " * 1_000_000 + "?", PETS) == ""
    assert yes_or_no("well, " * 100_000 + "yes") == "Yes"
    assert time.process_time() - begun < 10, "seconds: each rule reads the answer once, and so it stays"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes", "Yes"), ("no.", "No"), ("YES, it is.", "Yes"), ("No, there is none", "No"), ("ｙｅｓ", "Yes"),
        ("Well... yes!", "Yes"), ("**No**", "No"), ("yes/no", ""), ("Yes. No.", ""), ("", ""), ("maybe", ""),
        ("nothing is known", ""), ("yesterday", ""), ("42", ""), ("不是", ""),
    ],
)  # fmt: skip
def test_yes_or_no(answer, said):
    assert yes_or_no(answer) == said


# ------------------------------------------------------------------------------------------------------------- choice


def test_choice_by_hand():
    metric = METRICS["choice"]()
    cases = [
        (ask("1", "B", category="pets"), "B"),
        (ask("2", "A", category="pets"), "The answer is (A)."),
        (ask("3", "C", category="farm"), "B"),
        (ask("4", "D", category="farm"), "I do not know"),
        (ask("5", "D", category="farm"), "a dog"),
    ]
    found = graded(metric, cases)
    assert [grade.taken for _, grade in found] == ["B", "A", "B", "", "D"]
    assert [grade.right for _, grade in found] == [1, 1, 0, 0, 1]
    score = metric.score(found)
    assert score.value == pytest.approx(60) and score.questions == 5
    assert score.parts == pytest.approx({"pets": 100, "farm": 100 / 3})
    # Wilson of 3 of 5: (0.6 + 0.38415 -+ 1.96 sqrt(0.048 + 0.038415)) / 1.7683
    assert (score.low, score.high) == pytest.approx((23.07, 88.24), abs=0.01)


def test_choice_over_categories_counts_each_alike():
    cases = [(ask(str(n), "A", category="a"), "A") for n in range(3)] + [(ask("4", "A", category="b"), "B")]
    metric = METRICS["choice"](average="categories")
    score = metric.score(graded(metric, cases))
    assert score.value == pytest.approx(50) and METRICS["choice"]().score(graded(metric, cases)).value == 75
    assert score.low <= score.value <= score.high


def test_by_likelihood_the_letter_comes_as_it_is():
    metric = METRICS["choice"](by="likelihood")
    assert metric.by == "likelihood" and METRICS["choice"]().by == "text"
    assert metric.grade(ask(reference="C"), "C", None).right == 1
    assert metric.grade(ask(reference="C"), "A", None).right == 0


@pytest.mark.parametrize("reference", ["E", "", "b", "AB", None, 1, ["A"]])
def test_a_reference_that_is_no_letter_is_named(reference):
    with pytest.raises(ValueError, match=r"^q: the reference .* is none of its letters, ABCD"):
        METRICS["choice"]().grade(ask(reference=reference), "A", None)


# ------------------------------------------------------------------------------------------------------------- circular


def test_circular_wants_every_rotation_right():
    metric = METRICS["circular"]()
    rotations = [("B", PETS), ("A", PETS[1:] + PETS[:1]), ("D", PETS[2:] + PETS[:2]), ("C", PETS[3:] + PETS[:3])]
    cases = []
    for group, answers in {
        "all": "BADC",
        "all but one": "BADB",
        "always A": "AAAA",
        "silent": ["", "A", "D", "C"],
    }.items():
        for (reference, choices), answer in zip(rotations, answers, strict=True):
            kind = "easy" if group == "all" else "hard"
            cases.append((ask(f"{group}{len(cases)}", reference, choices, group=group, category=kind), answer))
    score = metric.score(graded(metric, cases))
    assert score.value == 25 and score.questions == 4, "four questions, not sixteen"
    assert score.parts == {"easy": 100, "hard": 0}
    plain = METRICS["choice"]().score(graded(metric, cases))
    assert plain.value == pytest.approx(100 * (4 + 3 + 1 + 3) / 16), "the same answers, each for itself"


# ------------------------------------------------------------------------------------------------------------------ MME


def pair(subtask, picture, answers, references=("Yes", "No")):
    return [
        (ask(f"{subtask}{picture}{n}", reference, (), category=subtask, group=str(picture)), answer)
        for n, (reference, answer) in enumerate(zip(references, answers, strict=True))
    ]


def test_mme_by_hand():
    metric = METRICS["mme"]()
    cases = pair("OCR", 1, ("Yes", "No")) + pair("OCR", 2, ("Yes", "Yes")) + pair("count", 1, ("yes", "hm"))
    cases += pair("code_reasoning", 1, ("No", "Yes.")) + pair("code_reasoning", 2, ("yes, it is", "no, it is not"))
    score = metric.score(graded(metric, cases))
    # OCR: 3 of 4 answers, 1 of 2 pictures; count: 1 of 2, 0 of 1; code: 2 of 4, 1 of 2.
    assert score.parts == {"perception": 175, "cognition": 100, "OCR": 125, "count": 50, "code_reasoning": 100}
    assert score.value == 275 and score.questions == 10
    assert score.low < 275 < score.high


def test_mme_as_published():
    """What MME's own tool printed for InternLM-XComposer (InternLM/InternLM-XComposer, eval_mm/mme/MME_Bench.md).

    `existence` has 30 pictures: two wrong answers at two of them are 58/60 + 28/30. `text_translation` has 20: both
    answers right at 9, one at 9, none at 2 are 27/40 + 9/20.
    """
    existence = [case for n in range(30) for case in pair("existence", n, ("Yes", "Yes" if n < 2 else "No"))]
    answers = [("Yes", "No")] * 9 + [("No", "No")] * 9 + [("No", "Yes")] * 2
    translation = [case for n, both in enumerate(answers) for case in pair("text_translation", n, both)]
    metric = METRICS["mme"]()
    parts = metric.score(graded(metric, existence + translation)).parts
    assert parts["existence"] == pytest.approx(190.0) and parts["text_translation"] == pytest.approx(112.5)
    whole = {
        "existence": 190.0, "count": 158.33333333333331, "position": 126.66666666666666, "color": 165.0,
        "posters": 161.9047619047619, "celebrity": 150.2941176470588, "scene": 159.75, "landmark": 165.25,
        "artwork": 126.25, "OCR": 125.0,
    }  # fmt: skip
    assert set(whole) == set(MME["perception"]) and sum(whole.values()) == pytest.approx(1528.4488795518207)


def test_all_of_mme_right_is_2800():
    cases = [case for tasks in MME.values() for task in tasks for case in pair(task, 0, ("Yes", "No"))]
    metric = METRICS["mme"]()
    score = metric.score(graded(metric, cases))
    assert (score.value, score.parts["perception"], score.parts["cognition"]) == (2800, 2000, 800)


def test_mme_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="'OCRs' is no subtask of MME; there are: existence, "):
        METRICS["mme"]().grade(ask(reference="Yes", category="OCRs"), "yes", None)
    with pytest.raises(ValueError, match="q: the reference 'maybe' is neither yes nor no"):
        METRICS["mme"]().grade(ask(reference="maybe", category="OCR"), "yes", None)


# ------------------------------------------------------------------------------------------------------- HallusionBench


def test_hallusion_by_hand():
    def one(group, figure, question, right):
        extra = {"figure": figure, "question": question}
        category = group.split("_")[0]
        name = f"{group}{figure}{question}"
        return ask(name, "Yes", (), group=group, category=category, extra=extra), "yes" if right else "no"

    cases = [
        one("VD_chart_0", 0, 0, True), one("VD_chart_0", 0, 1, True),
        one("VD_chart_0", 1, 0, True), one("VD_chart_0", 1, 1, False),
        one("VS_map_0", 0, 0, True), one("VS_map_0", 1, 0, True),
        one("VS_map_1", 0, 0, False),
    ]  # fmt: skip
    metric = METRICS["hallusion"]()
    score = metric.score(graded(metric, cases))
    # Answers: 5 of 7. Figures: 0 and not 1 of the chart, both of map 0, not of map 1: 3 of 5.
    # Questions: 0 and not 1 of the chart, the one of map 0, not that of map 1: 2 of 4.
    three = (500 / 7, 60, 50)
    assert [score.parts[name] for name in ("aAcc", "fAcc", "qAcc")] == pytest.approx(three)
    assert score.value == pytest.approx(sum(three) / 3) and score.questions == 7
    assert score.parts["VD"] == pytest.approx((75 + 50 + 50) / 3) and score.low <= score.value <= score.high


def test_hallusion_wants_to_know_which_figure():
    with pytest.raises(ValueError, match="q: extra has no figure and no question"):
        METRICS["hallusion"]().grade(ask(reference="Yes"), "yes", None)
