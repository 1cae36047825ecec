"""noop: scores nothing, with no model. Measures the cluster itself: reading, transport, ledger and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realign_cluster.domain.job import ScoreJob
from realign_cluster.scoring.encode import TextEncoder
from realign_cluster.scoring.kinds.base import KindPlan


class Noop:
    name = "noop"
    version = 1

    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> KindPlan:
        return KindPlan(sequences=(), reduce=lambda logprobs: {})
