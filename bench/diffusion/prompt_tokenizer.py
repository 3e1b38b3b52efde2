"""A tokenizer that knows the words of textual inversions, and in how many chunks prompts are read.

It is mixed into the tokenizer's own class, so that whoever turns prompts into tokens on their own
sees those that the text encoder reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


class PromptTokenizer:
    """A tokenizer of transformers that reads a word of several vectors as all of its tokens.

    A word is found as the tokenizer finds it: in upper and lower case, and where it begins and ends
    with letters or digits not inside of another word. `chunks` says how many times
    `model_max_length` tokens of a prompt are read (`bench.diffusion.text`); what the tokenizer
    itself gives is one row as ever.
    """

    several: dict[str, str]  # by word in lower case: all of its tokens
    chunks: int

    def __call__(self, text: Any = None, *args: Any, **more: Any) -> Any:
        return super().__call__(self.expanded(text), *args, **more)  # type: ignore[misc]

    def encode(self, text: Any, *args: Any, **more: Any) -> Any:
        return super().encode(self.expanded(text), *args, **more)  # type: ignore[misc]

    def tokenize(self, text: Any, *args: Any, **more: Any) -> Any:
        return super().tokenize(self.expanded(text), *args, **more)  # type: ignore[misc]

    def expanded(self, text: Any) -> Any:
        """A text, or a list of them, with every word as all of its tokens. What is expanded already
        stays as it is.
        """
        if isinstance(text, (list, tuple)):
            return [self.expanded(one) for one in text]
        if not isinstance(text, str) or not self.several:
            return text
        # `re` takes a few letters for others that they are not in lower case (the long s for s).
        # The tokenizer does not, so such a text stays as it is.
        return pattern_of(self.several).sub(
            lambda found: self.several.get(found["word"].lower(), found[0]), text
        )


def as_prompt_tokenizer(tokenizer: Any) -> Any:
    """The same tokenizer, as one that knows words and chunks: none, and one, unless it is one
    already.
    """
    if not isinstance(tokenizer, PromptTokenizer):
        own = type(tokenizer)
        tokenizer.__class__ = type(own.__name__, (PromptTokenizer, own), {})
        tokenizer.several = {}
        tokenizer.chunks = 1
    return tokenizer


def pattern_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds each of some words, one at least, as `word`, with those of its further tokens that
    follow it.
    """
    either = "|".join(_bounded(word) for word in sorted(words, key=len, reverse=True))
    return re.compile(rf"(?P<word>{either})(?!_\d)(?:\s+(?P=word)_\d+)*", re.IGNORECASE)


def has_word(text: str, word: str) -> bool:
    """Whether the tokenizer that knows a word finds it in a text."""
    found = pattern_of([word]).finditer(text)
    return any(one["word"].lower() == word.lower() for one in found)


def is_word(token: str) -> bool:
    """Whether a token begins and ends with a letter, digit or underscore."""
    return bool(re.fullmatch(r"\w(.*\w)?", token))


def _bounded(token: str) -> str:
    escaped = re.escape(token)
    return rf"(?<!\w){escaped}(?!\w)" if is_word(token) else escaped
