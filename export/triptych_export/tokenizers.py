"""A folder's tokenizer as one `tokenizer.json` that the serving side reads without transformers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin

from triptych_contract.cards import TokenizerCard
from triptych_serving.tokenizers import PromptTokenizer

from .errors import ExportError

WORDS = "multi_vector.json"
# Short, empty, odd and too long: what the two implementations must agree on.
SAMPLES = (
    "",
    "a photo of a cat",
    "naïve café, 東京 — 🦊!",
    "word " * 300,
    "  MIXED   Case\nand\tspace ",
    "it's 3.14 (a:1.2)",
)


def export_tokenizer(tokenizer: Any, file: Path, path: str, *, inversions: bool) -> TokenizerCard:
    """Save transformers' `tokenizer` to `file` and check that the serving side reads prompts the same way.

    `inversions` says whether diffusers' pipeline spells out words of several vectors (textual inversions). They lie beside
    `file`, which is `path` in the build.

    Raises:
        ExportError: the two differ; names the tokenizer and the prompt.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _bare(tokenizer).save(str(file))
    words = _multi_vector(tokenizer) if inversions else {}
    if words:
        file.with_name(WORDS).write_text(json.dumps(words, indent=1, ensure_ascii=False) + "\n", "utf-8")
    card = TokenizerCard(
        path,
        int(tokenizer.model_max_length),
        int(tokenizer.pad_token_id),
        str(tokenizer.pad_token),
        str(Path(path).with_name(WORDS)) if words else None,
    )
    served = PromptTokenizer(file, card, words)
    for sample in (*SAMPLES, *(f"a {word} and {word} in snow" for word in words)):
        given = TextualInversionLoaderMixin().maybe_convert_prompt(sample, tokenizer) if inversions else sample
        expected = tokenizer(given, padding="max_length", max_length=card.max_length, truncation=True).input_ids
        if not np.array_equal(served([sample])[0], expected):
            raise ExportError(f"{Path(path).parent}: {sample[:40]!r} gives other ids than transformers' tokenizer")
    return card


def _multi_vector(tokenizer: Any) -> dict[str, str]:
    """The words of several vectors, as diffusers finds them: "<cat>" is one where there is "<cat>_1"."""
    added, words = tokenizer.added_tokens_encoder, {}
    for word in sorted(added):
        more = list(itertools.takewhile(added.__contains__, (f"{word}_{k}" for k in itertools.count(1))))
        if more:
            words[word] = " ".join([word, *more])
    return words


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
