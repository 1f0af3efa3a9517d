"""A folder's tokenizer as one `tokenizer.json` that the serving side reads without transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from triptych_contract.cards import TokenizerCard
from triptych_serving.tokenizers import PromptTokenizer

from .errors import ExportError

# Short, empty, odd and too long: what the two implementations must agree on.
SAMPLES = (
    "",
    "a photo of a cat",
    "naïve café, 東京 — 🦊!",
    "word " * 300,
    "  MIXED   Case\nand\tspace ",
    "it's 3.14 (a:1.2)",
)


def export_tokenizer(tokenizer: Any, file: Path, path: str) -> TokenizerCard:
    """Save transformers' `tokenizer` to `file` and check that the serving side reads prompts the same way.

    Raises:
        ExportError: the two differ; names the tokenizer and the prompt.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _bare(tokenizer).save(str(file))
    card = TokenizerCard(path, int(tokenizer.model_max_length), int(tokenizer.pad_token_id), str(tokenizer.pad_token))
    served = PromptTokenizer(file, card)
    for sample in SAMPLES:
        expected = tokenizer(sample, padding="max_length", max_length=card.max_length, truncation=True).input_ids
        if not np.array_equal(served([sample])[0], expected):
            raise ExportError(f"{Path(path).parent}: {sample[:40]!r} gives other ids than transformers' tokenizer")
    return card


def alike(one: Any, other: Any) -> bool:
    """Whether two of transformers' tokenizers turn every prompt into the same ids."""
    facts = [(t.model_max_length, t.pad_token_id, _bare(t).to_str()) for t in (one, other)]
    return facts[0] == facts[1]


def _bare(tokenizer: Any) -> Any:
    """What does the work in it, without the truncation and padding that some call has left there."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend
