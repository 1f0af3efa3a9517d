"""What servers would do: the loop's own scheduling over a model of the device's time, without a model or a picture.

`Books`, `Policy`, `Job`, `Phase` and `Walk` are those that serve; only the seconds of a batch come from a `CostModel`.
"""

from triptych_lab.simulator.balancer import BALANCERS
from triptych_lab.simulator.cost import CostModel
from triptych_lab.simulator.outcome import Outcome
from triptych_lab.simulator.plan import Planner
from triptych_lab.simulator.server import ServerSpec, SimulatedServer
from triptych_lab.simulator.simulation import Farm, simulate

__all__ = ["BALANCERS", "CostModel", "Farm", "Outcome", "Planner", "ServerSpec", "SimulatedServer", "simulate"]
