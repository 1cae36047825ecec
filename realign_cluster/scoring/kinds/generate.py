"""generate: answers drawn from the model, as the job's sampling says, several to a row if it asks for them.

Drawn numbers follow from the row's seed and the sample's number, and the seed from the run's and the row's id: where,
when and beside which rows a text is made does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from realign_cluster.domain.job import Sampling, ScoreJob
from realign_cluster.scoring.encode import NO_CONTEXT, TextEncoder
from realign_cluster.scoring.kinds.base import NOT_FINITE, SamplePlan
from realign_cluster.scoring.sample import Sample


class Generate:
    name = "generate"
    version = 1

    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> SamplePlan:
        sampling = job.sampling or Sampling()
        prompt, truncated = encoder.prompt(fields["prompt"], sampling.max_new_tokens)
        return SamplePlan(
            prompt=prompt or None, reduce=lambda samples, seed: _scores(samples, seed, truncated=truncated)
        )


def _scores(samples: Sequence[Sample], seed: int, *, truncated: bool) -> dict[str, Any]:
    texts = [
        {
            "text": sample.text,
            "tokens": sample.tokens,
            "finish": sample.finish,
            "logprob_sum": sample.logprob_sum if abs(sample.logprob_sum) < float("inf") else None,
        }
        for sample in samples
    ]
    scores = {"samples": texts or None, "seed": seed, "truncated": truncated}
    if not texts:
        return scores | {"undefined": NO_CONTEXT}
    if any(text["logprob_sum"] is None for text in texts):
        return scores | {"undefined": NOT_FINITE}
    return scores
