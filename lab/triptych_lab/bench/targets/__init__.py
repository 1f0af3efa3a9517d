"""The targets, a file each, in the order of the report."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.errors import invalid
from triptych_lab.bench.target import Target
from triptych_lab.bench.targets import (
    admission_wait,
    cluster_overhead,
    cold_start,
    control_mixed,
    front_overhead,
    growth,
    growth_depths,
    lora_mixed,
    overhead,
    routing,
    simulator,
    slo_rate,
    step_batching,
    vs_diffusers,
    vs_diffusers_batch,
    vs_optimum,
)

TARGETS: tuple[Target, ...] = (
    overhead.TARGET,
    front_overhead.TARGET,
    cluster_overhead.TARGET,
    routing.TARGET,
    step_batching.TARGET,
    slo_rate.TARGET,
    admission_wait.TARGET,
    vs_diffusers.TARGET,
    vs_diffusers_batch.TARGET,
    vs_optimum.TARGET,
    lora_mixed.TARGET,
    control_mixed.TARGET,
    simulator.TARGET,
    cold_start.TARGET,
    growth.TARGET,
    growth_depths.TARGET,
)


def chosen(names: Sequence[str]) -> list[Target]:
    """Return the targets of these names; without names all, except those that are measured only on request.

    A target may also be named by one of its ratios.

    Raises:
        InvalidRequest: there is no target of a name.
    """
    known = {name: target for target in TARGETS for name in (target.name, *target.bounds)}
    if unknown := [name for name in names if name not in known]:
        raise invalid("--only", repr(unknown[0]), ", ".join(known))
    wanted = {known[name].name for name in names}
    return [target for target in TARGETS if target.name in wanted or not (names or target.asked_for)]
