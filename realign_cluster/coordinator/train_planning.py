"""From what nodes, model folder, data and calibrations say to a training plan: the I/O around `domain.train_planner`.

Also what a run gives back: how fast each node was, for the next plan. Decides nothing itself.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from realign_cluster.coordinator.cluster import Cluster, NodeLink
from realign_cluster.coordinator.planning import calibration_key, facts_of_model, node_facts, open_calibrations
from realign_cluster.coordinator.rank_hosts import LOOPBACK, dialled_host
from realign_cluster.coordinator.scoring_speeds import scoring_speeds
from realign_cluster.coordinator.train_record import TrainRun
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.coordinator.train_work import estimate_work
from realign_cluster.domain.ids import NodeName
from realign_cluster.domain.jaccl import NotLinked, with_links
from realign_cluster.domain.plan import LeftOut
from realign_cluster.domain.plan_facts import StaleCalibration
from realign_cluster.domain.report import Calibration
from realign_cluster.domain.skew import refused, skew
from realign_cluster.domain.train_links import asked_backend
from realign_cluster.domain.train_plan import TrainPlan
from realign_cluster.domain.train_planner import plan_training
from realign_cluster.domain.train_work import LinkFacts, TrainWork
from realign_cluster.domain.training import TrainSettings
from realign_cluster.domain.world import WorldPlan
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.rpc.versions import local_versions
from realign_cluster.store.calibrations import Calibrations
from realign_cluster.store.model_files import read_config


class Planner:
    """For one sitting. The first plan is of the nodes that answered; later ones of those that recovery has left, or
    that came meanwhile.
    """

    def __init__(self, cluster: Cluster, run: TrainRun, request: TrainRequest, *, now: datetime) -> None:
        self._request = request
        self._now = now
        self._model_shape = run.job.model.shape
        self._model = facts_of_model(run.job.model, run.model.folder)
        self._config = read_config(run.model.folder)
        self._work = estimate_work(run.data.folder, run.prepared.rows, run.model.folder, request.settings)
        self._cost_per_token = 0.0  # of the last plan
        self._unfit: dict[str, str] = {}  # who came, and is not planned with; why
        self._take_in(cluster)

    def _take_in(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._nodes = [node_facts(node, cluster) for node in cluster.nodes]
        self._training: Mapping[str, Calibration] = {}
        self._forward: Mapping[str, Calibration] = {}
        self._stale: Mapping[str, StaleCalibration] = {}
        with contextlib.closing(open_calibrations(cluster.home)) as store:
            self._links = link_facts(store, cluster)
            # a reproducible run follows from the machines, not from a measurement's noise
            if not self._request.settings.reproducible:
                named = [(str(node.name), node.info) for node in cluster.nodes]
                self._training, self._stale = training_speeds(store, cluster, self._model_shape, self._work, self._now)
                self._forward = scoring_speeds(store, named, model_hash=self._model_shape, now=self._now)

    def welcome(self, name: NodeName, info: common.NodeInfo) -> None:
        """A node is there: if it was missing when the sitting began, later plans know it."""
        cluster = self._cluster
        if (link := late_link(cluster, name, info)) is None:
            return
        differences = skew(local_versions(), info.versions, frozenset(self._request.allow_skew))
        if bad := refused(differences):
            self._unfit[name] = "; ".join(item.text(name) for item in bad)
        elif twins := [node.name for node in cluster.nodes if node.info.node_id == info.node_id]:
            self._unfit[name] = f"it has the same node id as {twins[0]}"
        else:
            missing = tuple(node for node in cluster.missing if node.name != name)
            self._take_in(replace(cluster, nodes=(*cluster.nodes, link), missing=missing))

    def learn(self, measured: Mapping[str, tuple[float, float]]) -> None:
        """For the next plan, of every node that is or was there: node -> (tokens per second of its own forward and
        backward passes, busy seconds).
        """
        learn_speeds(self._cluster, self._cost_per_token, self._model_shape, self._request.settings, measured)

    @property
    def work(self) -> TrainWork:
        return self._work

    def first(self) -> TrainPlan:
        missing = [LeftOut(name=node.name, reason=node.reason) for node in self._cluster.missing]
        return self._plan([node.name for node in self._nodes], missing)

    def again(self, nodes: Sequence[NodeName]) -> WorldPlan | str:
        """The world of a plan for these nodes, or why there is none."""
        unfit = [LeftOut(name=name, reason=self._unfit[name]) for name in nodes if name in self._unfit]
        plan = self._plan(nodes, unfit)
        if plan.approach == "refused":
            return f"{plan.refusal}\n  fix: {plan.fix}"
        try:
            return self.world(plan)
        except NotLinked as error:  # these nodes have no cable between them: another one may come back
            return str(error)

    def world(self, plan: TrainPlan) -> WorldPlan:
        """With the devices of its cables, where it is joined by them. Raises UsageError where one is lacking."""
        hostfile = self._cluster.hostfile
        return with_links(plan.world(), hostfile) if hostfile is not None else plan.world()

    def _plan(self, nodes: Sequence[str], left_out: Sequence[LeftOut]) -> TrainPlan:
        request, hostfile = self._request, self._cluster.hostfile
        plan = plan_training(
            [node for node in self._nodes if node.name in set(nodes)],
            self._model,
            self._work,
            config=self._config,
            training=self._training,
            forward=self._forward,
            stale=self._stale,
            links=self._links,
            parallel=request.parallel,
            backend=asked_backend(request.backend, hostfile.backend if hostfile is not None else "any"),
            left_out=left_out,
        )
        self._cost_per_token = plan.cost_per_token or self._cost_per_token
        return plan


def may_come_back(cluster: Cluster, nodes: Iterable[str]) -> bool:
    """Whether some of these are away, and are dialled again and again. Nobody dials one that was taken out of the
    hostfile, has other versions, or is not found.
    """
    dialled = {node.name for node in cluster.missing if node.address is not None}
    return not dialled.isdisjoint(nodes)


def late_link(cluster: Cluster, name: NodeName, info: common.NodeInfo) -> NodeLink | None:
    """To a node that was missing and says now what it is; how well it is was not asked. None: it was not missing."""
    for node in cluster.missing:
        if node.name == name and node.address is not None:
            return NodeLink(address=node.address, info=info, health=common.Health())
    return None


def training_task(settings: TrainSettings) -> str:
    """What changes a training step's speed besides rows and model, for the calibration store."""
    bucket = 1 << max(0, math.ceil(math.log2(max(settings.max_tokens, 1))))
    parts = ["train", settings.method, settings.fine_tune, settings.dtype, f"up to {bucket} tokens"]
    if settings.grad_checkpoint:
        parts.append("checkpointed")
    if settings.reproducible:
        parts.append("reproducible")
    return ", ".join(parts)


def training_speeds(
    store: Calibrations, cluster: Cluster, model_hash: str, work: TrainWork, now: datetime
) -> tuple[dict[str, Calibration], dict[str, StaleCalibration]]:
    """By node name: what earlier runs of this task left, split by whether it may be trusted."""
    fresh: dict[str, Calibration] = {}
    stale: dict[str, StaleCalibration] = {}
    for node in cluster.nodes:
        found = store.find(calibration_key(node.info, model_hash, training_task(work.settings)), now=now)
        if found is not None and found.stale:
            stale[node.name] = StaleCalibration(calibration=found.current, reason=found.stale)
        elif found is not None:
            fresh[node.name] = found.current
    return fresh, stale


def learn_speeds(
    cluster: Cluster,
    cost_per_token: float,
    model_shape: str,
    settings: TrainSettings,
    measured: Mapping[str, tuple[float, float]],
) -> None:
    """After a sitting: node -> (tokens per second of its own forward and backward passes, busy seconds).
    `cost_per_token` as a plan has it.
    """
    now = datetime.now(UTC)
    infos = {node.name: node.info for node in cluster.nodes}
    with contextlib.closing(open_calibrations(cluster.home)) as store:
        for name, (tokens_per_second, busy_seconds) in measured.items():
            info, cost = infos.get(NodeName(name)), tokens_per_second * cost_per_token
            if info is None or cost <= 0:
                continue
            key = calibration_key(info, model_shape, training_task(settings))
            if store.correct(key, cost, busy_seconds=busy_seconds, now=now) is None:
                calibration = Calibration(
                    measured_at=now.isoformat(timespec="seconds"),
                    mode="run",
                    cost_per_second=cost,
                    rows_per_second=0.0,
                    spread=0.0,
                    seconds=busy_seconds,
                )
                store.put(key, name, calibration)


def link_facts(store: Calibrations, cluster: Cluster) -> list[LinkFacts]:
    """What `realign calibrate` measured between pairs, and what the hostfile says of their cables."""
    measured = {frozenset((one.from_node, one.to_node)): one for one in store.links()}
    hosts = {host.name: host for host in cluster.hostfile.hosts} if cluster.hostfile is not None else {}
    places = {host.name: place for place, host in enumerate(cluster.hostfile.hosts)} if cluster.hostfile else {}
    facts = []
    for one, other in itertools.combinations(cluster.nodes, 2):
        keys = (frozenset((one.info.node_id, other.info.node_id)), frozenset((str(one.name), str(other.name))))
        found = next((measured[key] for key in keys if key in measured), None)
        here, there = hosts.get(one.name), hosts.get(other.name)
        rdma = False
        if here is not None and there is not None:
            rdma = _device(here.rdma, places[other.name]) and _device(there.rdma, places[one.name])
        facts.append(
            LinkFacts(
                one=one.name,
                other=other.name,
                bytes_per_second=found.bytes_per_second if found is not None else None,
                round_trip_seconds=found.round_trip_seconds if found is not None else None,
                rdma=rdma,
                loopback=all(dialled_host(node.address).startswith((LOOPBACK, "localhost")) for node in (one, other)),
            )
        )
    return facts


def _device(devices: Sequence[object], place: int) -> bool:
    return place < len(devices) and bool(devices[place])
