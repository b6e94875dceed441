"""What judges are asked. In our words, after the protocols that the metrics name; a definition may give others.

In a prompt {question}, {reference}, {answer} and what else a metric says are filled in.
"""

import re
from collections.abc import Mapping

YES_NO = """\
You grade answers to questions about videos. Decide whether the predicted answer means the same as the correct \
answer; synonyms and other wordings of the same thing match.

Question: {question}
Correct answer: {reference}
Predicted answer: {answer}

Reply with one JSON object and nothing else, like {"pred": "yes", "score": 4}: "pred" is "yes" if the predicted \
answer is right and "no" if it is not, "score" is an integer from 0 (no match) to 5 (full match).
"""

MMVET = """\
Grade a prediction by its ground truth, from 0.0 (all wrong) in steps of 0.1 to 1.0 (all right). Where the ground \
truth joins elements by <AND>, all of them must be in the prediction, and each that is missing costs its share; where\
 it joins them by <OR>, any one suffices. Reply with the correctness alone: one number.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
Which fruits are on the table? | apple <AND> pear | There is a banana. | 0.0
Which fruits are on the table? | apple <AND> pear | I can see an apple. | 0.5
Which fruits are on the table? | apple <AND> pear | an apple or a plum | 0.5
Which fruits are on the table? | apple <AND> pear | A pear lies beside an apple. | 1.0
What does the sign say? | STOP <OR> HALT | It says halt. | 1.0
Why is the picture funny? | A cat sits at a desk and looks at a screen with charts as if it worked in an office, \
while the caption complains of Mondays. | A cat is sitting at a desk. | 0.3
Why is the picture funny? | A cat sits at a desk and looks at a screen with charts as if it worked in an office, \
while the caption complains of Mondays. | The cat acts like a tired office worker studying its charts, and the \
caption says what such a worker would say of a Monday. | 1.0
{question} | {reference} | {answer} | """

MATHVISTA = """\
Find the final answer in a response to a question, and reply with that answer alone, in the form that the hint asks \
for: a number without its unit, a list in brackets, or the letter of a choice. Reply with nothing at all if the \
response gives no answer.

Hint: Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.
Question: How many more balls are red than blue?
Response: There are 9 red and 4 blue balls, so 5 more are red.
Answer: 5

Hint: Please answer the question requiring a floating-point number with two decimal places and provide the final \
value, e.g., 1.23, 1.34, 1.45, at the end.
Question: What do two pens and a ruler cost? (Unit: $)
Response: Two pens are $1.10 and the ruler is $0.85, together $1.95.
Answer: 1.95

Hint: Please answer the question requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], \
[1.2, 1.3, 1.4], at the end.
Question: In which two years were sales lowest?
Response: Sales were lowest in 2011 and in 2014.
Answer: [2011, 2014]

Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.
Question: Which part of the bar is shaded? Choices: (A) 1/4 (B) 1/3 (C) 1/2
Response: Two of the six equal pieces are shaded, which makes one third.
Answer: B

{question}
Response: {answer}
Answer: """

AIR_BENCH = """\
Two assistants answered a question about a sound recording, of which you are given a detailed description. Rate how \
helpful, relevant, accurate and complete each answer is, from 1 to 10, higher being better. Do not let the order of \
the answers sway you.

[Description of the recording]
{audio}
[Question]
{question}
[Answer of assistant 1]
{first}
[Answer of assistant 2]
{second}
[End]

Reply with one line of just two whole numbers, the ratings of assistant 1 and assistant 2, with a space between them.
"""

_PLACE = re.compile(r"\{(\w+)\}")


def filled(prompt: str, values: Mapping[str, str]) -> str:
    """The prompt with the values in their places, in one pass: braces within a value stay what they are."""
    return _PLACE.sub(lambda match: values.get(match[1], match[0]), prompt)


def checked(prompt: str, places: tuple[str, ...]) -> str:
    """The prompt, if it has all these places; otherwise a ValueError."""
    missing = set(places) - set(_PLACE.findall(prompt))
    if missing:
        raise ValueError(f"the judge's prompt lacks {', '.join(f'{{{name}}}' for name in sorted(missing))}")
    return prompt
