"""diffusers' schedulers, turned into tables.

A scheduler step is linear in the latents, the model outputs and the noise. So the real scheduler is run once on basis
vectors (initial latents e₀, model output k = eₖ, noise draw k = nₖ); every latent it returns is then a vector of
coefficients, and each step is solved for the shortest history that reproduces it. No sampler's mathematics is copied by hand.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ExportError

# Our name → (diffusers class, what sets it apart from the class's defaults).
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "deis": ("DEISMultistepScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
# Our name → the scheduler options it means. "default" leaves the folder's own scheduler config as it is.
SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}
MAX_STEPS = 100
# (latents, model outputs) of history, tried in this order; a step must fit to TOLERANCE of its largest coefficient.
HISTORIES = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 5))
TOLERANCE = 2e-6
# Coefficients below this share of the largest are rounding of the scheduler's own float32.
NEGLIGIBLE = 1e-8

Vector = NDArray[np.float64]


@dataclass
class Trace:
    """One run of a scheduler on basis vectors, R model calls."""

    init_noise_sigma: float
    timesteps: list[float]
    input_scales: list[float] = field(default_factory=list)
    latents: list[Vector] = field(default_factory=list)  # before row 0, after row 0, …
    noises: list[list[Vector]] = field(default_factory=list)  # the basis vectors drawn in each row


def default_sampler(scheduler_config: Mapping[str, Any]) -> tuple[str, str]:
    """Our names for the scheduler and schedule of a folder."""
    of_class = [name for name, (cls, _) in SAMPLERS.items() if cls == scheduler_config["_class_name"]]
    sde = str(scheduler_config.get("algorithm_type", "")).startswith("sde-")
    named = [name for name in of_class if name.endswith("_sde") == sde]
    if not named:
        known = sorted({cls for cls, _ in SAMPLERS.values()})
        raise ExportError(f"scheduler: {scheduler_config['_class_name']}; supported: {', '.join(known)}")
    schedules = [name for name, options in SCHEDULES.items() if any(scheduler_config.get(key) for key in options)]
    return named[0], schedules[0] if schedules else "default"


def scheduler(scheduler_config: Mapping[str, Any], sampler: str, schedule: str) -> Any:
    """The diffusers scheduler that a pair of our names means, over a folder's scheduler config.

    Raises:
        ExportError: the scheduler has no such schedule.
    """
    import diffusers

    name, options = SAMPLERS[sampler]
    cls = getattr(diffusers, name)
    known = set(inspect.signature(cls.__init__).parameters)
    if sampler == default_sampler(scheduler_config)[0]:
        options = {}  # the folder's own scheduler, with whatever its makers chose
    wanted = {**options, **SCHEDULES[schedule]}
    if missing := sorted(set(wanted) - known):
        raise ExportError(f"{sampler} × {schedule}: {name} has no {', '.join(missing)}")
    if schedule != "default":  # schedulers take one schedule at a time
        wanted = {**{option: False for other in SCHEDULES.values() for option in other if option in known}, **wanted}
    return cls.from_config(dict(scheduler_config), **wanted)


def legal_pairs(scheduler_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every pair of sampler and schedule that its scheduler supports."""
    pairs = []
    for sampler in SAMPLERS:
        for schedule in SCHEDULES:
            with contextlib.suppress(ExportError):
                scheduler(scheduler_config, sampler, schedule)
                pairs.append((sampler, schedule))
    return pairs


def tables(scheduler_config: Mapping[str, Any], sampler: str, schedule: str) -> dict[str, NDArray[Any]]:
    """The arrays of `triptych_serving.tables.SamplerTables` for 1 … MAX_STEPS steps of one pair."""
    solved = [
        solve(trace(scheduler(scheduler_config, sampler, schedule), steps), f"{sampler} × {schedule}, {steps} steps")
        for steps in range(1, MAX_STEPS + 1)
    ]
    widths = {name: max(table[name].shape[1] for table in solved) for name in ("latents", "noise_preds")}
    for table in solved:
        for name, width in widths.items():
            table[name] = np.pad(table[name], ((0, 0), (0, width - table[name].shape[1])))
    rows = [len(table["timestep"]) for table in solved]
    stacked = {name: np.concatenate([table[name] for table in solved]) for name in solved[0] if name != "draws"}
    arrays: dict[str, NDArray[Any]] = {name: array.astype(np.float32) for name, array in stacked.items()}
    arrays["draws"] = np.concatenate([table["draws"] for table in solved]).astype(np.uint8)
    arrays["offsets"] = np.concatenate([[0], np.cumsum(rows)]).astype(np.int32)
    return arrays


def trace(scheduler: Any, steps: int) -> Trace:
    """Run `scheduler` for `steps` on basis vectors."""
    import torch

    scheduler.set_timesteps(steps)
    timesteps = list(scheduler.timesteps)
    calls = len(timesteps)
    basis = torch.eye(1 + 3 * calls)[:, None, None, None, :]  # at most two draws a call, as KDPM2's and Heun's are
    drawn: list[Any] = []
    result = Trace(float(scheduler.init_noise_sigma), [float(t) for t in timesteps])
    latents = basis[0]
    result.latents.append(_vector(latents))
    with _drawing(scheduler, basis[1 + calls :], drawn):
        for call, timestep in enumerate(timesteps):
            scaled, before = _vector(scheduler.scale_model_input(latents, timestep)), _vector(latents)
            result.input_scales.append(float(scaled @ before / (before @ before)))
            drawn.clear()
            latents = scheduler.step(basis[1 + call], timestep, latents, return_dict=False)[0]
            result.latents.append(_vector(latents))
            result.noises.append([_vector(noise) for noise in drawn])
    return result


def solve(traced: Trace, what: str) -> dict[str, NDArray[Any]]:
    """One row per model call from a trace; columns newest first.

    Raises:
        ExportError: a step is not linear in a history this short.
    """
    rows = [_solve_row(traced, call, what) for call in range(len(traced.timesteps))]
    widths = [max(len(row[0]) for row in rows), max(len(row[1]) for row in rows)]
    return {
        "init_noise_sigma": np.array([traced.init_noise_sigma]),
        "timestep": np.array(traced.timesteps),
        "input_scale": np.array(traced.input_scales),
        "latents": np.stack([np.pad(row[0], (0, widths[0] - len(row[0]))) for row in rows]),
        "noise_preds": np.stack([np.pad(row[1], (0, widths[1] - len(row[1]))) for row in rows]),
        "noise": np.array([row[2] for row in rows]),
        "draws": np.array([len(noises) for noises in traced.noises]),
    }


def _solve_row(traced: Trace, call: int, what: str) -> tuple[Vector, Vector, float]:
    target, noises = traced.latents[call + 1], traced.noises[call][-1:]
    if len(traced.noises[call]) > 1:
        raise ExportError(f"{what}: draws noise {len(traced.noises[call])} times in one step; supported: once")
    residual = np.inf
    for old_latents, old_outputs in HISTORIES:
        latents = [traced.latents[call - i] for i in range(min(old_latents, call + 1))]
        outputs = [np.eye(len(target))[1 + call - j] for j in range(min(old_outputs, call + 1))]
        columns = np.stack([*latents, *outputs, *noises], axis=1)
        solution = np.linalg.lstsq(columns, target, rcond=1e-9)[0]
        residual = np.abs(columns @ solution - target).max() / np.abs(target).max()
        if residual <= TOLERANCE:
            solution[np.abs(solution) < NEGLIGIBLE * np.abs(solution).max()] = 0
            parts = np.split(solution, [len(latents), len(latents) + len(outputs)])
            return parts[0], parts[1], float(parts[2][0]) if noises else 0.0
    raise ExportError(f"{what}: step {call + 1} is not a row of a table (residual {residual:.1e} > {TOLERANCE:.0e})")


@contextlib.contextmanager
def _drawing(scheduler: Any, basis: Any, drawn: list[Any]) -> Iterator[None]:
    """While it lasts, the scheduler's noise is the next basis vector, noted in `drawn`."""
    module, fresh = sys.modules[type(scheduler).__module__], iter(basis)

    def randn_tensor(*_args: Any, **_options: Any) -> Any:
        drawn.append(next(fresh))
        return drawn[-1]

    original = getattr(module, "randn_tensor", None)
    module.randn_tensor = randn_tensor  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if original is not None:
            module.randn_tensor = original  # type: ignore[attr-defined]


def _vector(tensor: Any) -> Vector:
    return np.asarray(tensor.detach().double().numpy().reshape(-1))
