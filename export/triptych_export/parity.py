"""Whether tables make what diffusers' schedulers make: `python -m triptych_export.parity`.

A small random UNet predicts noise once for diffusers' own loop and once for the table's, from the same initial noise and
with the same draws. Every legal pair of sampler and schedule is run, or a random share of them.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from triptych_contract.sdxl import FAMILY
from triptych_contract.sdxl.card import SdxlCard
from triptych_serving.manifest import Manifest

from . import samplers
from .errors import ExportError
from .tracing import TOLERANCE, apart, run_scheduler, run_table, tapped

STEPS = (4, 20, 37, 50)
SHAPE = (1, 4, 8, 8)
SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
# What a folder's scheduler config says → which of its pairs are run.
FOLDERS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "SDXL": (SDXL, lambda _schedule: True),
    "SDXL, v-prediction": ({**SDXL, "prediction_type": "v_prediction"}, lambda schedule: schedule == "zero_snr"),
    "EDM": ({"_class_name": "EDMDPMSolverMultistepScheduler"}, lambda _schedule: True),
}


@dataclass(frozen=True)
class Pair:
    """A sampler and schedule of a folder."""

    folder: str
    sampler: str
    schedule: str

    def __str__(self) -> str:
        return f"{self.folder}: {self.sampler} × {self.schedule}"


@dataclass(frozen=True)
class Figure:
    """How far a table is from its scheduler, relative to the largest of the last latents."""

    difference: float
    allowed: float


Figures = Mapping[Pair, Mapping[int, Figure]]
ABOUT = {
    "SDXL": "A folder with SDXL base's own scheduler config: epsilon, scaled_linear, leading.",
    "SDXL, v-prediction": "The same, trained to predict v down to a signal-to-noise ratio of zero.",
    "EDM": "A folder whose own scheduler is an EDM one, as Playground v2.5's.",
}
INTRODUCTION = """# Samplers

`python -m triptych_export.parity --output docs/samplers.md --build DEMO` wrote this page. It ran the {pairs} pairs of sampler and
schedule below twice, in diffusers' own loop and from our tables, with the same small random UNet and the same noise, for 4,
20, 37 and 50 steps. A cell is the largest difference of the last latents over these step counts, relative to the largest of
them; more than 1e-5 ends the script with an error. Where latents begin at 4096 times the noise (zero_snr), float32 itself
rounds more than that away: such cells have a \\*. All tables of a folder like SDXL's, as the
demo model has them, are {files} files for 1 … 100 steps and take {size:.1f} MB; schedules that mean the same config share one."""


def every_pair() -> list[Pair]:
    """Every pair there is to compare."""
    return [
        Pair(folder, *pair)
        for folder, (config, run) in FOLDERS.items()
        for pair in samplers.legal_pairs(config)
        if run(pair[1])
    ]


def share(fraction: float, seed: int) -> list[Pair]:
    """A random `fraction` of all pairs, at least one; `seed` decides which."""
    pairs = every_pair()
    return random.Random(seed).sample(pairs, max(1, round(fraction * len(pairs))))  # noqa: S311


def compare(pair: Pair) -> dict[int, Figure]:
    """By step count, for those of STEPS that the scheduler takes."""
    figures, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)  # for tensors as small as these, more of them only wait for each other
    try:
        for steps in STEPS:
            figures[steps] = _compare(pair, steps)
    except samplers.StepsRefused:
        pass
    finally:
        torch.set_num_threads(threads)
    return figures


def _compare(pair: Pair, steps: int) -> Figure:
    config = FOLDERS[pair.folder][0]
    rows = samplers.table(config, pair.sampler, pair.schedule, steps).steps(1)
    generator = torch.Generator().manual_seed(steps)
    latents, *noises = (torch.randn(SHAPE, generator=generator) for _ in range(1 + int(rows.draws.sum())))
    made = samplers.scheduler(config, pair.sampler, pair.schedule)
    with tapped(made, integrals=False) as draws, torch.inference_mode():
        draws.source = iter(noises)
        theirs = run_scheduler(made, steps, latents, lambda x, t, _k: _unet()(x, t))
        ours = run_table(
            rows,
            latents.numpy(),
            lambda x, t, _k: _unet()(torch.from_numpy(x), t).numpy(),
            (noise.numpy() for noise in noises),
        )
    return Figure(*apart(ours, theirs))


@lru_cache(maxsize=1)
def _unet() -> Any:
    """A UNet small in size and in what it answers, so that differences in float32 do not grow from step to step."""
    import diffusers

    torch.manual_seed(0)
    model: Any = diffusers.UNet2DConditionModel
    unet = model(
        in_channels=SHAPE[1],
        out_channels=SHAPE[1],
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    with torch.no_grad():
        unet.conv_out.weight *= 0.3
    unet.eval().requires_grad_(False)
    return lambda sample, timestep: unet(sample, timestep, torch.zeros(1, 1, 8)).sample


def page(figures: Figures, build: Manifest) -> str:
    """docs/samplers.md, from all figures and a build of a folder like SDXL's own with all tables."""
    if not isinstance(build.model, SdxlCard):
        raise ExportError(f"--build: of family {build.family}; supported: {FAMILY.name}")
    tables = {name: list(card.schedules.values()) for name, card in build.model.samplers.items()}
    files = {table.path for cards in tables.values() for table in cards}
    size = sum(build.artifacts[path]["bytes"] for path in files) / 1e6
    parts = [INTRODUCTION.format(pairs=len(figures), files=len(files), size=size)]
    for folder, about in ABOUT.items():
        parts += [f"## {folder}", about, _worst(folder, figures), _details(folder, figures)]
    most = {name: max(table.max_steps for table in cards) for name, cards in tables.items()}
    limits = [f"- `{name}` takes at most {steps} steps." for name, steps in most.items() if steps < samplers.MAX_STEPS]
    hidden = [name for name, cards in tables.items() if not all(table.inpaint for table in cards)]
    limits += [f"- `{name}` keeps latents to itself: not for inpainting." for name in hidden]
    parts += ["## Limits", "\n".join(limits)]
    return "\n\n".join([*parts, "## Pairs that there are not", _illegal()]) + "\n"


def _worst(folder: str, figures: Figures) -> str:
    own = {pair: worst for pair, by_steps in figures.items() if pair.folder == folder for worst in [_largest(by_steps)]}
    schedules = [name for name in samplers.SCHEDULES if any(pair.schedule == name for pair in own)]
    lines = [["sampler", "A1111", "diffusers", "calls in 20 steps", *schedules]]
    for sampler in dict.fromkeys(pair.sampler for pair in own):
        cells = [own.get(Pair(folder, sampler, schedule), "") for schedule in schedules]
        cls, _, a1111 = samplers.SAMPLERS[sampler]
        lines.append([f"`{sampler}`", a1111, cls.removesuffix("Scheduler"), str(_calls(folder, sampler)), *cells])
    return _table(lines)


def _details(folder: str, figures: Figures) -> str:
    own = [(pair, by_steps) for pair, by_steps in figures.items() if pair.folder == folder]
    lines = [["sampler", "schedule", *(f"{steps} steps" for steps in STEPS)]]
    for pair, by_steps in own:
        cells = [_figure(by_steps[steps]) if steps in by_steps else "" for steps in STEPS]
        lines.append([f"`{pair.sampler}`", pair.schedule, *cells])
    return f"<details><summary>By step count</summary>\n\n{_table(lines)}\n\n</details>"


def _illegal() -> str:
    grouped: dict[str, dict[str, list[str]]] = {}
    for (sampler, schedule), reason in samplers.illegal_pairs(SDXL).items():
        grouped.setdefault(reason, {}).setdefault(sampler, []).append(schedule)
    lines = [["reason, for a folder like SDXL's", "pairs"]]
    for reason, by_sampler in grouped.items():
        pairs = [
            f"{name} × {'all' if schedules == [*samplers.SCHEDULES] else ', '.join(schedules)}"
            for name, schedules in by_sampler.items()
        ]
        lines.append([reason, "; ".join(pairs)])
    return _table(lines)


def _largest(by_steps: Mapping[int, Figure]) -> str:
    return _figure(max(by_steps.values(), key=lambda figure: figure.difference / figure.allowed))


def _figure(figure: Figure) -> str:
    return f"{figure.difference:.0e}".replace("e-0", "e-") + ("\\*" if figure.difference > TOLERANCE else "")


def _calls(folder: str, sampler: str) -> int:
    made = samplers.scheduler(FOLDERS[folder][0], sampler, "default")
    made.set_timesteps(20)
    return len(made.timesteps)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|" + " --- |" * len(lines[0]), *rest])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, say what was found, and write the page when asked; 1 when a pair is too far apart."""
    parser = argparse.ArgumentParser(prog="triptych_export.parity", description=__doc__)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of all pairs, at random")
    parser.add_argument("--seed", type=int, default=0, help="which share")
    parser.add_argument("--output", type=Path, help="write a page of all figures here; needs --build")
    parser.add_argument("--build", type=Path, help="an export of a folder like SDXL's, with all tables")
    options = parser.parse_args(arguments)
    if options.output and (options.fraction < 1 or not options.build):
        parser.error("a page needs all pairs, so no --fraction, and a --build")
    figures = {pair: compare(pair) for pair in share(options.fraction, options.seed)}
    apart = [
        f"{pair}, {steps} steps: {figure.difference:.1e} > {figure.allowed:.1e}"
        for pair, by_steps in figures.items()
        for steps, figure in by_steps.items()
        if not figure.difference <= figure.allowed
    ]
    worst = max(figure.difference for by_steps in figures.values() for figure in by_steps.values())
    print(f"{len(figures)} pairs, worst {worst:.1e}", *apart, sep="\n")  # noqa: T201
    if options.output:
        ordered = {pair: figures[pair] for pair in every_pair()}
        options.output.write_text(page(ordered, Manifest.load(options.build)), encoding="utf-8")
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
