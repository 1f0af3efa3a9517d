"""What the loop asks of a denoising model, whatever runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .adapters.mix import Mix

Floats = NDArray[np.float32]
# The inputs of rows with an image prompt: tokens of a picture, (rows, tokens, width), and adapters' weights, (rows, adapters).
PROMPT = ("image_tokens", "image_scales")


@dataclass(frozen=True, eq=False)
class Follow:
    """One control of a request: its stage, the picture that it follows, (3, height, width) uint8, and how strongly."""

    stage: str
    picture: NDArray[np.uint8]
    scale: float


class Kind(NamedTuple):
    """A kind of step: guided, with both rows, or not, with the last only; and which of its request's controls are on."""

    guided: bool
    follows: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One request's rows of conditioning for one model, unconditional first, by the names of the graph's inputs.

    Every array is (rows, …) float32. A request with adapters has a `mix`, whose slabs are made whenever they are asked
    for: those of all who wait would not fit into memory. What it `follows` are the pictures of its controls.
    """

    arrays: Mapping[str, Floats]
    mix: Mix | None = None
    follows: tuple[Follow, ...] = ()

    def __getitem__(self, name: str) -> Floats:
        kept = self.kept(name)
        return kept if len(kept) == len(self) else np.broadcast_to(kept, (len(self), *kept.shape[1:]))

    def kept(self, name: str) -> Floats:
        """Give an input as it is to be kept: a slab is one row, which all rows share."""
        return self.arrays[name] if self.mix is None or name in self.arrays else self.mix.slab(name)[None]

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a row of an input."""
        return self.arrays[name].shape[1:] if self.mix is None or name in self.arrays else self.mix.shape(name)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def adapted(self) -> bool:
        """Whether its rows are for a graph with more inputs than the plain one."""
        return self.mix is not None or PROMPT[0] in self.arrays

    def of_step(self, kind: Kind) -> Conditioning:
        """What a step of this kind reads of it."""
        arrays = self.arrays if kind.guided else {name: array[-1:] for name, array in self.arrays.items()}
        return Conditioning(arrays, self.mix, tuple(self.follows[k] for k in kind.follows if self.follows))


def only(timestep: Floats) -> Floats:
    """The one timestep of all rows, (R,) → ().

    Raises:
        ValueError: they have several.
    """
    if (timestep != timestep[0]).any():
        raise ValueError(f"timesteps {sorted(set(timestep.tolist()))} given; legal: one for all rows")
    return np.asarray(timestep[0])


def calls(conditioning: Sequence[Conditioning], most: int) -> Iterator[tuple[slice, tuple[Conditioning, ...]]]:
    """Split a batch into calls of at most `most` rows, no request over two of them: the rows of each, and whose they are."""
    members: list[Conditioning] = []
    begin = end = 0
    for one in conditioning:
        if members and end - begin + len(one) > most:
            yield slice(begin, end), tuple(members)
            begin, members = end, []
        members.append(one)
        end += len(one)
    yield slice(begin, end), tuple(members)


class Part(NamedTuple):
    """The requests of a batch that go through one graph: which rows of the batch are theirs, (R,), and their conditioning."""

    rows: NDArray[np.bool_]
    members: list[Conditioning]


def parted(conditioning: Sequence[Conditioning], by: Callable[[Conditioning], bool]) -> dict[bool, Part]:
    """Part a batch by what tells its requests' graphs apart; a part that nobody is in is left out."""
    tells = [by(one) for one in conditioning]
    rows = np.repeat(tells, [len(one) for one in conditioning])
    members = {told: [one for one, its in zip(conditioning, tells, strict=True) if its == told] for told in set(tells)}
    return {told: Part(rows == told, members[told]) for told in sorted(members, reverse=True)}


def padded(array: Floats, rows: int) -> Floats:
    """Pad an array to `rows` rows by repeating its last row."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


class Made(NamedTuple):
    """What a job had before a row of its table: the latents that go into it, and the prediction that they were made with."""

    row: int
    latents: Floats  # (C, h, w)
    noise_pred: Floats  # (C, h, w)


class Denoiser(Protocol):
    """Predicts noise for a batch of rows, each at its own timestep; some models take rows of one timestep only.

    The result for a row must not depend on the other rows: same bytes alone and in company.
    """

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        """(R, C, h, w) scaled latents, (R,) timesteps and conditioning of R rows in all → (R, C, h, w) float32."""
        ...

    def release(self, conditioning: Conditioning) -> None:
        """Keep nothing of it: its request needs this model no more. It may never have been seen."""
        ...
