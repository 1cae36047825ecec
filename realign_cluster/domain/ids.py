"""The ids that cross module borders, each its own type so that none passes for another."""

from typing import NewType

NodeId = NewType("NodeId", str)  # of the certificate; also what the user calls the node is NodeName
NodeName = NewType("NodeName", str)
RunId = NewType("RunId", str)
UnitId = NewType("UnitId", int)  # position in the cut; children of a split come after the last one
AttemptId = NewType("AttemptId", int)  # never reused within a run, over all epochs
LeaseId = NewType("LeaseId", int)
Epoch = NewType("Epoch", int)  # one sitting of a run's coordinator, from 1
