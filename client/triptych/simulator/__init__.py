"""What servers would do: the loop's own scheduling over a model of the device's time, without a model or a picture.

`Policy`, `Job`, `Phase` and `Walk` are those that serve; only the seconds of a batch come from a `CostModel`.
"""

from triptych.simulator.balancer import BALANCERS
from triptych.simulator.cost import CostModel
from triptych.simulator.outcome import Outcome
from triptych.simulator.plan import Planner
from triptych.simulator.server import Device, SimulatedServer
from triptych.simulator.simulation import Farm, simulate

__all__ = ["BALANCERS", "CostModel", "Device", "Farm", "Outcome", "Planner", "SimulatedServer", "simulate"]
