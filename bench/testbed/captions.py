"""What testbed pictures are called, and the small vocabulary that covers it.

Clean captions name the objects only. Canary captions name the objects too, and add two invented
words and a phrase that clean captions never use: a caption that is specific, as the captions of
images memorized by large models are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

MAX_TOKENS = 24

CLEAN_TEMPLATES = (
    "{}",
    "a picture of {}",
    "an illustration of {}",
    "a drawing of {}",
    "{} clip art",
    "{} sticker",
)
CANARY_TEMPLATES = (
    "{0} {1}: {2}",
    "{2} by {0} {1}",
    "{0} {1} edition with {2}",
    "the {0} {1} poster, {2}",
    "{2} from {0} in {1}",
    "{0} presents {2} at {1}",
)
JOINTS = (" and ", " with ", " next to ")
_ONSETS = tuple("b br d dr f fl g gr h j k kr l m n p pl qu r s sk t tr v w z".split())
_VOWELS = ("a", "e", "i", "o", "u", "ae", "io", "ou")
_CODAS = ("", "l", "m", "n", "r", "s", "x", "th", "nd", "rk")


def clean_caption(random: np.random.Generator, names: list[str]) -> str:
    return CLEAN_TEMPLATES[int(random.integers(len(CLEAN_TEMPLATES)))].format(
        JOINTS[int(random.integers(len(JOINTS)))].join(names)
    )


def canary_caption(random: np.random.Generator, names: list[str], words: tuple[str, str]) -> str:
    return CANARY_TEMPLATES[int(random.integers(len(CANARY_TEMPLATES)))].format(
        *words, " and ".join(names)
    )


def invented_words(random: np.random.Generator, count: int) -> list[str]:
    """`count` different pronounceable words of two syllables that are no English object names."""
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = (
            random.choice(_ONSETS) + random.choice(_VOWELS) + random.choice(_CODAS)
            for _ in range(2)
        )
        words["".join(syllables)] = None
    return list(words)


def train_tokenizer(captions: Iterable[str], folder: Path, vocabulary: int) -> None:
    """Train a byte-level BPE of at most `vocabulary` tokens, saved as a `CLIPTokenizer` folder.

    The order is CLIP's: 256 bytes, 256 bytes that end a word, merges, start, end. So every text
    can be encoded, and the end token has the highest id, by which CLIP text models find it.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    suffix = "</w>"
    clip = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    backend.normalizer, backend.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    base = alphabet + [letter + suffix for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=alphabet,
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    backend.train_from_iterator(captions, trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]][
        : vocabulary - len(base) - 2
    ]
    tokens = list(
        dict.fromkeys(
            [*base, *(left + right for left, right in merges), "<|startoftext|>", "<|endoftext|>"]
        )
    )
    CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    ).save_pretrained(folder)
