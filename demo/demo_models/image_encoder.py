"""The semantic image encoder: what Stage C draws and Stage B is conditioned on, 128×128 pictures as codes of 24×4×4.

Stable Cascade uses an EfficientNet there. This stand-in is needed for training only – the prior makes codes from text – and is
linear: each cell of a picture by its principal components, found in all pictures. What a cell of the code shows is then in that
cell, so Stage B has little to find out. Two more channels say where a cell is: Stage B stretches the sixteen over its own finer
grid and could not tell otherwise where between them it draws.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from demo_models import data, latents
from demo_models.report import say

BANK = "codes"
CODE_SIDE, COMPONENTS = 4, 22
CODE_CHANNELS = COMPONENTS + 2
PLACE = 1.5  # From −1.5 to 1.5: about the deviation of the strongest components.
CELL = 24  # Pixels of a cell along a side, of a picture brought to 96.
_CELLS = 8192  # To find the components in.
_SCALE = (
    0.5  # Components are divided by this power of their deviation: 1 would make the weakest as loud as the strongest.
)


@dataclass(frozen=True)
class Encoder:
    """The linear map: a cell's 24·24·3 values less `mean`, times `components` [1728, 22]."""

    mean: Tensor
    components: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, 128, 128] in 0–1 → [B, 24, 4, 4], place channels last."""
        coded = (_cells(images) - self.mean) @ self.components
        made = coded.view(len(images), CODE_SIDE, CODE_SIDE, COMPONENTS).permute(0, 3, 1, 2)
        ramp = torch.linspace(-PLACE, PLACE, CODE_SIDE, device=images.device)
        place = torch.stack(torch.meshgrid(ramp, ramp, indexing="xy")).expand(len(images), -1, -1, -1)
        return torch.cat([made, place], 1)


def fit(pictures: npt.NDArray[np.uint8], seed: int) -> Encoder:
    """The encoder for pictures, uint8 [N, 128, 128, 3]; its codes' components have a mean square of 1."""
    cells = torch.cat([_cells(_images(pictures[k : k + 64])) for k in range(0, len(pictures), 64)])
    chosen = cells[torch.randperm(len(cells), generator=torch.Generator().manual_seed(seed))[:_CELLS]]
    mean = chosen.mean(0)
    _, _, directions = torch.linalg.svd(chosen - mean, full_matrices=False)
    components = directions[:COMPONENTS].T
    coded = (cells - mean) @ components
    say(f"{COMPONENTS} components hold {coded.square().sum() / (cells - mean).square().sum():.0%} of what differs")
    scaled = coded / coded.std(0) ** _SCALE
    return Encoder(mean, components / coded.std(0) ** _SCALE / scaled.square().mean().sqrt())


def _images(pictures: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255)


def _cells(images: Tensor) -> Tensor:
    """[B, 3, 128, 128] → [16·B, 1728], by picture, row and column."""
    side = CELL * CODE_SIDE
    small = functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return functional.unfold(small, CELL, stride=CELL).transpose(1, 2).reshape(-1, 3 * CELL**2)


def main() -> None:
    """`python -m demo_models.image_encoder --work DIR`: writes `codes.npy` for the whole bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder that `data` and `augment` wrote")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, …")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    _, pictures = data.load(args.work)
    encoder = fit(pictures, args.seed)
    latents.write(args.work, BANK, encoder, args.device)


if __name__ == "__main__":
    main()
