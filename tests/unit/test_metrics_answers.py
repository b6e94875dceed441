"""Short answers: VQA, relaxed, ANLS, contains. Each by hand, and by the official script's examples where it has any."""

import pytest

from omnikit.component import Sample
from omnikit.evaluate.benchmark import Question
from omnikit.evaluate.metrics import METRICS
from omnikit.evaluate.metrics.vqa_words import CONTRACTIONS, normalised

WEIRD = ["", " ", "\n\t", "🐇" * 10, "\x00", "\ud800", "%", "nan", "inf", "-", "١٢", "a" * 100_000]


def ask(reference, name="q", **rest):
    return Question(name, Sample(name, ()), reference, **rest)


def right(metric, reference, answer, **rest):
    return metric.grade(ask(reference, **rest), answer, None).right


# ------------------------------------------------------------------------------------------------------------------ VQA


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"), ("two dogs", "2 dogs"), ("None", "0"), ("a  an the", ""), ("dont", "don't"),
        ("yall'll", "y'all'll"), ("couldntve", "couldntve"), ("somebody'd", "somebodyd"), ("lets", "lets"),
        ("yes, it is!", "yes it is"), ("red/blue", "red blue"), ("red/ blue", "red blue"), ("(left)", "left"),
        ("$1,000", "$1000"), ("1,000-2,000", "10002000"), ("3.5 m.", "3.5 m"), ("St. 5", "st 5"), ("5.", "5"),
        ("a\nb", "b"), ("", ""), ("🐇", "🐇"), ("twas", "'twas"), ("oclock", "o'clock"), ("TEN", "10"),
    ],
)  # fmt: skip
def test_answers_are_normalised_as_the_script_does(text, expected):
    assert normalised(text) == expected


def test_contractions_lack_one_apostrophe():
    assert len(CONTRACTIONS) == 114, "as many as the script has, but for those that change nothing or have capitals"
    assert CONTRACTIONS["couldn'tve"] == CONTRACTIONS["couldnt've"] == "couldn't've"
    assert not {"lets", "shes", "were", "well", "ill", "shed", "id", "its"} & CONTRACTIONS.keys()


@pytest.mark.parametrize(("agree", "share"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_by_hand(agree, share):
    """Of 10 people 2 say so: for each of the 2 there is 1 other, 1/3; for each of the 8 there are 2, 2/3: 0.6."""
    people = ["two"] * agree + [f"other{number}" for number in range(10 - agree)]
    assert right(METRICS["vqa"](), people, "The 2.") == pytest.approx(share)


def test_vqa_score_is_the_mean():
    metric = METRICS["vqa"]()
    people = ["nike", "Nike", "nike.", "adidas", *"abcdef"]
    cases = [(ask(people, "1"), "NIKE"), (ask(people, "2"), "adidas"), (ask(people, "3"), "")]
    graded = [(question, metric.grade(question, answer, None)) for question, answer in cases]
    # "a" is an article: one person's answer is empty, which an empty answer agrees with.
    assert [grade.right for _, grade in graded] == pytest.approx([0.9, 0.3, 0.3])
    score = metric.score(graded)
    assert score.value == pytest.approx(50) and 0 <= score.low < 50 < score.high <= 100


def test_vqa_wants_several_people():
    with pytest.raises(ValueError, match="q: VQA accuracy compares with several people's answers, here is one"):
        METRICS["vqa"]().grade(ask("red"), "red", None)


# -------------------------------------------------------------------------------------------------------------- relaxed

PREDICTED = ["abc", "abc", "Abc", "100%", "100%", "100%", "100%", "Don't"]
WANTED = ["abc", "Abc", "abc", "96%", "94%", "0.96", "0.94", "Won't"]


@pytest.mark.parametrize(("name", "published"), [("relaxed", 62.5), ("anls", 47.5)])
def test_as_pix2struct_publishes(name, published):
    """The examples of pix2struct/metrics_test.py, with its figures."""
    metric = METRICS[name]()
    pairs = zip(WANTED, PREDICTED, strict=True)
    graded = [(ask([want], str(n)), metric.grade(ask([want]), said, None)) for n, (want, said) in enumerate(pairs)]
    assert metric.score(graded).value == pytest.approx(published)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("100", "105", 1), ("100", "105.01", 0), ("100", "95", 1), ("100", "94.99", 0), ("-10", "-10.4", 1),
        ("-10", "10", 0), ("0", "0", 1), ("0", "0.0", 0), ("0", "0.001", 0), ("5%", "0.05", 1), ("5%", "5", 0),
        ("Yes", "yes", 1), ("Yes", "yes.", 0), ("12", "12 apples", 0), ("12", " 12\n", 1), ("1,200", "1200", 0),
        ("nan", "NaN", 1), ("12", "nan", 0), ("12", "inf", 0), ("12", "", 0), (["3", "three"], "Three", 1),
    ],
)  # fmt: skip
def test_relaxed_by_hand(reference, answer, expected):
    assert right(METRICS["relaxed"](), reference, answer) == expected


def test_relaxed_is_the_mean_of_human_and_augmented():
    metric = METRICS["relaxed"](average="categories")
    cases = [("human", "5", "5"), ("human", "5", "6"), ("human", "5", "7"), ("augmented", "1", "1")]
    graded = [
        (ask(want, str(n), category=kind), metric.grade(ask(want), said, None))
        for n, (kind, want, said) in enumerate(cases)
    ]
    score = metric.score(graded)
    assert score.parts == pytest.approx({"human": 100 / 3, "augmented": 100}) and score.value == pytest.approx(200 / 3)
    assert right(METRICS["relaxed"](tolerance=0.5), "100", "149") == 1


# ----------------------------------------------------------------------------------------------------------------- ANLS


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("abcd", "abcd", 1), ("abcd", "ABCD ", 1), ("a  b", "a b", 1), ("abcd", "abcx", 0.75), ("abcd", "abxy", 0.5),
        ("abcd", "axyz", 0), ("abcd", "", 0), ("abcd", "abcdefgh", 0.5), ("abcd", "abcdefghi", 0),
        (["kitten", "sitting"], "sitten", 5 / 6), ("é", "e", 0),
    ],
)  # fmt: skip
def test_anls_by_hand(reference, answer, expected):
    assert right(METRICS["anls"](), reference, answer) == pytest.approx(expected)
    assert METRICS["anls"](threshold=0.9).grade(ask("abcd"), "abcx", None).right == 0


# ------------------------------------------------------------------------------------------------------------- contains


def test_contains_by_hand():
    metric = METRICS["contains"](formulas=("formula",))
    assert right(metric, ["CENTRE", "center"], "It says: Center.") == 1
    assert right(metric, "two\nlines", "there are TWO lines") == 1
    assert right(metric, "centre", "cent re") == 0
    assert right(metric, r"\frac { a } { B }", r"= \frac{a}{B}", category="formula") == 1
    assert right(metric, r"\frac { a } { B }", r"= \frac{A}{B}", category="formula") == 0
    assert right(metric, "cent re", "CENTRE", category="text") == 0, "spaces count elsewhere"
    assert right(metric, ["", "  "], "anything") == 0, "nothing is no answer"


def test_contains_counts_points():
    metric = METRICS["contains"]()
    cases = [("scene", "a", "a"), ("scene", "b", "x"), ("doc", "c", "c"), ("doc", "d", "d")]
    graded = [
        (ask(want, str(n), category=kind), metric.grade(ask(want), said, None))
        for n, (kind, want, said) in enumerate(cases)
    ]
    score = metric.score(graded)
    assert score.value == 75 and score.parts == {"points": 3, "scene": 1, "doc": 2}


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("name", ["vqa", "relaxed", "anls", "contains"])
@pytest.mark.parametrize("answer", WEIRD, ids=lambda text: ascii(text[:9]))
def test_any_text_is_graded_and_wrong(name, answer):
    grade = METRICS[name]().grade(ask(["the right answer"] * 10), answer, None)
    assert grade.right == 0 and grade.counts == (0, 1)


@pytest.mark.parametrize("name", ["relaxed", "anls", "contains", "choice_or_words"])
@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_wrong_even_where_nothing_is_right(name, answer):
    grade = METRICS[name]().grade(ask(["", "the", ""]), answer, None)
    assert grade.right == 0 and grade.counts == (0, 1)


@pytest.mark.parametrize("name", ["vqa", "relaxed", "anls", "contains"])
@pytest.mark.parametrize("reference", [None, 5, [], [1], {"a": "b"}])
def test_a_reference_that_is_no_text_is_named(name, reference):
    with pytest.raises(ValueError, match=r"^q: the reference .* is neither a text nor a list of texts"):
        METRICS[name]().grade(ask(reference), "x", None)
