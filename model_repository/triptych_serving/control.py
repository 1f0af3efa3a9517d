"""A model with controls (ControlNets): rows that follow pictures run on a graph that takes what the controls' graphs add.

The others run on the plain one, so they cost what they did and have the bytes that they had, whoever comes along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from triptych_contract.sdxl.card import CONTROL, CONTROLLED

from .denoiser import Conditioning, Denoiser, Floats, Follow, calls, parted
from .ort import OrtDenoiser

# The most rows of one call: what controls add to a row of 1024² of SDXL's UNet takes 107 MB.
MOST_ROWS = 4
PICTURE, EMBEDDED = "controlnet_cond", "embedded"


class Control(NamedTuple):
    """What reads a picture, once for all steps, and what reads that in each step."""

    embed: Callable[[Mapping[str, Floats]], Mapping[str, Floats]]
    graph: OrtDenoiser


class ControlledDenoiser:
    """`Denoiser` over the graphs of one model.

    Args:
        plain: for rows without controls.
        controlled: for rows with some; it has what they add as one more input.
        controls: what makes that, by stage.
    """

    def __init__(self, plain: Denoiser, controlled: OrtDenoiser, controls: Mapping[str, Control]) -> None:
        self.plain, self._controlled, self._controls = plain, controlled, controls
        self._read_of: WeakKeyDictionary[Follow, Floats] = WeakKeyDictionary()

    @property
    def graphs(self) -> dict[str, OrtDenoiser]:
        """Its graphs beside the plain one, by stage."""
        return {CONTROLLED: self._controlled, **{stage: one.graph for stage, one in self._controls.items()}}

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        noise_pred = np.empty_like(sample)
        for follows, (rows, members) in parted(conditioning, lambda one: bool(one.follows)).items():
            run = self._follow if follows else self.plain.predict
            noise_pred[rows] = run(sample[rows], timestep[rows], members)
        return noise_pred

    def release(self, conditioning: Conditioning) -> None:
        for one in (self.plain, *self.graphs.values()):
            one.release(conditioning)

    def _follow(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        parts = []
        for rows, members in calls(conditioning, MOST_ROWS):
            added = self._added(sample[rows], timestep[rows], members)
            parts.append(self._controlled.predict(sample[rows], timestep[rows], members, {CONTROL: added}))
        return np.concatenate(parts)

    def _added(self, sample: Floats, timestep: Floats, members: Sequence[Conditioning]) -> Floats:
        """What controls add to each row, (R, …), summed in the build's order, whatever the others of the batch follow."""
        ends = accumulate(map(len, members))
        places = [np.arange(end - len(one), end) for one, end in zip(members, ends, strict=True)]
        added: Floats | None = None
        for stage, control in self._controls.items():
            asked = [
                (rows, one, follow)
                for rows, one in zip(places, members, strict=True)
                for follow in one.follows
                if follow.stage == stage
            ]
            if not asked:
                continue
            rows = np.concatenate([rows for rows, _, _ in asked])
            pictures = np.stack([read for rows, _, follow in asked for read in [self._read(follow)] * len(rows)])
            made = control.graph.predict(
                sample[rows], timestep[rows], [one for _, one, _ in asked], {EMBEDDED: pictures}
            )
            if added is None:
                added = np.zeros((len(sample), *made.shape[1:]), np.float32)
            for (rows, _, follow), its in zip(asked, _by_request(made, asked), strict=True):
                added[rows] += np.float32(follow.scale) * its
        assert added is not None  # noqa: S101 - each member follows something
        return added

    def _read(self, follow: Follow) -> Floats:
        """What its control has read of a picture, (channels, latent height, latent width); kept as long as the request."""
        if follow not in self._read_of:
            levels = follow.picture[None].astype(np.float32) / np.float32(255)
            self._read_of[follow] = self._controls[follow.stage].embed({PICTURE: levels})[EMBEDDED][0]
        return self._read_of[follow]


def _by_request(made: Floats, asked: Sequence[tuple[NDArray[np.int64], Conditioning, Follow]]) -> list[Floats]:
    return np.split(made, [*accumulate(len(rows) for rows, _, _ in asked)][:-1])
