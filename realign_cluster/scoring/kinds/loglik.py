"""loglik: the log-likelihood of the response given the prompt, over response tokens only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realign_cluster.domain.job import ScoreJob
from realign_cluster.scoring.encode import TextEncoder
from realign_cluster.scoring.kinds.base import KindPlan, completion_scores


class LogLikelihood:
    name = "loglik"
    version = 1

    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> KindPlan:
        scored = encoder.completion(fields["prompt"], fields["response"])
        return KindPlan(
            sequences=(scored,),
            reduce=lambda logprobs: completion_scores(scored, logprobs[0]) | {"truncated": scored.truncated},
        )
