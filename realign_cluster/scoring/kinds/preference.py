"""preference: the log-likelihoods of a chosen and a rejected completion of one prompt, and the margins between them.

The sums are TRL's reference columns (ref_chosen_logps, ref_rejected_logps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.rows import implicit_prompt
from realign_cluster.scoring.encode import Scored, TextEncoder
from realign_cluster.scoring.errors import RowRefused
from realign_cluster.scoring.kinds.base import KindPlan, LogProbs, completion_scores


class Preference:
    name = "preference"
    version = 1

    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> KindPlan:
        prompt, chosen, rejected = fields.get("prompt"), fields["chosen"], fields["rejected"]
        if prompt is None:
            try:
                prompt, chosen, rejected = implicit_prompt(chosen, rejected)
            except ValueError as error:
                raise RowRefused("bad-row", str(error)) from error
        pair = (encoder.completion(prompt, chosen), encoder.completion(prompt, rejected))
        return KindPlan(sequences=pair, reduce=lambda logprobs: _margins(pair, logprobs))


def _margins(pair: tuple[Scored, Scored], logprobs: Sequence[LogProbs]) -> dict[str, Any]:
    chosen, rejected = (completion_scores(scored, values) for scored, values in zip(pair, logprobs, strict=True))
    scores: dict[str, Any] = {"chosen": chosen, "rejected": rejected, "margin_sum": None, "margin_mean": None}
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side["sum"] is None:
            return scores | {"undefined": f"{name}: {side['undefined']}"}
    return scores | {"margin_sum": chosen["sum"] - rejected["sum"], "margin_mean": chosen["mean"] - rejected["mean"]}
