"""How fast each node counts as being: what samples measured, what is stored of earlier runs, or the plan's prior.

Also gives back what the run found out, so that the next plan starts from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from realign_cluster.coordinator.admission import Speed
from realign_cluster.coordinator.cluster import Cluster
from realign_cluster.coordinator.planning import KnownSpeeds, calibration_key, known_speeds
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.plan import Plan
from realign_cluster.domain.report import WorkerReport
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.store.calibrations import Calibrations, task_of

FIRST_GUESS = 1000.0  # tokens per second, for a node that came after the plan: the first result replaces it


class Speeds:
    """Of one run's nodes, for its model and task. Speeds are in domain.batching.row_cost per second."""

    def __init__(self, store: Calibrations, job: ScoreJob) -> None:
        self._store = store
        self._job = job
        self._task = task_of(job)
        self._infos: dict[NodeName, common.NodeInfo] = {}
        self.known = KnownSpeeds(fresh={}, stale={})
        self.plan: Plan | None = None

    def look_up(self, cluster: Cluster) -> None:
        self._infos.update({link.name: link.info for link in cluster.nodes})
        named = [(str(name), info) for name, info in self._infos.items()]
        self.known = known_speeds(
            self._store, named, model_hash=self._job.model.shape, task=self._task, now=datetime.now(UTC)
        )

    def seen(self, node: NodeName, info: common.NodeInfo) -> None:
        """A node that came later than the plan."""
        self._infos.setdefault(node, info)

    def measure_mode(self, node: NodeName) -> str:
        """What to ask of its worker at join: nothing where a fresh calibration is stored."""
        known = node in self.known.fresh and not self._in_group
        return "none" if known or not self._job.model.files else "quick"

    @property
    def _in_group(self) -> bool:
        """Whether the nodes work as one: that is not how fast one of them is, so nothing of it is stored or looked
        up.
        """
        return self.plan is not None and self.plan.group is not None

    def speed_of(self, node: NodeName, report: WorkerReport) -> Speed:
        """A fresh stored calibration; else the worker's own measurement, stored for the next run; else the prior.

        Stored goes first: a worker that stayed warm reports what it measured when it started.
        """
        if not self._in_group and (stored := self.known.fresh.get(node)) is not None:
            return Speed(cost_per_second=stored.cost_per_second, measured=True)
        if (measured := report.calibration) is not None and measured.cost_per_second > 0:
            if not self._in_group and (info := self._infos.get(node)) is not None:
                self._store.put(calibration_key(info, self._job.model.shape, self._task), node, measured)
            return Speed(cost_per_second=measured.cost_per_second, measured=True)
        return Speed(cost_per_second=self._prior(node), measured=False)

    def _prior(self, node: NodeName) -> float:
        planned = [item for item in self.plan.nodes if item.name == node] if self.plan is not None else []
        return planned[0].cost_per_second if planned else FIRST_GUESS

    def learn(self, measured: Mapping[NodeName, tuple[float, float]]) -> None:
        """After a sitting: node -> (cost per second of compute, busy seconds)."""
        if self._in_group:
            return
        for node, (cost_per_second, busy_seconds) in measured.items():
            if (info := self._infos.get(node)) is not None:
                key = calibration_key(info, self._job.model.shape, self._task)
                self._store.correct(key, cost_per_second, busy_seconds=busy_seconds, now=datetime.now(UTC))
