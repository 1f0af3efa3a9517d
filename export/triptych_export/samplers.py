"""diffusers' schedulers, turned into tables: which pairs of sampler and schedule there are, and the tables of each."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from triptych_serving.tables import SamplerTables

from .errors import ExportError
from .tracing import LATENT, OUTPUT, Draws, Run, apart, run_scheduler, run_table, tapped, trace
from .weights import defaults_of


class Sampler(NamedTuple):
    """What one of our names means."""

    scheduler: str  # diffusers' class
    options: dict[str, Any]  # what sets it apart from the class's defaults
    a1111: str  # what A1111 and the tools that read its texts call it


MULTISTEP, EDM_MULTISTEP = "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"
ODE, SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
FINAL = {"lower_order_final": True}  # what the scheduler changes it to by itself, with a warning
SAMPLERS = {
    "ddim": Sampler("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}, "DDIM"),
    "ddpm": Sampler("DDPMScheduler", {"clip_sample": False}, "DDPM"),
    "deis": Sampler("DEISMultistepScheduler", {}, "DEIS"),
    "dpm2": Sampler("KDPM2DiscreteScheduler", {}, "DPM2"),
    "dpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", {}, "DPM2 a"),
    "dpmpp_2m": Sampler(MULTISTEP, {**ODE, "solver_order": 2}, "DPM++ 2M"),
    "dpmpp_2m_sde": Sampler(MULTISTEP, {**SDE, "solver_order": 2}, "DPM++ 2M SDE"),
    "dpmpp_2s": Sampler("DPMSolverSinglestepScheduler", {**ODE, "solver_order": 2, **FINAL}, "DPM++ 2S"),
    "dpmpp_3m": Sampler(MULTISTEP, {**ODE, "solver_order": 3}, "DPM++ 3M"),
    "dpmpp_3m_sde": Sampler(MULTISTEP, {**SDE, "solver_order": 3}, "DPM++ 3M SDE"),
    "edm_dpmpp_2m": Sampler(EDM_MULTISTEP, {**ODE, "solver_order": 2}, "DPM++ 2M"),
    "edm_dpmpp_2m_sde": Sampler(EDM_MULTISTEP, {**SDE, "solver_order": 2}, "DPM++ 2M SDE"),
    "edm_euler": Sampler("EDMEulerScheduler", {}, "Euler"),
    "euler": Sampler("EulerDiscreteScheduler", {}, "Euler"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", {}, "Euler a"),
    "heun": Sampler("HeunDiscreteScheduler", {}, "Heun"),
    "lcm": Sampler("LCMScheduler", {"clip_sample": False}, "LCM"),
    "lms": Sampler("LMSDiscreteScheduler", {}, "LMS"),
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}, "PLMS"),
    "sa_solver": Sampler("SASolverScheduler", {}, "SA-Solver"),
    "tcd": Sampler("TCDScheduler", {"clip_sample": False}, "TCD"),
    "unipc": Sampler("UniPCMultistepScheduler", {}, "UniPC"),
}
# Our name → the scheduler options it means. "default" leaves the folder's own scheduler config as it is.
SCHEDULES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear"},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "zero_snr": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
}
# Schedules that are no option of a scheduler but the timesteps of a distillation, and the sampler that they are for.
TIMESTEPS: dict[str, tuple[str, Callable[[int], list[int]]]] = {
    # tianweiy/DMD2: 999, 749, 499, 249 for its four-step weights, 399 for its one-step weights.
    "dmd2": ("lcm", lambda steps: [399] if steps == 1 else [1000 * left // steps - 1 for left in range(steps, 0, -1)]),
}
SCHEDULES |= {schedule: {} for schedule in TIMESTEPS}
EDM_SCHEDULES = {
    **SCHEDULES,
    "karras": {"sigma_schedule": "karras"},
    "exponential": {"sigma_schedule": "exponential"},
}
# Where sigmas come from; a scheduler takes one of these at a time, so naming a schedule clears them.
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
EDM = {"EDMEulerScheduler", EDM_MULTISTEP}
MAX_STEPS = 100
# Step counts at which a pair is tried out before it counts as legal, and at which a finished table is run.
TRIED, CHECKED = (1, 4), (1, 4, 20, 50)
# A clipping or thresholding scheduler behaves at small values. Outputs that have nothing to do with the latents also make
# more of float32's rounding than a model's, so this many times what `apart` allows still passes.
LARGE, LENIENCE = 10.0, 10.0

Arrays = dict[str, NDArray[Any]]


class StepsRefused(ExportError):
    """The scheduler does not take so many steps."""


def default_sampler(scheduler_config: Mapping[str, Any]) -> tuple[str, str]:
    """Our names for the scheduler and schedule of a folder.

    Raises:
        ExportError: no name of ours means this scheduler.
    """
    of_class = [name for name, (cls, *_) in SAMPLERS.items() if cls == scheduler_config["_class_name"]]
    if not of_class:
        known = sorted({sampler.scheduler for sampler in SAMPLERS.values()})
        raise ExportError(f"scheduler: {scheduler_config['_class_name']}; supported: {', '.join(known)}")
    # "sde-dpmsolver" is nearer to "sde-dpmsolver++" than to "dpmsolver++".
    given = {key: str(value).rstrip("+") for key, value in scheduler_config.items()}
    fits = [sum(given.get(k) == str(v).rstrip("+") for k, v in SAMPLERS[name].options.items()) for name in of_class]
    schedules = _schedules(scheduler_config["_class_name"])
    named = [name for name in ("karras", "exponential", "beta") if schedules[name].items() <= scheduler_config.items()]
    return of_class[int(np.argmax(fits))], named[0] if named else "default"


def scheduler(scheduler_config: Mapping[str, Any], sampler: str, schedule: str) -> Any:
    """The diffusers scheduler that a pair of our names means, over a folder's scheduler config; call `set_timesteps` next.

    Raises:
        ExportError: the scheduler has no such schedule, or is not for this folder.
    """
    cls, wanted = _meaning(scheduler_config, sampler, schedule)
    cls = _timed(cls, TIMESTEPS[schedule][1]) if schedule in TIMESTEPS else cls
    set_timesteps = cls.set_timesteps
    # KDPM2's constructors call it for 1000 steps, which takes half a second; two are enough there.
    cls.set_timesteps = lambda made, _steps, *rest: set_timesteps(made, 2, *rest)
    try:
        return cls.from_config(dict(scheduler_config), **wanted)
    except (NotImplementedError, ValueError) as error:
        raise ExportError(f"{sampler} × {schedule}: {cls.__name__} refuses it ({error})") from None
    finally:
        cls.set_timesteps = set_timesteps


def _timed(cls: Any, timesteps: Callable[[int], list[int]]) -> Any:
    """A scheduler's class whose runs have these timesteps."""

    def set_timesteps(made: Any, steps: int) -> None:
        if steps > made.config.original_inference_steps:
            raise ValueError(f"more than {made.config.original_inference_steps}")
        cls.set_timesteps(made, timesteps=timesteps(steps))

    return type(cls.__name__, (cls,), {"set_timesteps": set_timesteps, "__module__": cls.__module__})


def _meaning(scheduler_config: Mapping[str, Any], sampler: str, schedule: str) -> tuple[Any, dict[str, Any]]:
    """The diffusers class and the options that differ from the folder's."""
    name, options, _ = SAMPLERS[sampler]
    if (name in EDM) != (scheduler_config["_class_name"] in EDM):
        trained = "was not" if name in EDM else "was"
        raise ExportError(f"{sampler} × {schedule}: the model {trained} trained with EDM preconditioning")
    if schedule in TIMESTEPS and sampler != TIMESTEPS[schedule][0]:
        raise ExportError(f"{sampler} × {schedule}: these timesteps are for {TIMESTEPS[schedule][0]}")
    cls = getattr(diffusers, name)
    own = sampler == default_sampler(scheduler_config)[0]
    wanted = {**({} if own else options), **_schedules(name)[schedule]}
    if missing := sorted(wanted.keys() - _parameters(cls).keys()):
        raise ExportError(f"{sampler} × {schedule}: {name} has no {', '.join(missing)}")
    cleared = () if schedule == "default" else SIGMAS
    return cls, {**{option: False for option in cleared if option in _parameters(cls)}, **wanted}


def _config(scheduler_config: Mapping[str, Any], sampler: str, schedule: str) -> dict[str, Any]:
    """Every option that the scheduler gets, or has by default."""
    cls, wanted = _meaning(scheduler_config, sampler, schedule)
    given = {**scheduler_config, **wanted}
    return {name: given.get(name, parameter.default) for name, parameter in _parameters(cls).items()}


def completed(scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's scheduler config, with what it leaves out as its class has it.

    Raises:
        ExportError: no name of ours means its scheduler.
    """
    name = SAMPLERS[default_sampler(scheduler_config)[0]].scheduler
    return {**defaults_of(getattr(diffusers, name)), **scheduler_config}


@cache
def _parameters(cls: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls.__init__).parameters


def legal_pairs(scheduler_config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every pair of sampler and schedule that tables can hold."""
    return [pair for pair, reason in _verdicts(json.dumps(dict(scheduler_config))).items() if reason is None]


def illegal_pairs(scheduler_config: Mapping[str, Any]) -> dict[tuple[str, str], str]:
    """All other pairs, and why."""
    verdicts = _verdicts(json.dumps(dict(scheduler_config)))
    return {pair: reason for pair, reason in verdicts.items() if reason is not None}


def canonical(scheduler_config: Mapping[str, Any], sampler: str, schedule: str) -> str:
    """The first schedule that means the very same scheduler config: its tables serve for `schedule` too."""
    wanted = _config(scheduler_config, sampler, schedule)
    if schedule in TIMESTEPS:
        return schedule
    for earlier in SCHEDULES:
        with contextlib.suppress(ExportError):
            if _config(scheduler_config, sampler, earlier) == wanted:
                return earlier
    return schedule


def tables(scheduler_config: Mapping[str, Any], sampler: str, schedule: str) -> tuple[Arrays, dict[str, Any]]:
    """The arrays of `triptych_serving.tables.SamplerTables` for 1, 2, … steps of one pair, and what else a caller must know.

    The facts are `max_steps`, the largest step count, and `inpaint`, whether the rows hold for latents that were replaced
    between steps.

    Raises:
        ExportError: no table can hold this pair; the sampler, the schedule and the reason.
    """
    made, what = scheduler(scheduler_config, sampler, schedule), f"{sampler} × {schedule}"
    with tapped(made) as draws:
        return read_tables(made, draws, what)


def read_tables(made: Any, draws: Draws, what: str, middle: bool = True) -> tuple[Arrays, dict[str, Any]]:
    """The same of any scheduler, whose `draws` are tapped; `what` names it in errors.

    Without `middle`, runs that start in the middle have no rows of their own, as for a scheduler without memory.
    """
    runs: dict[int, Run] = {}
    with torch.inference_mode():
        with contextlib.suppress(StepsRefused):
            for steps in CHECKED:
                runs[steps] = _trace(made, draws, steps, what, middle=middle)
                _check(made, draws, runs[steps], steps, what)
        longest = max((len(own) for run in runs.values() for own in run.warm_ups), default=0)
        held: list[Run] = []
        with contextlib.suppress(StepsRefused):
            for steps in range(1, MAX_STEPS + 1):
                held += [runs.get(steps) or _trace(made, draws, steps, what, longest, middle)]
    return assemble(held, made.order), {"max_steps": len(held), "inpaint": all(run.inpaint for run in held)}


def table(
    scheduler_config: Mapping[str, Any], sampler: str, schedule: str, steps: int, middle: bool = False
) -> SamplerTables:
    """The tables of one step count, as if that were all 1 step has; with `middle`, for runs that start in the middle too.

    Raises:
        StepsRefused: the scheduler does not take so many steps.
        ExportError: no table can hold it.
    """
    made, what = scheduler(scheduler_config, sampler, schedule), f"{sampler} × {schedule}"
    with tapped(made) as draws, torch.inference_mode():
        return SamplerTables(**assemble([_trace(made, draws, steps, what, middle=middle)], made.order))


def assemble(runs: Sequence[Run], order: int) -> Arrays:
    """The fields of `SamplerTables`, from the runs of 1, 2, … steps."""
    rows = [row for run in runs for row in run.rows]
    own = [warm_up for run in runs for warm_up in run.warm_ups]
    warm = [row for warm_up in own for row in warm_up]
    weights = np.array([row.weights for row in [*rows, *warm]])
    latents, outputs = (_narrow(weights[:, :, kind]) for kind in (LATENT, OUTPUT))
    noise, (clean, added) = np.array([row.noise for row in [*rows, *warm]]), np.concatenate([r.noising for r in runs]).T
    floats = {
        "init_noise_sigma": np.array([run.init_noise_sigma for run in runs]),
        "timestep": np.array([row.timestep for row in rows]),
        "input_scale": np.array([row.input_scale for row in rows]),
        "latents": latents[: len(rows)],
        "noise_preds": outputs[: len(rows)],
        "noise": noise[: len(rows)],
        "clean": clean,
        "added": added,
        "warm_latents": latents[len(rows) :],
        "warm_noise_preds": outputs[len(rows) :],
        "warm_noise": noise[len(rows) :],
    }
    return {
        "offsets": np.cumsum([0, *(len(run.rows) for run in runs)]).astype(np.int32),
        "warm_offsets": np.cumsum([0, *map(len, own)]).astype(np.int32),
        "order": np.array(order, np.uint8),
        "draws": np.array([row.draws for row in rows], np.uint8),
        **{name: array.astype(np.float32) for name, array in floats.items()},
    }


def packed(arrays: Arrays) -> bytes:
    """The file that `load_tables` reads, an `.npz.xz`: a quarter less than a compressed `.npz`. Same arrays, same bytes."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return lzma.compress(file.getvalue())


def _narrow(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the columns that no row uses; one at least."""
    used = np.flatnonzero(weights.any(axis=0))
    return weights[:, : used[-1] + 1 if len(used) else 1]


def _trace(made: Any, draws: Draws, steps: int, what: str, longest: int | None = None, middle: bool = True) -> Run:
    try:
        return trace(made, draws, steps, longest, middle)
    except ExportError as error:
        raise ExportError(f"{what}, {steps} steps: {error}") from None
    except (ArithmeticError, LookupError, ValueError) as error:
        raise StepsRefused(f"{what}: {type(made).__name__} does not take {steps} steps ({error})") from None


def _check(made: Any, draws: Draws, run: Run, steps: int, what: str) -> None:
    """Whether table and scheduler make the same of large random latents, outputs and noise."""
    rows = SamplerTables(**assemble([run], made.order)).steps(1)
    generator = torch.Generator().manual_seed(steps)
    randoms = [LARGE * torch.randn((1, 4, 8, 8), generator=generator) for _ in range(2 * len(rows) + 1)]
    outputs, noises, latents = randoms[: len(rows)], randoms[len(rows) : -1], randoms[-1]
    draws.source = iter(noises)
    theirs = run_scheduler(made, steps, latents, lambda _sample, _timestep, k: outputs[k])
    ours = run_table(
        rows, latents.numpy(), lambda _sample, _timestep, k: outputs[k].numpy(), (noise.numpy() for noise in noises)
    )
    difference, allowed = apart(ours, theirs)
    if not difference <= LENIENCE * allowed:
        raise ExportError(f"{what}, {steps} steps: is not linear (off by {difference:.1e}); does it clip?")


def _schedules(name: str) -> dict[str, dict[str, Any]]:
    return EDM_SCHEDULES if name in EDM else SCHEDULES


@lru_cache(maxsize=4)
def _verdicts(scheduler_config: str) -> dict[tuple[str, str], str | None]:
    """For every pair why it is illegal, or None."""
    config = json.loads(scheduler_config)
    verdicts: dict[tuple[str, str], str | None] = {}
    for sampler, schedule in itertools.product(SAMPLERS, SCHEDULES):
        try:
            _try(config, sampler, schedule)
            verdicts[sampler, schedule] = None
        except ExportError as error:
            verdicts[sampler, schedule] = str(error).partition(": ")[2]
    return verdicts


def check(scheduler_config: Mapping[str, Any]) -> None:
    """Try the folder's own pair at a few step counts.

    Raises:
        ExportError: no table can hold it, or no name of ours means its scheduler.
    """
    pair = default_sampler(scheduler_config)
    try:
        _try(scheduler_config, *pair)
    except ExportError as error:
        options = _config(scheduler_config, *pair)
        bends = [f"with {name} true" for name in ("clip_sample", "thresholding") if options.get(name)]
        found = " ".join([str(scheduler_config["_class_name"]), *bends, str(error).partition(": ")[2]])
        raise ExportError(f"scheduler/scheduler_config.json: {found}; supported: steps that are linear") from None


def _try(config: Mapping[str, Any], sampler: str, schedule: str) -> None:
    """Trace a few step counts.

    Raises:
        ExportError: the pair is illegal; why.
    """
    made, what, name = scheduler(config, sampler, schedule), f"{sampler} × {schedule}", SAMPLERS[sampler].scheduler
    with tapped(made) as draws, torch.inference_mode():
        for steps in TRIED:
            run = _trace(made, draws, steps, what)
            _check(made, draws, run, steps, what)
        if _config(config, sampler, schedule) == _config(config, sampler, "default"):
            return
        if _same(run, _trace(scheduler(config, sampler, "default"), draws, steps, what, middle=False)):
            raise ExportError(f"{what}: {name} ignores {', '.join(_schedules(name)[schedule])}")


def _same(one: Run, other: Run) -> bool:
    return all(
        a.timestep == b.timestep and np.array_equal(a.weights, b.weights)
        for a, b in zip(one.rows, other.rows, strict=True)
    )
