"""Stable Cascade's text encoder: learns from captions alone which subject, style and colour they name; then it is frozen.

Starts from the SDXL demo's second encoder, whose tokenizer it shares. Runs with the padding masked, as the pipelines do.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo_models import augment, data
from demo_models.augment import COLOURS, Version
from demo_models.captions import Captions
from demo_models.data import Picture
from demo_models.libraries import AutoTokenizer, CLIPTextModelWithProjection
from demo_models.report import say
from demo_models.training import Options, fast, options, parser, train

STYLES = ("3d", "flat")
TINTS = (*COLOURS, "brown")


def tokenize(tokenizer: Any, captions: list[str], device: str, *, padding: str = "max_length") -> dict[str, Tensor]:
    """Ids and attention mask, [B, 24] each; the mask leaves out the padding, which is made of the end token.

    With padding "longest" the rows are only as long as the longest caption: all but the padding's own states stay the same.
    """
    length = tokenizer.model_max_length
    made = tokenizer(captions, padding=padding, max_length=length, truncation=True, return_tensors="pt")
    return {"input_ids": made.input_ids.to(device), "attention_mask": made.attention_mask.to(device)}


def embed(encoder: nn.Module, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """As the pipelines do it: the last hidden states, [B, 24, 160], and the pooled embedding, [B, 1, 160]."""
    made = encoder(**tokens, output_hidden_states=True)
    return made.hidden_states[-1], made.text_embeds[:, None]


class Heads(nn.Module):
    """Linear classifiers of subject, style and colour on one embedding; used in training only."""

    def __init__(self, width: int, subjects: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.subject = nn.Linear(width, subjects)
        self.style = nn.Linear(width, len(STYLES) + 1)
        self.colour = nn.Linear(width, len(TINTS) + 1)

    def loss(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """The sum of the three cross entropies; labels [B, 3], −100 where nothing is asked (the empty caption)."""
        x = self.norm(embedding.float())
        heads = (self.subject, self.style, self.colour)
        parts = [functional.cross_entropy(head(x).float(), labels[:, i]) for i, head in enumerate(heads)]
        return torch.stack(parts).sum()


class Lessons:
    """Draws captions with what they name."""

    def __init__(self, pictures: list[Picture], versions: list[Version], tokenizer: Any, opts: Options) -> None:
        self._pictures, self._versions, self._tokenizer, self._opts = pictures, versions, tokenizer, opts
        self._captions = Captions(pictures, random.Random(opts.seed))  # noqa: S311 - no secret
        self.subjects = {label: i for i, label in enumerate(sorted({p.label for p in pictures}))}

    def _labels(self, version: Version, caption: str) -> list[int]:
        """Subject, style and colour of a caption; the last class of a kind is 'not said'."""
        if not caption:
            return [-100, len(STYLES), len(TINTS)]
        picture, words = self._pictures[version.picture], caption.replace(",", "").split()
        said = next((i for i, style in enumerate(STYLES) if style in words), len(STYLES))
        colour = TINTS.index(version.colour) if version.colour in words and version.colour in TINTS else len(TINTS)
        return [self.subjects[picture.label], said, colour]

    def draw(self) -> tuple[dict[str, Tensor], Tensor]:
        """Tokens of a batch of captions and their labels, [B, 3]."""
        chosen = torch.randint(len(self._versions), (self._opts.batch,)).tolist()
        captions = [self._captions.caption(self._versions[i]) for i in chosen]
        labels = [self._labels(self._versions[i], c) for i, c in zip(chosen, captions, strict=True)]
        device = self._opts.device
        return tokenize(self._tokenizer, captions, device, padding="longest"), torch.tensor(labels, device=device)


def run(opts: Options, start_from: Path, out: Path) -> None:
    """Train the encoder and write it to `out/text_encoder`, its tokenizer to `out/tokenizer`."""
    tokenizer = AutoTokenizer.from_pretrained(start_from / "tokenizer_2")
    encoder = CLIPTextModelWithProjection.from_pretrained(start_from / "text_encoder_2", dtype=torch.float32)
    encoder.to(opts.device).train()
    pictures, _ = data.load(opts.work)
    versions, _ = augment.load(opts.work)
    lessons = Lessons(pictures, versions, tokenizer, opts)
    width = encoder.config.projection_dim
    # The pooled embedding goes to both stages; the hidden states, of the same width, go to Stage C, so they are taught too.
    pooled_heads = Heads(width, len(lessons.subjects)).to(opts.device)
    hidden_heads = Heads(encoder.config.hidden_size, len(lessons.subjects)).to(opts.device)

    def step() -> Tensor:
        tokens, labels = lessons.draw()
        with fast(opts.device):
            hidden, pooled = embed(encoder, tokens)
            mask = tokens["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            loss = pooled_heads.loss(pooled[:, 0], labels) + 0.5 * hidden_heads.loss(mean, labels)
        return loss + 1e-3 * pooled.float().square().mean()  # Keeps the embedding's scale near where it was.

    modules = {"encoder": encoder, "pooled": pooled_heads, "hidden": hidden_heads}
    averaged = train("text_encoder", modules, step, opts, weight_decay=1e-2)["encoder"]
    averaged.to(torch.float16).save_pretrained(out / "text_encoder")  # type: ignore[operator]
    tokenizer.save_pretrained(out / "tokenizer")
    say(f"text_encoder: written to {out}")


def load(folder: Path, device: str) -> tuple[nn.Module, Any]:
    """The frozen encoder (float32) and its tokenizer."""
    encoder = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return encoder.to(device).eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder / "tokenizer")


def main() -> None:
    """`python -m demo_models.text_encoder --work DIR --start-from DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=6, batch=160, lr=2e-3)
    made.add_argument(
        "--start-from", type=Path, required=True, help="SDXL diffusers folder (text_encoder_2, tokenizer_2)"
    )
    made.add_argument("--out", type=Path, required=True, help="folder to write text_encoder/ and tokenizer/ to")
    args = made.parse_args()
    run(options(args), args.start_from, args.out)


if __name__ == "__main__":
    main()
