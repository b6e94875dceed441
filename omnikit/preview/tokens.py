"""Tokens as the pieces of text that they stand for, and text that shows what it holds."""

import re
from collections.abc import Sequence
from html import escape

from omnikit.sample import Tokenizer

HELD = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for a part of a character."""
LONGEST = 16
"""Tokens that are waited for until a character is whole: no one is cut into more."""
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def specials(tokenizer: Tokenizer) -> dict[int, str]:
    """The special tokens by id."""
    return {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to what stands before it; joined they are the text of all.

    None of `ids` is special. A character that several tokens make stands at the last of them, and the others are
    empty: what a token adds is found by decoding it behind the tokens before it, since decoders drop a leading space.
    """
    found: list[str] = []
    before, begin = 0, 0
    for end in range(1, len(ids) + 1):
        whole = tokenizer.decode(list(ids[before:end]))
        if whole.endswith(HELD) and end < len(ids) and end - begin < LONGEST:
            found.append("")
            continue
        found.append(whole[len(tokenizer.decode(list(ids[before:begin]))) :])
        before, begin = begin, end
    return found


def visible(text: str) -> str:
    """The text for a page, escaped; what has no shape or would turn its neighbours round is shown by its number."""
    return escape(_UNSEEN.sub(_shown, text))


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if found[0] == "\n":
        return "↵\n"
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"
