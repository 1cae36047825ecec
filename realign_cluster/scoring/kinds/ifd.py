"""ifd and ifd-ppl: how much the instruction helps to predict the answer.

ifd (Cherry, arXiv 2308.12032) is the mean loss of the answer given the instruction over its mean loss alone: a ratio
of losses. ifd-ppl (Superfiltering, arXiv 2402.00530) is the ratio of perplexities, exp(difference of mean losses).
Losses in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from realign_cluster.domain.job import ScoreJob
from realign_cluster.scoring.encode import TextEncoder
from realign_cluster.scoring.kinds.base import KindPlan, LogProbs, completion_scores


class Ifd:
    name = "ifd"
    version = 1

    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> KindPlan:
        prompt, response = fields["prompt"], fields["response"]
        conditioned = encoder.completion(prompt, response)
        alone = encoder.alone(prompt, response, conditioned)

        def reduce(logprobs: Sequence[LogProbs]) -> dict[str, Any]:
            given, bare = (completion_scores(*pair) for pair in zip((conditioned, alone), logprobs, strict=True))
            scores: dict[str, Any] = {
                "value": None,
                "nll_conditioned": None if given["mean"] is None else -given["mean"],
                "nll_alone": None if bare["mean"] is None else -bare["mean"],
                "tokens": given["tokens"],
                "truncated": conditioned.truncated or alone.truncated,
            }
            if given["mean"] is None:
                return scores | {"undefined": given["undefined"]}
            if bare["mean"] is None:
                return scores | {"undefined": f"alone: {bare['undefined']}"}
            return scores | self.value(scores["nll_conditioned"], scores["nll_alone"])

        return KindPlan(sequences=(conditioned, alone), reduce=reduce)

    def value(self, conditioned: float, alone: float) -> dict[str, Any]:
        if alone == 0.0:
            return {"undefined": "nll_alone is 0"}
        return {"value": conditioned / alone}


class IfdPpl(Ifd):
    name = "ifd-ppl"

    def value(self, conditioned: float, alone: float) -> dict[str, Any]:
        try:
            return {"value": math.exp(conditioned - alone)}
        except OverflowError:
            return {"undefined": "the ratio of perplexities is too large for a number"}
