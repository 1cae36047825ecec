"""What `realign calibrate` measured of nodes with a model, whatever the score kind: how fast they go forward.

Training is planned from it until a run has measured training itself. Reads the calibration store; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from realign_cluster.coordinator.planning import calibration_key
from realign_cluster.domain.job import FIELDS_OF_KIND
from realign_cluster.domain.prior import forward_passes
from realign_cluster.domain.report import Calibration
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.store.calibrations import Calibrations

OTHER_SPEEDS = frozenset({"noop", "generate"})  # without a model, or a token at a time: not how fast one goes forward


def scoring_speeds(
    store: Calibrations, nodes: Iterable[tuple[str, common.NodeInfo]], *, model_hash: str, now: datetime
) -> dict[str, Calibration]:
    """By node name the newest that may be trusted, in token equivalents of one forward pass per second."""
    everything = [item for item in store.everything(now=now) if not item.stale]
    found: dict[str, Calibration] = {}
    for name, info in nodes:
        for item in everything:  # newest first
            kinds = kinds_of(item.key.task)
            if kinds and item.key == calibration_key(info, model_hash, item.key.task):
                speed = item.current.cost_per_second * forward_passes(kinds)
                found[name] = item.current.model_copy(update={"cost_per_second": speed})
                break
    return found


def kinds_of(task: str) -> tuple[str, ...]:
    """The score kinds of a task's text ("ifd v1+loglik v1, auto, ..."); none for a task whose speed is
    another.
    """
    kinds = tuple(part.partition(" ")[0] for part in task.partition(",")[0].split("+"))
    return kinds if all(kind in FIELDS_OF_KIND and kind not in OTHER_SPEEDS for kind in kinds) else ()
