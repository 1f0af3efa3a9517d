"""Makes the bank: ten versions of every picture, moved a little and some recoloured, that all trainings draw from.

A bank on disk, not augmentation on the fly, because every latent (the VAE's, Stage A's, the image encoder's) is then
computed once per version and a training step costs no encoder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from demo_models import data
from demo_models.data import SIZE, Pixels
from demo_models.report import say

PLAIN, MOVED, RECOLOURED = 1, 7, 2
VERSIONS = PLAIN + MOVED + RECOLOURED
# How often a training draws the picture as it is. Evenly drawn versions vary more from seed to seed, but a training of an hour
# on two cores then learns ten pictures of each subject badly instead of one well.
PLAIN_SHARE = 0.45
# Colour word → hue in degrees, the exponent on the brightness (below 1: lighter; a dark blue turned to a yellow hue would be
# olive) and the factor on the saturation (pink is a pale red).
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (358.0, 0.9, 1.1),
    "orange": (27.0, 0.6, 1.1),
    "yellow": (50.0, 0.45, 1.0),
    "green": (125.0, 1.0, 1.0),
    "blue": (215.0, 0.9, 1.0),
    "purple": (275.0, 1.0, 1.0),
    "pink": (330.0, 0.5, 0.65),
}
# Upper hue limit of each word for naming a picture as it is; from 345 degrees on it is red again.
_NAMES = ((12.0, "red"), (38.0, "orange"), (68.0, "yellow"), (165.0, "green"), (250.0, "blue"), (295.0, "purple"),
          (345.0, "pink"), (361.0, "red"))  # fmt: skip
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Version:
    """One picture of the bank: which picture it is made from, its colour's name, and whether that colour is not its own."""

    picture: int
    colour: str | None
    recoloured: bool


def _hsv(pixels: Pixels) -> Floats:
    """Hue, saturation and value in 0–1: [128, 128, 3]."""
    return np.asarray(Image.fromarray(pixels).convert("HSV"), np.float64) / 255


def dominant(pixels: Pixels) -> tuple[float, float] | None:
    """The hue (degrees) and the brightness of a picture that has one colour; None for grey and many-coloured ones."""
    hue, saturation, value = np.moveaxis(_hsv(pixels), -1, 0)
    drawn = (saturation > 0.08) | (value < 0.92)
    strong = drawn & (saturation > 0.3) & (value > 0.2)
    if strong.sum() < 0.45 * max(drawn.sum(), 1):
        return None
    weight = (saturation * value)[strong]
    mean = (weight * np.exp(2j * np.pi * hue[strong])).sum() / weight.sum()
    if abs(mean) < 0.75:
        return None
    return float(np.degrees(np.angle(mean)) % 360), float((weight * value[strong]).sum() / weight.sum())


def colour_name(hue: float, brightness: float) -> str:
    """The word for a dominant colour; a dark orange is brown."""
    if 8 <= hue < 45 and brightness < 0.7:
        return "brown"
    return next(name for limit, name in _NAMES if hue < limit)


def recolour(pixels: Pixels, from_hue: float, colour: str) -> Pixels:
    """Turn all hues so that the dominant one becomes the named colour; greys keep their grey (their saturation is 0)."""
    hue, exponent, factor = COLOURS[colour]
    hsv = _hsv(pixels)
    strength = np.clip(hsv[..., 1] / 0.3, 0, 1)  # Near-grey pixels keep their brightness, so that white stays white.
    hsv[..., 0] = (hsv[..., 0] + (hue - from_hue) / 360) % 1
    hsv[..., 2] = (1 - strength) * hsv[..., 2] + strength * hsv[..., 2] ** exponent
    hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)
    return np.asarray(Image.fromarray(np.round(hsv * 255).astype(np.uint8), "HSV").convert("RGB"))


def move(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Flip (half of them), scale to 0.8–1, turn by up to 10 degrees and shift within the canvas, on white."""
    image = Image.fromarray(pixels)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    scale, angle = rng.uniform(0.8, 1.0), np.radians(rng.uniform(-10, 10))
    shift = rng.uniform(-0.5, 0.5, 2) * SIZE * (1 - scale)
    cos, sin, middle = np.cos(angle) / scale, np.sin(angle) / scale, (SIZE - 1) / 2
    x, y = middle + shift
    # PIL wants the map from the new picture to the old one.
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    white = (255, 255, 255)
    return np.asarray(
        image.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=white)
    )


def versions(index: int, pixels: Pixels, rng: np.random.Generator) -> list[tuple[Version, Pixels]]:
    """The ten versions of one picture: as it is, seven moved, two recoloured (if it has one colour) and moved."""
    found = dominant(pixels)
    own = colour_name(*found) if found else None
    made = [(Version(index, own, False), pixels)]
    made += [(Version(index, own, False), move(pixels, rng)) for _ in range(MOVED)]
    others = [name for name in COLOURS if name != own]
    for colour in rng.choice(others, RECOLOURED, replace=False):
        if found:
            made.append((Version(index, str(colour), True), move(recolour(pixels, found[0], str(colour)), rng)))
        else:
            made.append((Version(index, None, False), move(pixels, rng)))
    return made


def write(work: Path, seed: int) -> None:
    """Write `bank.npy` (uint8 [10·N, 128, 128, 3]) and `bank.json`; picture i's versions are rows 10·i to 10·i + 9."""
    _, pixels = data.load(work)
    rng = np.random.default_rng(seed)
    shape = (len(pixels) * VERSIONS, SIZE, SIZE, 3)
    bank: Pixels = np.lib.format.open_memmap(work / "bank.npy", "w+", np.uint8, shape)  # type: ignore[no-untyped-call]
    entries: list[Version] = []
    for index, picture in enumerate(pixels):
        for version, made in versions(index, picture, rng):
            bank[len(entries)] = made
            entries.append(version)
    del bank  # Writes it out.
    (work / "bank.json").write_text(json.dumps([asdict(entry) for entry in entries]), encoding="utf-8")
    say(f"{len(entries)} versions, {sum(entry.recoloured for entry in entries)} of them recoloured")


def choose(pictures: Sequence[int], batch: int, plain: float = PLAIN_SHARE) -> Tensor:
    """Random rows of the bank, [batch]: of these pictures evenly, of each the untouched version more often than the others."""
    version = torch.where(torch.rand(batch) < plain, 0, torch.randint(PLAIN, VERSIONS, (batch,)))
    return torch.tensor(pictures)[torch.randint(len(pictures), (batch,))] * VERSIONS + version


def load(work: Path) -> tuple[list[Version], Pixels]:
    """What `write` wrote; the pixels stay on disk (memory-mapped)."""
    entries = json.loads((work / "bank.json").read_text(encoding="utf-8"))
    return [Version(**entry) for entry in entries], np.load(work / "bank.npy", mmap_mode="r")


def main() -> None:
    """`python -m demo_models.augment --work DIR`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder that `data` wrote")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.work, args.seed)


if __name__ == "__main__":
    main()
