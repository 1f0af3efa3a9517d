"""Simulate servers: the loop's own scheduling in virtual time, without running a model or drawing a picture.

`Books`, `Policy`, `Job`, `Phase` and `Walk` are those that serve. Only the seconds of a batch come from a `CostModel`.
"""

from triptych_lab.simulator.balancer import BALANCERS
from triptych_lab.simulator.cost import CostModel
from triptych_lab.simulator.outcome import Outcome
from triptych_lab.simulator.plan import Planner
from triptych_lab.simulator.server import ServerSpec, SimulatedServer
from triptych_lab.simulator.simulation import Farm, Scaling, simulate

__all__ = [
    "BALANCERS",
    "CostModel",
    "Farm",
    "Outcome",
    "Planner",
    "Scaling",
    "ServerSpec",
    "SimulatedServer",
    "simulate",
]
