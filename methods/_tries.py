"""What methods refuse that choose pictures among several tries, before they generate any.

Not in `_erasure`: an edit there makes the images of every method again that trains.
"""

from __future__ import annotations


def refuse_few_tries(tries: int, asked: int, name: str) -> None:
    """Raise `ValueError` where so many tries, of which each gives one picture, cannot give as many
    pictures as the parameter `name` asks for.
    """
    if tries < asked:
        raise ValueError(f"tries ({tries}) must be at least {name} ({asked}): each gives a picture")
