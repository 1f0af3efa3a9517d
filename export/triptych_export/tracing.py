"""Rows read off a diffusers scheduler.

A scheduler's step is linear in what goes into it. So every step gets unit vectors of one big basis: a latent Xₖ, a model
output Mₖ, noise draws nₖ, and what it returns *is* the row, in the scheduler's own float32. What it returns is never fed
back, so a row also holds where a caller replaces the latents between steps, as inpainting does.

UniPC and SA-Solver correct their latents one step later and keep the corrected ones to themselves (`last_sample`), so their
rows would reach back to the first step. There the hidden latents are a unit vector too, and are then expressed by the
latents that the scheduler returned, which makes the history short again, and a replaced latent wrong: not for inpainting.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triptych_serving.tables import SamplerTable

from .errors import ExportError

# What each step has in the basis. Two draws at most: some schedulers draw noise that they then weigh with zero.
LATENT, OUTPUT, NOISE, HIDDEN = 0, 1, slice(2, 4), 4
KINDS = 5
# A row may reach back this many steps, its own included.
DEPTH = 8
# Relative to a row's largest coefficient: rows that differ less are the same row …
SAME_ROW = 2e-6
# … and what is less is left over from eliminating the hidden latents in float32.
LEFT_OVER = 1e-6
# A run that starts in the middle has rows like the full run's from here on at the latest.
LONGEST_WARM_UP = 8
# How far latents may be from the scheduler's at the end, and what float32 takes of the largest on the way.
TOLERANCE, ROUNDING = 1e-5, 2e-7

Vector = NDArray[np.float64]
Predict = Callable[[Any, float, int], Any]  # (scaled latents, timestep, row) → model output
Mix = Callable[[Any, int, Any], Any]  # (latents, row, scheduler or table) → latents


@dataclass
class Row:
    """One step as read; `weights` is (DEPTH, KINDS), newest step first."""

    timestep: float
    input_scale: float
    draws: int
    weights: Vector

    @property
    def noise(self) -> float:
        """The weight of the last draw."""
        return float(self.weights[0, NOISE][self.draws - 1]) if self.draws else 0.0

    def like(self, other: Row) -> bool:
        """Whether both are the same step."""
        return bool(np.abs(self.weights - other.weights).max() <= SAME_ROW * np.abs(other.weights).max())


@dataclass
class Run:
    """All rows of one step count, R of them."""

    init_noise_sigma: float
    rows: list[Row]
    noising: (
        Vector  # (R, 2) weights of the image and of the noise in `add_noise` before each row; nan where it has none
    )
    warm_ups: list[list[Row]]  # (R) what a run that starts at this row has in place of its first rows
    inpaint: bool  # whether the rows hold for replaced latents


class Draws:
    """Takes the place of a scheduler's `randn_tensor` and hands out what is put in."""

    def __init__(self) -> None:
        self.source: Iterator[Any] = iter(())

    def __call__(self, *_args: Any, **_options: Any) -> Any:
        """The next draw."""
        try:
            return next(self.source)
        except StopIteration:
            raise ExportError("draws noise more than twice in one step; supported: once") from None


class GaussLegendre:
    """Takes the place of `scipy.integrate` in LMSDiscreteScheduler.

    Its integrand is a polynomial of degree 3 at most, for which two points are exact, and fifty times faster.
    """

    @staticmethod
    def quad(function: Callable[[Any], Any], low: Any, high: Any, **_options: Any) -> tuple[Any, float]:
        """∫ `function` from `low` to `high`, and 0 for the error."""
        middle, half = (high + low) / 2, (high - low) / 2
        points = middle + half * torch.tensor([-1, 1]) / 3**0.5
        return half * (function(points) + torch.zeros(2)).sum(), 0.0


@contextlib.contextmanager
def tapped(scheduler: Any, integrals: bool = True) -> Iterator[Draws]:
    """While it lasts, `scheduler` draws its noise from what is yielded, and has its `integrals` made short work of."""
    module, draws = sys.modules[type(scheduler).__module__], Draws()
    stand_ins = {"randn_tensor": draws, **({"integrate": GaussLegendre} if integrals else {})}
    originals = {name: getattr(module, name) for name in stand_ins if hasattr(module, name)}
    for name in originals:
        setattr(module, name, stand_ins[name])
    try:
        yield draws
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


def fresh(scheduler: Any) -> Any:
    """A scheduler that goes its own way from here. Tensors are shared: schedulers replace them, lists they change."""
    clone = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):
            setattr(clone, name, list(value))
    return clone


def trace(scheduler: Any, draws: Draws, steps: int, longest: int | None = None, middle: bool = True) -> Run:
    """Everything about a run of `steps` steps of a `tapped` scheduler.

    Without `longest` every run that starts in the middle is read to its end, which takes long. With it, `longest` rows of
    each are, as many as any warm-up is known to have, and a little more of three of them. Without `middle`, none is.

    Raises:
        ExportError: no table can hold it; the reason.
        ArithmeticError, LookupError, ValueError: the scheduler does not take so many steps.
    """
    scheduler = fresh(scheduler)
    scheduler.set_timesteps(steps)
    _remember(scheduler)
    count = len(scheduler.timesteps)
    rows = list(read(fresh(scheduler), draws, 0, count))
    noising = [_add_noise(begin(fresh(scheduler), first), first) for first in range(count)]
    hides = hasattr(scheduler, "last_sample")
    inpaint = not hides and (longest is not None or noising == _mixed_in(fresh(scheduler), draws, count))
    warm_ups: list[list[Row]] = [[] for _ in range(count)]
    firsts = range(scheduler.order, count, scheduler.order)
    for first in firsts if middle else ():
        sample = first in (firsts[0], firsts[len(firsts) // 2], firsts[-1])
        upto = count if longest is None else min(count, first + longest + 2 * sample)
        warm_ups[first] = _warm_up(fresh(scheduler), draws, first, rows[first:upto], longest)
    return Run(float(scheduler.init_noise_sigma), rows, np.array(noising), warm_ups, inpaint)


def _remember(scheduler: Any) -> None:
    """Work out once what depends on the step alone; most of the time goes there."""
    if hasattr(scheduler, "get_lms_coefficient"):
        scheduler.get_lms_coefficient = functools.cache(scheduler.get_lms_coefficient)
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        of_tensor = scheduler._sigma_to_alpha_sigma_t
        of_number = functools.cache(lambda sigma, dtype: of_tensor(torch.tensor(sigma, dtype=dtype)))
        scheduler._sigma_to_alpha_sigma_t = lambda sigma: (
            of_tensor(sigma) if sigma.dim() else of_number(sigma.item(), sigma.dtype)
        )


def begin(scheduler: Any, first: int) -> Any:
    """`scheduler`, told as the pipelines tell it that it starts at row `first`."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler


def read(scheduler: Any, draws: Draws, first: int, count: int) -> Iterator[Row]:
    """`count` rows from row `first` on, as a pipeline that starts there runs them."""
    begin(scheduler, first)
    basis, hidden, before = _basis(count), None, None
    for k, timestep in enumerate(scheduler.timesteps[first : first + count]):
        latent, output, *noises, corrected = basis[KINDS * k : KINDS * (k + 1)]
        draws.source = iter(noises)
        if hidden is not None:
            scheduler.last_sample = corrected
        scaled = _vector(scheduler.scale_model_input(latent, timestep))
        step = _vector(scheduler.step(output, timestep, latent, return_dict=False)[0])
        if hasattr(scheduler, "last_sample"):
            step, hidden = _shown(step, _vector(scheduler.last_sample), hidden, before, k)
            before = step
        made = len(noises) - len(list(draws.source))
        yield Row(float(timestep), float(scaled[KINDS * k]), made, _weights(step, k, made))


def _shown(
    step: Vector, corrected: Vector, hidden: Vector | None, before: Vector | None, k: int
) -> tuple[Vector, Vector]:
    """The step without hidden latents, and the next hidden latents, by latents that were returned.

    `hidden` are those that went in and `before` is the step before, both free of hidden latents.
    """
    at = KINDS * k + HIDDEN
    share, kept = step[at], corrected[at]
    if hidden is not None and before is not None:
        step, corrected = (_without_old_noise(_put(v, at, hidden), before, k) for v in (step, corrected))
    if not kept or not share:  # nothing hidden went in, or (the last step) nothing comes out
        return step, corrected
    following = corrected - step * (kept / share)
    following[at + 1 + LATENT : at + 2 + LATENT] += kept / share
    return step, _cleared(following)


def _put(vector: Vector, at: int, value: Vector) -> Vector:
    """`vector` with `value` in place of the basis vector `at`."""
    share = vector[at]
    rest = vector.copy()
    rest[at] = 0
    return _cleared(rest + share * value)


def _without_old_noise(vector: Vector, before: Vector, k: int) -> Vector:
    """`vector` without the noise of the step before, which the latents returned there tell."""
    for noise in np.arange(KINDS * (k - 1), KINDS * k)[NOISE]:
        if vector[noise]:
            told = -before / before[noise]
            told[noise] = 0
            told[KINDS * k + LATENT] = 1 / before[noise]
            vector = _put(vector, noise, told)
    return vector


def _cleared(vector: Vector) -> Vector:
    return np.where(np.abs(vector) < LEFT_OVER * np.abs(vector).max(), 0, vector)


def _weights(step: Vector, k: int, draws: int) -> Vector:
    newest_first = step.reshape(-1, KINDS)[k::-1]
    weights = np.zeros((DEPTH, KINDS))
    weights[: k + 1] = newest_first[:DEPTH]
    if not np.isfinite(step).all():
        raise ExportError("coefficients are not finite")
    if newest_first[DEPTH:].any() or weights[1:, NOISE].any():
        raise ExportError(f"a step depends on more than the newest {DEPTH} latents and outputs and its own noise")
    if np.any(weights[0, NOISE][: max(0, draws - 1)]):
        raise ExportError("uses noise that it draws before other noise in one step; supported: the last draw")
    return weights


def _warm_up(scheduler: Any, draws: Draws, first: int, full: list[Row], longest: int | None) -> list[Row]:
    """The rows that a run from row `first` has in place of the first of `full`."""
    own = list(read(scheduler, draws, first, len(full))) if full else []
    for row, usual in zip(own, full, strict=True):
        if (row.timestep, row.input_scale, row.draws) != (usual.timestep, usual.input_scale, usual.draws):
            raise ExportError(f"a run from row {first} sees other inputs than the full run")
    while own and own[-1].like(full[len(own) - 1]):
        own.pop()
    if len(own) > (LONGEST_WARM_UP if longest is None else longest):
        raise ExportError(f"a run from row {first} is still not like the full run after {len(own)} rows")
    return own


def _mixed_in(scheduler: Any, draws: Draws, count: int) -> list[tuple[float, float]]:
    """What inpainting gets from `add_noise` before each row."""
    rows, weights = read(begin(scheduler, 0), draws, 0, count), []
    for k in range(count):
        weights.append(_add_noise(scheduler, k))
        next(rows)
    return weights


def _add_noise(scheduler: Any, k: int) -> tuple[float, float]:
    if not hasattr(scheduler, "add_noise"):
        return float("nan"), float("nan")
    image, noise = _basis(1)[:2]
    weights = _vector(scheduler.add_noise(image, noise, scheduler.timesteps[k : k + 1]))
    return float(weights[0]), float(weights[1])


def _basis(steps: int) -> Any:
    return _eye(KINDS << max(8, steps.bit_length()))[: KINDS * steps, None, None, None, : KINDS * steps]


@functools.lru_cache(maxsize=1)
def _eye(size: int) -> Any:
    return torch.eye(size)


def _vector(tensor: Any) -> Vector:
    return np.asarray(tensor.numpy().reshape(-1), np.float64)


def run_scheduler(
    scheduler: Any, steps: int, latents: Any, predict: Predict, first: int = 0, mix: Mix | None = None
) -> list[Any]:
    """diffusers' own loop from row `first` on: the latents at its start and after each row.

    `latents` are noise, which the scheduler scales, or, where the run starts in the middle, what its `add_noise` gives.
    `mix(latents, k, scheduler)` may replace the latents that row k makes. Noise comes from whatever the scheduler draws.
    """
    scheduler = fresh(scheduler)
    scheduler.set_timesteps(steps)
    begin(scheduler, first)
    made = [latents if first else latents * scheduler.init_noise_sigma]
    for k, timestep in enumerate(scheduler.timesteps[first:]):
        output = predict(scheduler.scale_model_input(made[-1], timestep), float(timestep), k)
        new = scheduler.step(output, timestep, made[-1], return_dict=False)[0]
        made.append(mix(new, k, scheduler) if mix else new)
    return made


def run_table(
    rows: SamplerTable, latents: Any, predict: Predict, noises: Iterator[Any], first: int = 0, mix: Mix | None = None
) -> list[NDArray[np.float32]]:
    """The same as serving does it: NumPy, (1, C, h, w). `rows` start at row `first`; `noises` are drawn."""
    made = [latents if first else latents * np.float32(rows.init_noise_sigma)]
    outputs: list[Any] = []
    depth, width = rows.latents.shape[1], rows.noise_preds.shape[1]
    for k in range(len(rows)):
        outputs.insert(0, predict(rows.input_scale[k] * made[-1], float(rows.timestep[k]), k))
        drawn = [next(noises) for _ in range(rows.draws[k])]
        new = rows.advance(k, made[: -depth - 1 : -1], outputs[:width], drawn[-1] if drawn else None)
        made.append(mix(new, k, rows) if mix else new)
    return made


def apart(ours: list[NDArray[np.float32]], theirs: list[Any]) -> tuple[float, float]:
    """How far apart two runs end, and how far they may; relative to the largest of the last latents.

    float32 rounds where latents are largest. With a zero terminal signal-to-noise ratio some schedulers begin at 4096 times
    the noise, and what they round there is more than TOLERANCE of the end.
    """
    last = np.asarray(theirs[-1])
    end, largest = np.abs(last).max(), max(float(abs(x).max()) for x in theirs)
    return float(np.abs(ours[-1] - last).max() / end), float(TOLERANCE + ROUNDING * largest / end)
