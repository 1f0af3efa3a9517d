"""Prompts to token ids, cut and padded as diffusers does it."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from triptych_contract.cards import TokenizerCard
from triptych_contract.emphasis import Part

from .manifest import Manifest


class Chunks(NamedTuple):
    """What an encoder reads of one prompt, N rows of L tokens, and what it does not."""

    ids: NDArray[np.int64]  # (N, L)
    weights: NDArray[np.float32]  # (N, L), what each token's hidden state is multiplied by
    cut: str


class _Token(NamedTuple):
    id: int
    part: Part
    start: int  # in the part's text, spelt out


class PromptTokenizer:
    """One exported tokenizer. Every prompt becomes `max_length` ids.

    `multi_vector` spells out the words of textual inversions that have several vectors, as diffusers does it:
    {"<cat>": "<cat> <cat>_1 <cat>_2"}.
    """

    def __init__(self, path: Path, card: TokenizerCard, multi_vector: Mapping[str, str] | None = None) -> None:
        self.max_length = card.max_length
        self._multi_vector = multi_vector or {}
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(card.max_length)
        self._tokenizer.enable_padding(length=card.max_length, pad_id=card.pad_id, pad_token=card.pad_token)

    @classmethod
    def of(cls, manifest: Manifest, card: TokenizerCard) -> PromptTokenizer:
        """A tokenizer of a build, its files checked."""
        words = card.multi_vector and json.loads(manifest.verified(card.multi_vector).read_text("utf-8"))
        return cls(manifest.verified(card.path), card, words or None)

    def __call__(self, prompts: list[str]) -> NDArray[np.int64]:
        """(len(prompts), max_length) int64."""
        return np.array([encoding.ids for encoding in self._encode(prompts)], np.int64)

    def attention_mask(self, prompts: list[str]) -> NDArray[np.int64]:
        """(len(prompts), max_length) int64: 1 for the prompt's tokens, 0 for padding."""
        return np.array([encoding.attention_mask for encoding in self._encode(prompts)], np.int64)

    def chunks(self, sections: Sequence[Sequence[Part]], most: int) -> Chunks:
        """Read a prompt in chunks: each begins and ends as a whole prompt does, and a section begins a new one.

        Args:
            most: so many chunks are read; the words of others are cut.
        """
        (begin, end, *padding), chunks = self([""])[0].tolist(), []
        for section in sections:
            tokens = [token for part in section for token in self._tokens(part)]
            chunks += [tokens[at : at + len(padding)] for at in range(0, len(tokens), len(padding))] or [[]]
        if len(chunks) > 1 and not chunks[-1]:
            del chunks[-1]
        ids = [[begin, *(token.id for token in chunk), end, *padding[len(chunk) :]] for chunk in chunks[:most]]
        weights = np.ones((len(ids), self.max_length), np.float32)
        for row, chunk in zip(weights, chunks, strict=False):
            row[1 : 1 + len(chunk)] = [token.part.weight for token in chunk]
        return Chunks(np.array(ids, np.int64), weights, self._unread(chunks[most:]))

    def _tokens(self, part: Part) -> Iterator[_Token]:
        first = self._tokenizer.encode(self._spelt_out(part.text), add_special_tokens=False)
        for encoding in [first, *first.overflowing]:
            for id, (start, _), real in zip(encoding.ids, encoding.offsets, encoding.attention_mask, strict=True):
                if real:
                    yield _Token(id, part, start)

    def _unread(self, chunks: Sequence[Sequence[_Token]]) -> str:
        """The words of chunks that are cut."""
        tokens = itertools.chain.from_iterable(chunks)
        firsts = [next(group) for _, group in itertools.groupby(tokens, key=lambda token: id(token.part))]
        rest = (first.part.text[self._place(first.part.text, first.start) :] for first in firsts)
        return " ".join(text.strip() for text in rest)

    def cut(self, prompt: str) -> str:
        """The words that do not fit and no encoder sees; "" for most prompts."""
        overflowing: list[Any] = self._encode([prompt])[0].overflowing
        starts = [
            start
            for encoding in overflowing
            for (start, _), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            if not special
        ]
        return prompt[self._place(prompt, min(starts)) :] if starts else ""

    def _encode(self, prompts: list[str]) -> list[Any]:
        return list(self._tokenizer.encode_batch([self._spelt_out(prompt) for prompt in prompts]))

    def _spelt_out(self, prompt: str) -> str:
        """What diffusers' `maybe_convert_prompt` makes of a prompt."""
        words = self._words(prompt)
        return words.sub(lambda word: self._multi_vector[word[0]], prompt) if words else prompt

    def _words(self, prompt: str) -> re.Pattern[str] | None:
        """Finds the words of several vectors in a prompt: those that the tokenizer, too, reads as words of their own."""
        if not any(word in prompt for word in self._multi_vector):
            return None
        first = self._tokenizer.encode(prompt, add_special_tokens=False)
        read = {token for encoding in [first, *first.overflowing] for token in encoding.tokens}
        found = sorted(read & self._multi_vector.keys(), key=lambda word: (-len(word), word))
        return re.compile("|".join(map(re.escape, found))) if found else None

    def _place(self, prompt: str, spelt_out: int) -> int:
        """Where in a prompt a place of the spelt-out one is; inside of a word, where the word begins."""
        words, longer = self._words(prompt), 0
        for word in words.finditer(prompt) if words else ():
            begins = word.start() + longer
            if spelt_out < begins:
                break
            if spelt_out < begins + len(self._multi_vector[word[0]]):
                return word.start()
            longer += len(self._multi_vector[word[0]]) - len(word[0])
        return spelt_out - longer
