"""kl: how far the model is from a reference on this response, exactly.

At each token of the response the sum over the whole vocabulary of pi (log pi - log ref): pi is the model with its
adapter, ref the reference. Temperature 1, dropout off, float32, nats; `mean` is per completion token, the prompt left
out. Averaged over responses that the model itself sampled this is KL(pi || ref) per token; on any other text it is the
divergence along that text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realign_cluster.domain.job import ScoreJob
from realign_cluster.scoring.encode import TextEncoder
from realign_cluster.scoring.kinds.base import KindPlan, completion_scores


class KlDivergence:
    name = "kl"
    version = 1

    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> KindPlan:
        scored = encoder.completion(fields["prompt"], fields["response"])
        return KindPlan(
            sequences=(scored,),
            reduce=lambda nats: completion_scores(scored, nats[0]) | {"truncated": scored.truncated},
            measure="divergence",
        )
