"""Draws 40 fixed prompts, or four seeds of ten of them, as one contact sheet: 5 rows of 8 pictures with captions."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from demo_models import draw, judge
from demo_models.sheets import sheet

PROMPTS = (
    "a 3d render of a red apple", "a flat icon of a penguin", "a 3d render of a rocket", "a 3d icon of pizza",
    "a flat drawing of a cat face", "a 3d render of an octopus", "a birthday cake in 3d", "a grinning face",
    "a flat icon of a house", "a 3d guitar", "a flat icon of the sunflower", "the 3d panda emoji",
    "a green apple", "a 3d robot", "a flat icon of an airplane", "a 3d render of a crown",
    "a 3d render of a watermelon", "a flat ghost", "a 3d soccer ball", "a cactus, 3d render",
    "a blue rocket in 3d", "a pink octopus, flat icon", "a purple crown", "a green house in 3d",
    "a red fox", "a flat illustration of a whale", "a glossy 3d rendering of a snail", "an umbrella in a flat style",
    "a picture of a bicycle", "an emoji of an owl", "draw a hamburger", "a 3d image of an elephant",
    "a flat image of a lion", "a simple flat icon of a trophy", "a cute 3d icon of a hot dog", "the red car",
    "a smiling face with sunglasses", "an ice cream in 3d", "a tree in a flat style", "a yellow balloon",
)  # fmt: skip
# What the demo Cascade knows: animals, plants, food and drink.
CASCADE_PROMPTS = (
    "a flat icon of a penguin", "a flat gorilla", "a giraffe", "a flat icon of a camel",
    "draw a goose", "a flat image of an owl", "a picture of a frog", "a flat icon of an octopus",
    "a flat drawing of a deer", "a whale", "an ant, flat icon", "a flat tropical fish",
    "a snake", "a flat bear", "a flat drawing of a koala", "a fox",
    "a flat icon of the sunflower", "a tulip", "a palm tree, flat icon", "a flat four leaf clover",
    "a croissant", "a flat pear", "a flat icon of cherries", "a carrot",
    "a flat image of a tomato", "kiwi fruit", "a flat icon of a hot dog", "a burrito",
    "french fries, flat icon", "a flat picture of a teapot", "a beer mug", "a flat candy",
    "an egg", "a flat icon of an ear of corn", "a rice ball", "a flat drawing of an ice cream",
    "an emoji of a cat face", "a flat icon of a lion", "draw a turtle", "a flat icon of a watermelon",
)  # fmt: skip
_COLUMNS = 8


def main() -> None:
    """`python -m demo_models.contact_sheet {sdxl,refined,cascade,pictures} … --out FILE`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    pictures = kinds.add_parser("pictures", help="40 PNGs in the order of their names")
    pictures.add_argument("folder", type=Path)
    pictures.add_argument("--of-cascade", action="store_true", help="drawn from CASCADE_PROMPTS")
    drawn = draw.subcommands(kinds)
    for sub in drawn:
        sub.add_argument("--seeds", action="store_true", help="the first ten prompts, four seeds each")
    for sub in (pictures, *drawn):
        sub.add_argument("--out", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()
    prompts = list(CASCADE_PROMPTS if args.kind == "cascade" or getattr(args, "of_cascade", False) else PROMPTS)
    seeds = list(range(len(prompts)))
    if args.kind == "pictures":
        made = judge.read_folder(args.folder, len(prompts))
    else:
        torch.set_num_threads(args.threads)
        if args.seeds:
            prompts, seeds = [prompt for prompt in prompts[:10] for _ in range(4)], [0, 1, 2, 3] * 10
        made = draw.draw(draw.painter(args), prompts, seeds)
    sheet(made, args.out, columns=_COLUMNS, captions=prompts)


if __name__ == "__main__":
    main()
