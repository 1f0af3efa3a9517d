"""The cluster as a Ray Serve application."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: nothing is told to anybody

import ray
from ray import serve
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # which its stub leaves out
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from triptych.errors import invalid
from triptych_api.app import Options as FrontOptions

from .deployments import SERVERS, Doors, Fronts, Servers, Serving, doors_options, fronts_options
from .directory import DOOR, FRONT, SERVER, Facts, directory
from .scaling import ByWork

DOORS, FRONTS = "triptych-doors", "triptych-fronts"
# A server is asked this often whether it lives, and its work this often for the autoscaler.
HEALTH_S, METRICS_S = 2.0, 1.0
STOP_S = 30.0
LOOK_S = 0.25


@dataclass(frozen=True)
class Options:
    """What to run, and where.

    Args:
        serving: how each server serves.
        address: of a running Ray cluster, as "auto"; None starts one on this machine.
        host, port, metrics_port: of the doors' gRPC, and of the page with all servers' metrics that each door has.
        front: the HTTP front's options, whose host and port Ray Serve's proxies take; None for none.
        doors: how many, at most one a machine.
        fronts: how many; more than one ask for a database that they share.
        servers: fewest and most; where they differ Ray Serve scales. None: one for each GPU, or one.
        target_s: as `ByWork`'s.
        pause_s: seconds for which fewer servers must have been enough before one goes.
        gpus: of each server; None: one where the cluster has any.
        cpus: a server's share of a machine where it has no GPU.
        on: a Ray resource that the machines for doors and fronts have; "" for any machine.
    """

    serving: Serving = field(default_factory=Serving)
    address: str | None = None
    host: str = "127.0.0.1"
    port: int = 8001
    metrics_port: int = 8002
    front: FrontOptions | None = None
    doors: int = 1
    fronts: int = 1
    servers: tuple[int, int] | None = None
    target_s: float = 20.0
    pause_s: float = 60.0
    gpus: int | None = None
    cpus: float = 1.0
    on: str = ""

    def check(self) -> None:
        """Raise InvalidRequest where the options contradict each other."""
        if self.servers and not 0 <= self.servers[0] <= max(1, self.servers[1]):
            raise invalid("servers", f"{self.servers[0]} … {self.servers[1]}", "fewest ≤ most, and most at least 1")
        if self.front:
            self.front.check()
        if self.front and (self.front.jobs or self.fronts > 1) and not self.front.shared:
            given = self.front.jobs or f"none, with {self.fronts} fronts"
            raise invalid("jobs", given, "postgresql://…, which fronts share wherever they run")


def start(options: Options) -> None:
    """Deploy, and return once every part is there; the next call with other options is a rolling update.

    Raises:
        InvalidRequest: the options contradict each other.
        RuntimeError: Ray Serve could not deploy it; the reason is in the message.
    """
    options.check()
    connect(options.address)
    front = options.front
    serve.start(
        proxy_location="EveryNode" if front else "Disabled",
        http_options={"host": front.host, "port": front.port} if front else None,
    )
    serve.run(servers(options), name=SERVERS, route_prefix=None)
    # Ray Serve begins anew whatever is deployed again: other servers are no reason for other doors and fronts.
    there = status()
    if _differ(there.doors, options.doors, doors_options(*_door(options))):
        serve.run(doors(options), name=DOORS, route_prefix=None)
    if front and _differ(there.fronts, options.fronts, fronts_options(front)):
        serve.run(fronts(options), name=FRONTS, route_prefix="/")


def connect(address: str | None) -> None:
    """Join a Ray cluster, or start one on this machine; Ray asks whoever wants to join for its token."""
    if not ray.is_initialized():
        alone: Mapping[str, Any] = {} if address else {"include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level="warning", **alone)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)


def stop() -> None:
    """End what runs in the cluster, servers after what they have in flight."""
    for name in (FRONTS, DOORS, SERVERS):
        serve.delete(name)
    ray.kill(directory())


def leave(address: str, within_s: float, node: str = "") -> bool:
    """Have what runs on a machine moved to others before the machine goes.

    Args:
        within_s: how long that may take; what is still there is then stopped.
        node: the beginning of its id, as `triptych cluster status` prints it; "" for this machine's.

    Returns:
        Whether nothing of ours is left there.

    Raises:
        InvalidRequest: there is no such node, or several.
        RuntimeError: Ray does not let it go; the reason is in the message.
    """
    connect(address)
    here, ends = ray.get_runtime_context(), time.time() + within_s
    nodes = [
        one["NodeID"] for one in ray.nodes() if one["Alive"] and one["NodeID"].startswith(node or here.get_node_id())
    ]
    if len(nodes) != 1:
        raise invalid("node", node, "the beginning of one node's id, as `triptych cluster status` prints it")
    node, going = nodes[0], DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=here.gcs_address).drain_node(node, going, "it leaves", int(ends * 1000))
    if not accepted:
        raise RuntimeError(f"Ray does not let this machine go: {why}")
    while any(one["node"] == node for kind in status() for one in kind.values()):
        if time.time() > ends:
            return False
        time.sleep(LOOK_S)
    return True


class Status(NamedTuple):
    """Every server, door and front as it last spoke, by name."""

    servers: Mapping[str, Facts]
    doors: Mapping[str, Facts]
    fronts: Mapping[str, Facts]


def status() -> Status:
    """Ask the directory who is there."""
    members = directory()
    return Status(*ray.get([members.all.remote(kind) for kind in (SERVER, DOOR, FRONT)]))


def _differ(there: Mapping[str, Facts], number: int, asked: str) -> bool:
    return len(there) != number or {one["options"] for one in there.values()} != {asked}


def _door(options: Options) -> tuple[str, int, int]:
    return options.host, options.port, options.metrics_port


def servers(options: Options) -> Any:
    """Make the application of the servers."""
    there = int(ray.cluster_resources().get("GPU", 0))
    gpus = min(1, there) if options.gpus is None else options.gpus
    least, most = options.servers or (max(1, there),) * 2
    several: Mapping[str, Any] = {"num_replicas": least}
    if least != most:
        scaling = AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            initial_replicas=least,
            metrics_interval_s=METRICS_S,
            upscale_delay_s=0,
            downscale_delay_s=options.pause_s,
            policy=AutoscalingPolicy(policy_function=ByWork, policy_kwargs={"target_s": options.target_s}),
        )
        several = {"autoscaling_config": scaling}
    made = serve.deployment(
        Servers,
        name=SERVERS,
        ray_actor_options={"num_gpus": gpus, "num_cpus": 0} if gpus else {"num_cpus": options.cpus},
        health_check_period_s=HEALTH_S,
        graceful_shutdown_timeout_s=options.serving.grace_s + STOP_S,
        **several,
    )
    return made.bind(replace(options.serving, loopback=options.address is None))


def doors(options: Options) -> Any:
    """Make the application of the doors."""
    made = serve.deployment(
        Doors,
        name=DOORS,
        num_replicas=options.doors,
        max_replicas_per_node=1,
        ray_actor_options=_beside(options),
        graceful_shutdown_timeout_s=2 * STOP_S + 5,
    )
    return made.bind(*_door(options))


def fronts(options: Options) -> Any:
    """Make the application of the HTTP fronts."""
    made = serve.deployment(Fronts, name=FRONTS, num_replicas=options.fronts, ray_actor_options=_beside(options))
    return made.bind(options.front)


def _beside(options: Options) -> Mapping[str, Any]:
    """What has no GPU, and hardly a share of the processors."""
    return {"num_cpus": 0, **({"resources": {options.on: 0.001}} if options.on else {})}
