"""Stable Cascade's scheduler, DDPMWuerstchenScheduler, turned into tables: `timestep` holds the timestep ratio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import samplers
from ..errors import ExportError
from ..tracing import tapped

SCHEDULER = "DDPMWuerstchenScheduler"


class Wuerstchen:
    """The scheduler as Cascade's pipelines drive it: without its last timestep, and with one timestep for each image."""

    order = 1

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self.init_noise_sigma = scheduler.init_noise_sigma

    @property
    def timesteps(self) -> Any:
        """The timestep ratios, without the 0 where there is nothing left to do."""
        return self._scheduler.timesteps[:-1]

    def set_timesteps(self, steps: int) -> None:
        """Choose the number of steps."""
        self._scheduler.set_timesteps(steps)

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        """`sample`; the pipelines do not even ask."""
        return self._scheduler.scale_model_input(sample, timestep)

    def step(self, output: Any, timestep: Any, sample: Any, *, return_dict: bool, generator: Any = None) -> Any:
        """The next latents. Draws noise in every step, the last one too, where its weight is 0."""
        timesteps = timestep.expand(sample.shape[0])
        return self._scheduler.step(output, timesteps, sample, generator=generator, return_dict=return_dict)

    def add_noise(self, image: Any, noise: Any, timesteps: Any) -> Any:
        """What the scheduler makes of an image's latents."""
        return self._scheduler.add_noise(image, noise, timesteps)


def scheduler(config: Mapping[str, Any]) -> Any:
    """diffusers' own, with a folder's `scaler` and `s`."""
    from diffusers import DDPMWuerstchenScheduler

    make: Any = DDPMWuerstchenScheduler.from_config
    return make(dict(config))


def check_scheduler(part: str, config: Mapping[str, Any]) -> None:
    """Whether a folder's scheduler is the one there are tables for.

    Raises:
        ExportError: it is another; `part` says whose it is.
    """
    if config.get("_class_name") != SCHEDULER:
        raise ExportError(f"{part} scheduler: {config.get('_class_name')}; supported: {SCHEDULER}")


def tables(config: Mapping[str, Any]) -> tuple[samplers.Arrays, dict[str, Any]]:
    """The arrays and facts of one folder's tables, for 1 … 100 steps; see `samplers.tables`."""
    made = scheduler(config)
    with tapped(made) as draws:
        return samplers.read_tables(Wuerstchen(made), draws, SCHEDULER, middle=False)
