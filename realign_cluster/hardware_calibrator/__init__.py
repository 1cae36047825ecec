"""How fast machines are for a model and a task, and who should do how much of it: measured where it can be.

`calibrate` measures the nodes of a cluster, or this machine; `workload_distribution` plans on what was measured, and on
priors where nothing was. Every figure says which of the two it is, and why. docs/hardware_calibrator.md shows both at
work. Nothing here imports MLX.
"""

from realign_cluster.hardware_calibrator.calibration import HardwareCalibration, NodeCalibration, calibrate
from realign_cluster.hardware_calibrator.distribution import (
    Machine,
    NodeShare,
    WorkloadDistribution,
    workload_distribution,
)
from realign_cluster.hardware_calibrator.figures import Figure

__all__ = [
    "Figure",
    "HardwareCalibration",
    "Machine",
    "NodeCalibration",
    "NodeShare",
    "WorkloadDistribution",
    "calibrate",
    "workload_distribution",
]
