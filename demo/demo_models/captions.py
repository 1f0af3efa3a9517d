"""The captions that pictures are trained with, and the ones that are kept out of training to judge by.

A wording is a template with a name in it. Some templates are never trained; of the trained ones a hash of template and name
keeps one wording in eight out. `is_trainable` says of any sentence whether training could have shown it.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from demo_models.augment import COLOURS, Version
from demo_models.data import Picture, Style

# `{}` takes a phrase with or without an article, `{bare}` one without.
TRAINED: dict[Style | None, tuple[str, ...]] = {
    "3d": ("a 3d render of {}", "3d {bare}", "a 3d {bare}", "a 3d icon of {}", "{} in 3d", "{}, 3d", "a 3d picture of {}",
           "a 3d emoji of {}", "a shiny 3d {bare}", "a 3d model of {}", "3d render of {}", "{}, 3d render",
           "{} in a 3d style", "the 3d {bare} emoji", "an image of {} in 3d"),
    "flat": ("a flat icon of {}", "flat {bare}", "a flat {bare}", "a flat drawing of {}", "{} in a flat style", "{}, flat",
             "{}, flat icon", "flat icon of {}", "a flat emoji of {}", "a flat picture of {}", "{} as a flat icon",
             "a simple flat {bare}", "the flat {bare} emoji", "an image of {}, flat"),
    None: ("{}", "a picture of {}", "an emoji of {}", "an icon of {}", "{bare} emoji", "an image of {}", "show me {}",
           "a drawing of {}", "draw {}", "a cute {bare}"),
}  # fmt: skip
HELD_OUT: dict[Style, tuple[str, ...]] = {
    "3d": ("a glossy 3d rendering of {}", "a 3d image of {}", "{} drawn in 3d", "please draw {} in 3d",
           "a cute 3d icon of {}", "a 3d drawing that shows {}"),
    "flat": ("a flat illustration of {}", "a simple flat icon of {}", "a flat image of {}", "a drawing of {} in a flat style",
             "{} as a flat drawing", "please draw a flat {bare}"),
}  # fmt: skip
# Words around a caption that say nothing about the picture; `disturb` adds them, and made-up ones, so that an encoder learns to
# pass over what it does not know. No word here is one that only the templates above marked HELD_OUT use.
OPENINGS = ("i would like", "can you make", "here is", "look at", "give me", "make me", "we want to see", "paint", "create",
            "a photo of", "a sketch of", "a nice", "a lovely", "a very good", "one", "my", "some", "this is")  # fmt: skip
ENDINGS = (
    "for me",
    "on white",
    "with details",
    "thanks",
    "in high quality",
    "if you can",
    "for my friend",
    "of the best kind",
)
EMPTY, SYNONYM, COLOUR = (
    0.1,
    0.08,
    0.15,
)  # Shares of captions: empty, with a synonym, with the picture's own colour named.
_COLOUR_WORDS = (*COLOURS, "brown", "black", "white")


def _article(phrase: str) -> str:
    """'a' or 'an' by the first letter; the names' few exceptions ('a unicorn') are listed."""
    return "an" if re.match(r"[aeiou8]", phrase) and not re.match(r"uni|use|ute|euro|one|ewe", phrase) else "a"


def fill(template: str, bare: str, article: str) -> str:
    """Put a phrase into a template; the article is 'a' (then right for the phrase), 'the' or ''."""
    lead = {"a": f"{_article(bare)} ", "the": "the ", "": ""}[article]
    if "{bare}" in template:
        # 'a {bare}' opens with an article of its own.
        text = template.replace("{bare}", bare)
        return f"{_article(bare)} {bare}" + text.removeprefix(f"a {bare}") if template.startswith("a {bare}") else text
    return template.replace("{}", lead + bare)


def kept_out(template: str, name: str) -> bool:
    """Whether this wording is kept out of training: one in eight, by a hash so that nothing need be stored."""
    return hashlib.sha256(f"{template}|{name}".encode()).digest()[0] < 32


def normal(sentence: str) -> str:
    """The sentence as the tokenizer sees it: lower case, only letters, digits, apostrophes and hyphens."""
    return " ".join(re.sub(r"[^a-z0-9'’ -]", " ", sentence.lower()).split())


@lru_cache(maxsize=100_000)
def _templates(style: Style, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The templates with and without the style that training may use with a name."""
    styled = tuple(t for t in TRAINED[style] if not kept_out(t, name))
    plain = tuple(t for t in TRAINED[None] if not kept_out(t, name))
    return styled, plain


def _tint(name: str, colour: str) -> str:
    """The name with a colour before it, in the place of one that it already has: 'red apple' → 'blue apple'."""
    words = name.split()
    return " ".join([colour, *(words[1:] if words[0] in _COLOUR_WORDS and len(words) > 1 else words)])


@dataclass
class Captions:
    """Draws captions for the bank's versions."""

    pictures: list[Picture]
    rng: random.Random

    def caption(self, version: Version) -> str:
        """One caption: a style in four of five, an article in most, the colour always where it was changed."""
        return self.pair(version)[0]

    def pair(self, version: Version) -> tuple[str, str]:
        """One caption, and the plainest one that says the same: the label in its style's first trained template."""
        rng, picture = self.rng, self.pictures[version.picture]
        if rng.random() < EMPTY:
            return "", ""
        name = picture.label
        if len(picture.names) > 1 and rng.random() < SYNONYM:
            name = rng.choice(picture.names[1:])
        styled, plain = _templates(picture.style, name)
        says_style = bool(styled) and (not plain or rng.random() < 0.8)
        template = rng.choice(styled if says_style else plain)
        plainest = _templates(picture.style, picture.label)[0 if says_style else 1][0]
        label = picture.label
        if version.colour and (version.recoloured or rng.random() < COLOUR):
            name, label = _tint(name, version.colour), _tint(label, version.colour)
        return fill(template, name, rng.choice(("a", "a", "the", ""))), fill(plainest, label, "")


def _made_up(rng: random.Random) -> str:
    """A word that is none: two to four syllables."""
    return "".join(rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))


def disturb(caption: str, rng: random.Random) -> str:
    """The caption with words before it (half the time) and after it (a quarter) that say nothing about the picture."""
    if not caption:
        return caption
    words = [caption]
    if rng.random() < 0.5:
        words.insert(0, rng.choice(OPENINGS) if rng.random() < 0.5 else _made_up(rng))
        if rng.random() < 0.4:
            words.insert(1, rng.choice(("of", "with", "a", "the", _made_up(rng))))
    if rng.random() < 0.25:
        words.append(rng.choice(ENDINGS) if rng.random() < 0.5 else _made_up(rng))
    return " ".join(words)


def trainable(pictures: Iterable[Picture]) -> Iterator[str]:
    """Every caption without a colour word that training may show, as the tokenizer sees it."""
    for style, name in sorted({(picture.style, name) for picture in pictures for name in picture.names}):
        styled, plain = _templates(style, name)
        for template in styled + plain:
            for article in ("a", "the", ""):
                yield normal(fill(template, name, article))
