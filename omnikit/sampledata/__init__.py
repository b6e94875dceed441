"""A small world to learn from: pictures, clips, speech and texts, made from nothing but a seed.

`omnikit data sample` calls `make_sample_data`. Read in this order: words (what can be said), scenes (what can be
shown), texts and plan (the records), pictures, clips and speech (the media), render and make (the folder).
"""

from .make import make_sample_data
from .speech import NEW_VOICES, TRAIN_VOICES
from .words import ANSWERS, HELDOUT_PAIRS, SPOKEN_WORDS, WORDS

__all__ = ["ANSWERS", "HELDOUT_PAIRS", "NEW_VOICES", "SPOKEN_WORDS", "TRAIN_VOICES", "WORDS", "make_sample_data"]
