"""What controls add inside a UNet, as one tensor: residuals of several sizes, folded to the smallest and laid side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def layout(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """The residuals of a UNet, in diffusers' order: the channels of each, and how often its sides hold the smallest's."""
    widths, depth = config["block_out_channels"], config["layers_per_block"]
    depths = [depth] * len(widths) if isinstance(depth, int) else depth
    return [*_residuals(widths, depths)]


def _residuals(widths: Sequence[int], depths: Sequence[int]) -> Iterator[tuple[int, int]]:
    sides = [2 ** (len(widths) - 1 - block) for block in range(len(widths))]
    yield widths[0], sides[0]
    for block, (width, layers) in enumerate(zip(widths, depths, strict=True)):
        yield from [(width, sides[block])] * layers
        if block + 1 < len(widths):
            yield width, sides[block + 1]
    yield widths[-1], 1


def channels(config: Mapping[str, Any]) -> int:
    """The channels of all residuals, folded."""
    return sum(width * side * side for width, side in layout(config))


def packed(residuals: Sequence[Tensor], config: Mapping[str, Any]) -> Tensor:
    """Lay residuals side by side, (batch, channels, least height, least width)."""
    sides = [side for _, side in layout(config)]
    return torch.cat([pixel_unshuffle(one, side) for one, side in zip(residuals, sides, strict=True)], dim=1)


def unpacked(together: Tensor, config: Mapping[str, Any]) -> list[Tensor]:
    """Take apart what `packed` laid side by side."""
    places = layout(config)
    parts = torch.split(together, [width * side * side for width, side in places], dim=1)
    return [pixel_shuffle(part, side) for part, (_, side) in zip(parts, places, strict=True)]
