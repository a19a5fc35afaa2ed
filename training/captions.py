"""What can be said about a picture, and which sentences are true of which pictures."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


ORDINARY, SMALL, BIG = 0, 1, 2
UNSAID = -1
EMPTY = -1  # in place of a word: nothing on the background
TEMPLATES = ("{}", "{}", "a {}", "a photo of a {}", "a photo of a {}", "a picture of a {}", "the {}")
EMPTY_TEXTS = ("background", "nothing", "an empty background", "a photo of nothing", "empty")
SIZE_WORDS = {SMALL: ("small", "little"), BIG: ("big", "large")}
COLOUR_SHARE = 0.5  # of the captions of a word that comes in several colours
SIZE_SHARE = 0.3  # of the captions of small and big objects


class Fact(NamedTuple):
    """What is on a picture, or what a caption says of it. −1 leaves the colour or the size unsaid."""

    word: int
    colour: int
    scale: int


NOTHING = Fact(EMPTY, UNSAID, ORDINARY)


@dataclass(frozen=True)
class Vocabulary:
    """The words, and how they become captions.

    Args:
        words (`list[str]`): what [`Fact.word`] counts.
        colours (`list[str]`): what [`Fact.colour`] counts.
        pairs (`list[tuple[str, str]]`): the words that come in several colours, with each of them.
        whole_captions (`bool`): the words are captions already, to be used as they are.
    """

    words: list[str]
    colours: list[str]
    pairs: list[tuple[str, str]]
    whole_captions: bool = False

    def describe(self, fact: Fact, rng: np.random.Generator) -> tuple[str, Fact]:
        """A caption that is true of a picture, and what it says."""
        if fact.word == EMPTY:
            return str(rng.choice(EMPTY_TEXTS)), NOTHING._replace(scale=UNSAID)
        noun, said = self.words[fact.word], Fact(fact.word, UNSAID, UNSAID)
        if self.whole_captions:
            return noun, said
        if fact.colour != UNSAID and rng.random() < COLOUR_SHARE:
            noun, said = f"{self.colours[fact.colour]} {noun}", said._replace(colour=fact.colour)
        if fact.scale in SIZE_WORDS and rng.random() < SIZE_SHARE:
            noun, said = f"{rng.choice(SIZE_WORDS[fact.scale])} {noun}", said._replace(scale=fact.scale)
        text = str(rng.choice(TEMPLATES)).format(noun)
        return _mend_article(text), said

    def everything(self) -> list[Fact]:
        """One fact for every word, every colour of it, and nothing."""
        coloured = [Fact(self.words.index(word), self.colours.index(colour), ORDINARY) for word, colour in self.pairs]
        return [Fact(word, UNSAID, ORDINARY) for word in range(len(self.words))] + coloured + [NOTHING]


def _mend_article(text: str) -> str:
    """`a apple` → `an apple`."""
    before, article, after = text.partition("a ") if text.startswith("a ") else text.partition(" a ")
    return f"{before}{article[:-1]}n {after}" if article and after[0] in "aeiou" else text


def truth(pictures: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """Which captions are true of which pictures.

    Args:
        pictures (`torch.Tensor` of shape `(P, 3)`): a [`Fact`] in each row.
        captions (`torch.Tensor` of shape `(C, 3)`): likewise.

    Returns:
        `torch.Tensor` of shape `(P, C)`, `bool`: "a tangerine" is true of a small tangerine, "a small tangerine" is
        not true of every tangerine.
    """
    pictures, captions = pictures[:, None], captions[None]
    same = pictures == captions
    return same[..., 0] & (same[..., 1:] | (captions[..., 1:] == UNSAID)).all(dim=-1)
