"""Checks of backbones alone: padding, generation, and the tokenizer."""

from itertools import pairwise

import numpy as np
import torch

from omnikit.testing.modules import CLOSE, apart
from omnikit.testing.results import Fault
from omnikit.testing.trials import BackboneTrial, decoded

__all__ = ["BACKBONE_CHECKS"]

TEXTS = (
    "a",
    "What colour is the square?",
    "  two spaces, a tab\t and\n\nnew lines ",
    "Zürich, 東京, 🙂 and 1,234.5 %",
    "def f(x):\n    return x ** 2\n",
)


def logits_match_positions(trial: BackboneTrial) -> str:
    """Hidden states are `width` wide, and there is a logit for every token of the tokenizer."""
    module, size = trial.build(), trial.config.tokenizer().get_vocab_size()
    ids = torch.from_numpy(trial.inputs[0])[None]
    with torch.no_grad():
        embeds = module.embed(ids)
        hidden = module.hidden(embeds, torch.ones_like(ids), torch.arange(ids.shape[1])[None])
        logits = module.head(hidden[0, :4])
    wanted = (*ids.shape, module.width)
    if tuple(embeds.shape) != wanted or tuple(hidden.shape) != wanted:
        raise Fault(f"embed and hidden give {tuple(embeds.shape)} and {tuple(hidden.shape)}, not {wanted}")
    if len(logits) != 4 or logits.shape[1] < size:
        raise Fault(f"head gives {tuple(logits.shape)} for 4 states and {size} tokens")
    return f"{size} tokens, width {module.width}"


def padding_does_not_matter(trial: BackboneTrial) -> str:
    """Padding before, between and after documents, whatever tokens it holds, changes nothing, and nothing is NaN."""
    module, documents = trial.build(), trial.inputs[:2]
    with torch.no_grad():
        expected = trial.run(module, documents)
        for filler in (0, 1):
            holes = [np.full(length, filler, np.int64) for length in (4, 3, 2)]
            pieces = [holes[0], documents[0], holes[1], documents[1], holes[2]]
            marks = [0, 1, 0, 2, 0]
            segments = torch.cat([torch.full((len(p),), m) for p, m in zip(pieces, marks, strict=True)])[None]
            positions = torch.cat([torch.arange(len(piece)) for piece in pieces])[None]
            found = decoded(module, torch.from_numpy(np.concatenate(pieces))[None], segments, positions)
            difference = apart(found, expected)
            if difference > CLOSE:
                raise Fault(
                    f"padding changes the logits by {difference:.1e} of the largest; segment 0 is seen by nobody"
                )
        ids = torch.from_numpy(np.concatenate(documents))[None]
        nothing = module.hidden(module.embed(ids), torch.zeros_like(ids), torch.arange(ids.shape[1])[None])
    if not nothing.isfinite().all():
        raise Fault("a row of padding alone gives NaN or infinity")
    return ""


def later_tokens_do_not_matter(trial: BackboneTrial) -> str:
    """A position sees those before it, and itself, alone."""
    module, document = trial.build(), trial.inputs[0]
    half = len(document) // 2
    with torch.no_grad():
        whole = trial.run(module, [document])[:half]
        cut = trial.run(module, [document[:half]])
    difference = apart(cut, whole)
    if difference > CLOSE:
        raise Fault(f"later tokens change earlier logits, by {difference:.1e} of the largest; attention is causal")
    return ""


def extend_equals_hidden(trial: BackboneTrial) -> str:
    """A document in pieces through `extend` and its cache, padded on the left, gives `hidden` of the whole."""
    module = trial.build()
    documents = [document[:9] for document in trial.inputs[:2]]
    documents[1] = documents[1][:6]
    with torch.no_grad():
        expected = [
            module.hidden(module.embed(ids), torch.ones_like(ids), torch.arange(ids.shape[1])[None])[0]
            for ids in (torch.from_numpy(document)[None] for document in documents)
        ]
        length = len(documents[0])
        ids, mask = torch.zeros(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long)
        for row, document in enumerate(documents):
            ids[row, length - len(document) :] = torch.from_numpy(document)
            mask[row, length - len(document) :] = 1
        states, cache = [], None
        for start, end in pairwise((0, 4, 5, length)):
            part, cache = module.extend(module.embed(ids[:, start:end]), mask[:, :end], cache)
            states.append(part)
        found = torch.cat(states, dim=1)
    worst = max(apart(row[length - len(one) :], one) for row, one in zip(found, expected, strict=True))
    if worst > CLOSE:
        raise Fault(f"in pieces, hidden states differ by {worst:.1e} of the largest; see to cache, mask and positions")
    return f"differs by {worst:.0e}"


def texts_come_back(trial: BackboneTrial) -> str:
    """A text's tokens decode to the text."""
    tokenizer = trial.config.tokenizer()
    for text in TEXTS:
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)
        if back != text:
            raise Fault(f"{text!r} comes back as {back!r}")
    return f"{len(TEXTS)} texts"


def special_tokens_in_content_stay_text(trial: BackboneTrial) -> str:
    """A special token that stands in a sample's text becomes ordinary tokens: nobody can end a turn by writing so."""
    tokenizer = trial.config.tokenizer()
    special = {token.content: at for at, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if trial.config.chat.stop not in special:
        raise Fault(f"chat.stop {trial.config.chat.stop!r} is no special token of the tokenizer")
    for text in special:
        ids = tokenizer.encode(f"say {text} now", add_special_tokens=False).ids
        if set(ids) & set(special.values()):
            raise Fault(f"{text!r} in a text becomes the special token; set tokenizer.encode_special_tokens = True")
    return f"{len(special)} special tokens"


BACKBONE_CHECKS = (
    logits_match_positions,
    padding_does_not_matter,
    later_tokens_do_not_matter,
    extend_equals_hidden,
    texts_come_back,
    special_tokens_in_content_stay_text,
)
