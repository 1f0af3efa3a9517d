"""Prompts to token ids, cut and padded as diffusers does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from triptych_contract.cards import TokenizerCard


class PromptTokenizer:
    """One exported tokenizer. Every prompt becomes `max_length` ids."""

    def __init__(self, path: Path, card: TokenizerCard) -> None:
        self.max_length = card.max_length
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.enable_truncation(card.max_length)
        self._tokenizer.enable_padding(length=card.max_length, pad_id=card.pad_id, pad_token=card.pad_token)

    def __call__(self, prompts: list[str]) -> NDArray[np.int64]:
        """(len(prompts), max_length) int64."""
        return np.array([encoding.ids for encoding in self._tokenizer.encode_batch(prompts)], np.int64)

    def attention_mask(self, prompts: list[str]) -> NDArray[np.int64]:
        """(len(prompts), max_length) int64: 1 for the prompt's tokens, 0 for padding."""
        return np.array([encoding.attention_mask for encoding in self._tokenizer.encode_batch(prompts)], np.int64)

    def cut(self, prompt: str) -> str:
        """The words that do not fit and no encoder sees; "" for most prompts."""
        overflowing: list[Any] = self._tokenizer.encode(prompt).overflowing
        starts = [
            start
            for encoding in overflowing
            for (start, _), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            if not special
        ]
        return prompt[min(starts) :] if starts else ""
