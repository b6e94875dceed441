"""Error rates and BLEU: by hand, and as Whisper's and sacrebleu's own examples have it."""

# ruff: noqa: RUF001  (full-width forms are what is tested)

import pytest
import sacrebleu

from omnikit.component import Sample
from omnikit.evaluate.benchmark import Question
from omnikit.evaluate.metrics import METRICS

ENGLISH = METRICS["wer"](language="en")
CHINESE = METRICS["cer"]()


def ask(reference, name="q", **rest):
    return Question(name, Sample(name, ()), reference, **rest)


def counts(metric, reference, answer):
    return metric.grade(ask(reference), answer, None).counts


def scored(metric, cases):
    """The score of (category, reference, answer) triples."""
    questions = [(ask(reference, str(n), category=kind), answer) for n, (kind, reference, answer) in enumerate(cases)]
    return metric.score([(question, metric.grade(question, answer, None)) for question, answer in questions])


# ---------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("reference", "answer", "errors", "words"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 0, 6),
        ("the cat sat on the mat", "the cat sit on mat", 2, 6),  # one other, one missing
        ("the cat", "the black cat sat", 2, 2),  # two added
        ("the cat", "", 2, 2),
        ("The cat, sat!", "the cat sat", 0, 3),
        ("uh the cat", "the cat", 0, 2),  # Whisper's normaliser drops hesitations
        ("!?", "the cat", 2, 0),
        ("!?", "", 0, 0),
    ],
)
def test_word_errors_by_hand(reference, answer, errors, words):
    assert counts(ENGLISH, reference, answer) == (errors, words)


@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("two point five million", "2500000"), ("nineteen ninety nine", "1999"), ("thirty first", "31st"),
        ("Let's", "let us"), ("he's like", "he is like"), ("mobilisation", "mobilization"), ("10km", "10 km"),
        ("Mr. Park visited Assoc. Prof. Kim Jr.", "mister park visited associate professor kim junior"),
        ("two dollars and seventy cents", "$2.70"),
    ],
)  # fmt: skip
def test_whispers_own_examples_are_no_errors(spoken, written):
    """Of openai/whisper, tests/test_normalizer.py."""
    assert counts(ENGLISH, spoken, written)[0] == counts(ENGLISH, written, spoken)[0] == 0


def test_other_languages_are_normalised_plainly():
    german = METRICS["wer"](language="de")
    assert counts(german, "Die Straße ist [lacht] gut.", "die straße ist gut") == (0, 4)
    assert counts(german, "zwei Farben", "2 farben") == (1, 2), "numbers are the English normaliser's alone"
    assert counts(german, "colour", "color") == (1, 1)


def test_the_rate_is_of_all_words_not_a_mean_of_rates():
    cases = [("", "one word two words three more", "one word two words three more"), ("", "yes", "no"), ("", "a b", "")]
    score = scored(ENGLISH, cases)
    assert score.value == pytest.approx(100 * 3 / 9) and score.questions == 3
    assert score.low <= score.value <= score.high and ENGLISH.better == "lower"


def test_a_rate_may_pass_100():
    score = scored(ENGLISH, [("", "cat", "the big black cat and the other one")])
    assert score.value == 700 and ENGLISH.grade(ask("cat"), "the big black cat and more", None).right == 0


def test_rates_by_dialect_and_their_mean():
    cases = [("beijing", "今天天气", "今天天汽"), ("beijing", "好", "好"), ("jilu", "是", "不")]
    score = scored(METRICS["cer"](average="categories"), cases)
    assert score.parts == pytest.approx({"beijing": 20, "jilu": 100}) and score.value == pytest.approx(60)
    assert scored(CHINESE, cases).value == pytest.approx(100 * 2 / 6)


def test_references_without_words_give_no_rate():
    with pytest.raises(ValueError, match=r"the references of 'b' hold no words that could be counted"):
        scored(CHINESE, [("a", "是", "是"), ("b", "。", "是")])
    with pytest.raises(ValueError, match=r"the references hold no words that could be counted"):
        scored(ENGLISH, [("", "", "")])


# ----------------------------------------------------------------------------------------------------------- characters


@pytest.mark.parametrize(
    ("reference", "answer", "errors", "characters"),
    [
        ("今天天气很好", "今天天气很好", 0, 6),
        ("今天天气，很好。", "今 天 天 汽 很 好", 1, 6),  # punctuation and spaces go
        ("今天", "今天天气", 2, 2),
        ("今天天气", "今天", 2, 4),
        ("今天天气", "", 4, 4),
        ("ＡＢＣ１２３", "abc123", 0, 6),  # full width is narrow
        ("二零二四年", "2024年", 4, 5),  # digits stay as written
        ("用ＧＰＵ。", "用gpu", 0, 4),
        ("漢語", "汉语", 2, 2),
        ("百分之五％", "百分之五", 0, 4),
        ("\u200b今\ufeff天\x00", "今天", 0, 2),
        ("𠀀好", "好", 1, 2),  # a character beyond 16 bits is one
    ],
)
def test_character_errors_by_hand(reference, answer, errors, characters):
    assert counts(CHINESE, reference, answer) == (errors, characters)


def test_the_mixed_rate_counts_latin_words_as_one():
    mixed = METRICS["cer"](latin_words=True)
    assert counts(mixed, "打开 Wi-Fi 和 GPS", "打开wife和gps") == (2, 6)  # 打 开 wi fi 和 gps; wi wrong, fi missing
    assert counts(CHINESE, "打开 Wi-Fi 和 GPS", "打开wife和gps") == (1, 10)
    assert counts(mixed, "第3集〇", "第3集〇") == (0, 4)


@pytest.mark.parametrize("metric", [ENGLISH, CHINESE], ids=["wer", "cer"])
@pytest.mark.parametrize(
    "answer", ["", "🐇", "\ud800", "<|endoftext|>", "字 " * 20_000], ids=lambda text: ascii(text[:6])
)
def test_any_text_is_graded(metric, answer):
    grade = metric.grade(ask("今天 天气"), answer, None)
    errors, length = grade.counts
    assert length in (2, 4) and errors >= length - 1 and 0 <= grade.right < 1


@pytest.mark.parametrize("answer", ["1" * 5000, "$0." + "9" * 5000, "2" * 100_000 + "nd", "one " * 5000])
def test_a_number_without_end_is_graded(answer):
    """Whisper's normaliser alone dies of the first two."""
    errors, words = counts(ENGLISH, "hello", answer)
    assert words == 1 and errors >= 1


@pytest.mark.parametrize("name", ["wer", "cer"])
def test_a_reference_that_is_no_text_is_named(name):
    metric = METRICS[name](**({"language": "en"} if name == "wer" else {}))
    with pytest.raises(ValueError, match=r"^q: the reference \['a'\] is no text"):
        metric.grade(ask(["a"]), "a", None)


# ----------------------------------------------------------------------------------------------------------------- BLEU

ANSWERS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
]


def test_bleu_as_sacrebleu_publishes():
    """The example of sacrebleu's README: BLEU = 48.53."""
    metric = METRICS["bleu"](tokenize="13a")
    graded = [
        (ask(reference, str(n)), metric.grade(ask(reference), answer, None))
        for n, (answer, reference) in enumerate(zip(ANSWERS, REFERENCES, strict=True))
    ]
    score = metric.score(graded)
    assert score.value == pytest.approx(48.53, abs=0.005) and score.low <= score.value <= score.high
    assert graded[0][1].right == pytest.approx(1) and graded[0][1].counts[:2] == (6, 6)


@pytest.mark.parametrize(
    ("tokenize", "answers", "references"),
    [
        ("zh", ["今天天气很好。", "他在 GPU 上跑", ""], ["今天的天气很好。", "他在GPU上运行。", "没有。"]),
        ("13a", ["the cat sat on the mat", "no", "ok then"], ["the cat is on the mat", "yes", "well then"]),
        ("13a", ["", ""], ["one", "two"]),
    ],
)
def test_bleu_is_sacrebleus_corpus_score(tokenize, answers, references):
    metric = METRICS["bleu"](tokenize=tokenize)
    score = scored(metric, [("", want, said) for want, said in zip(references, answers, strict=True)])
    assert score.value == pytest.approx(sacrebleu.corpus_bleu(answers, [references], tokenize=tokenize).score)


def test_bleu_by_hand():
    metric = METRICS["bleu"](tokenize="13a")
    score = scored(metric, [("", "a b c d e", "a b c d")])
    # Every n-gram is right, and the answer is 4 words of 5: exp(1 - 5/4).
    assert score.value == pytest.approx(100 * 2.718281828 ** (-0.25))


@pytest.mark.parametrize("reference", [None, 5, [], [1], ["a", None], {"a": "b"}])
def test_bleu_wants_a_reference(reference):
    with pytest.raises(ValueError, match=r"^q: the reference .* is neither a text nor a list"):
        METRICS["bleu"](tokenize="zh").grade(ask(reference), "a", None)
