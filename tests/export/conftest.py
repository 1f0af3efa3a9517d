"""Random tiny SDXLs, exported once for all tests, two at a time."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

SEEDS = range(6)
SAMPLERS = ["euler", "dpmpp_2m", "euler_a"]


def build(folder: Path, seed: int) -> tuple[Path, Path]:
    """Make and export one; its weights and its build."""
    import torch

    from triptych_export.build import Options, export

    from .. import tiny_sdxl

    torch.set_num_threads(1)
    weights, output = folder / f"weights-{seed}", folder / f"build-{seed}"
    tiny_sdxl.make(weights, seed)
    export(weights, output, Options(samplers=SAMPLERS))
    return weights, output


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path]]:
    """Folders of weights and build by seed."""
    folder = tmp_path_factory.mktemp("tiny")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {seed: pool.submit(build, folder, seed) for seed in SEEDS}
        return {seed: future.result() for seed, future in futures.items()}.__getitem__
