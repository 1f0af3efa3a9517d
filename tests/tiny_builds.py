"""Random tiny SDXLs and Stable Cascades, exported once for all tests, two at a time."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from filelock import FileLock

SEEDS = range(6)
# One more, whose UNet reads masks; its refiner reads the base's own text encoder.
INPAINTING, RANK = 6, 12
CASCADES = range(4)
SAMPLERS = ["euler:default", "dpmpp_2m:karras", "euler_a:default", "heun:default", "unipc:default"]
# Bases with a refiner: whether its text encoder has weights of its own, and whether it reads aesthetic scores.
REFINERS = {0: (False, True), 4: (True, False)}
# Builds for adapters: the largest sum of their ranks. One with convolutions for projections and a refiner that reads the base's
# own encoder, one with linear layers whose UNet reads the guidance scale.
ADAPTERS = {0: 64, 3: 12}
PROMPTED = 4  # a build with image prompts of every kind, and a control
# Those with the most stages first, so that two processes end together.
EVERY = (0, 3, INPAINTING, PROMPTED, 1, 2, 5)
# Builds with controls: of which kind each is; of the union the mode that is exported.
CONTROLS = {
    0: {"edges": "small", "depth": "full"},
    3: {"edges": "full", "pose": "union"},
    PROMPTED: {"edges": "small"},
    INPAINTING: {"edges": "full"},
}
MODE = 2

Folders = Callable[[int], tuple[Path, Path]]


def refiner_of(weights: Path) -> Path:
    """Where the refiner of a base lies."""
    return weights.with_name(f"{weights.name}-refiner")


def control_of(weights: Path, name: str) -> Path:
    """Where a control of a base lies."""
    return weights.with_name(f"{weights.name}-{name}")


def build(folder: Path, seed: int) -> tuple[Path, Path]:
    """Make and export one, with its refiner and its controls where it has some; its weights and its build."""
    import torch

    from triptych_export.build import ExportOptions, export

    from . import ip_adapters, tiny_control, tiny_sdxl

    torch.set_num_threads(1)
    weights, output = folder / f"weights-{seed}", folder / f"build-{seed}"
    facts, refiner = tiny_sdxl.make(weights, seed, inpainting=seed == INPAINTING), None
    if seed in (*REFINERS, INPAINTING):
        refiner = refiner_of(weights)
        own_encoder, aesthetics = REFINERS.get(seed, (False, False))
        tiny_sdxl.make_refiner(refiner, weights, facts, own_encoder=own_encoder, aesthetics=aesthetics)
    controls = {
        name: tiny_control.make(control_of(weights, name), weights, number, kind)
        for number, (name, kind) in enumerate(CONTROLS.get(seed, {}).items())
    }
    modes = {name: f":{MODE}" for name, kind in CONTROLS.get(seed, {}).items() if kind == "union"}
    options = ExportOptions(
        samplers=SAMPLERS,
        refiner=refiner,
        adapters=RANK if seed == INPAINTING else ADAPTERS.get(seed),
        control=[f"{name}={path}{modes.get(name, '')}" for name, path in controls.items()] or None,
        **(ip_adapters.make_all(weights) if seed == PROMPTED else {}),
    )
    export(weights, output, options)
    return weights, output


def build_cascade(folder: Path, seed: int) -> tuple[Path, Path]:
    """Make and export a Stable Cascade; its prior's folder and its build."""
    import torch

    from triptych_export.build import ExportOptions, export

    from . import tiny_cascade

    torch.set_num_threads(1)
    weights, output = folder / f"weights-{seed}", folder / f"build-{seed}"
    facts = tiny_cascade.make(weights, seed)
    export(weights, output, ExportOptions(decoder=tiny_cascade.decoder_of(weights), size=facts["size"]))
    return weights, output


def exported(folder: Path, make: Callable[[Path, int], tuple[Path, Path]], seeds: Iterable[int]) -> Folders:
    """Folders of weights and build by seed, made two at a time by the first process that asks; others wait for them."""
    made = folder / "made.json"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not made.exists():
            with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
                futures = {seed: pool.submit(make, folder, seed) for seed in seeds}
                found = {seed: [str(path) for path in future.result()] for seed, future in futures.items()}
            made.write_text(json.dumps(found))
    known = json.loads(made.read_text())
    return lambda seed: tuple(map(Path, known[str(seed)]))
