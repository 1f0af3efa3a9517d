"""Teaches the SDXL's text encoders, on text alone, that all wordings of a caption mean what the plainest one means.

The finished encoders are the teacher: what they make of the plainest caption is what the UNet draws best. The student, a copy,
learns to make the same of every other wording, with words around it that say nothing. A step costs a tenth of one through
the UNet.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demo_models import augment, data, sdxl
from demo_models.captions import Captions, disturb
from demo_models.report import say
from demo_models.training import Options, fast, options, parser, train


def distance(mine: Tensor, other: Tensor) -> Tensor:
    """The mean squared difference in units of the other's variance, per column over all else: [..., C], [..., C] → a number."""
    flat = other.float().flatten(0, -2)
    return ((mine.float().flatten(0, -2) - flat).square() / (flat.var(0) + 1e-4)).mean()


def run(opts: Options, start_from: Path, out: Path) -> None:
    """Train copies of the pipeline's encoders and write the pipeline with them, in float16, to `out`."""
    pipe: Any = sdxl.load(start_from).to(opts.device)
    teacher = sdxl.load(start_from).to(opts.device)
    pictures, _ = data.load(opts.work)
    versions, _ = augment.load(opts.work)
    captions = Captions(pictures, random.Random(opts.seed))  # noqa: S311 - no secret
    names = ("text_encoder", "text_encoder_2")
    students: dict[str, nn.Module] = {name: getattr(pipe, name).train() for name in names}

    def step() -> Tensor:
        chosen = augment.choose(range(len(pictures)), opts.batch).tolist()
        said, plainest = zip(*(captions.pair(versions[i]) for i in chosen), strict=True)
        with fast(opts.device):
            with torch.no_grad():
                ids = sdxl.tokens(pipe.tokenizer, list(plainest), opts.device)
                hidden, pooled = sdxl.condition(teacher.text_encoder, teacher.text_encoder_2, ids)
            ids = sdxl.tokens(pipe.tokenizer, [disturb(caption, captions.rng) for caption in said], opts.device)
            my_hidden, my_pooled = sdxl.condition(pipe.text_encoder, pipe.text_encoder_2, ids)
        # Word by word: the words before the subject cannot know it, but the padding after it, most of the 24 places, can.
        return distance(my_hidden, hidden) + distance(my_pooled, pooled)

    averaged = train("wordings", students, step, opts, decay=0.99)
    for name, module in averaged.items():
        getattr(teacher, name).load_state_dict(module.state_dict())
    teacher.to(torch.float16).save_pretrained(out)
    say(f"wordings: written to {out}")


def main() -> None:
    """`python -m demo_models.wordings --work DIR --start-from DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=6, batch=96, lr=1e-3)
    made.add_argument("--start-from", type=Path, required=True, help="what `sdxl` wrote")
    made.add_argument("--out", type=Path, required=True, help="diffusers folder to write")
    args = made.parse_args()
    run(options(args), args.start_from, args.out)


if __name__ == "__main__":
    main()
