"""judge: the probability of each label for a claim against its evidence, normalised over the labels.

A label's weight is the likelihood of its whole text as the answer. The template is filled once per row; what comes up
to the end of the evidence is the trunk that all claims on that evidence share, so templates should put the evidence
first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realign_cluster.domain.job import JUDGE_LABELS, JUDGE_TEMPLATE, ScoreJob
from realign_cluster.scoring.encode import NO_CONTEXT, Scored, TextEncoder, common_prefix
from realign_cluster.scoring.errors import RowRefused
from realign_cluster.scoring.kinds.base import NOT_FINITE, KindPlan, LogProbs, total

_PLACE = re.compile(r"\{(claim|evidence|labels)\}")


def fill_template(template: str, *, claim: str, evidence: str, labels: Sequence[str] = JUDGE_LABELS) -> str:
    """Puts the texts in their places, each once: braces within them stay as they are."""
    values = {"claim": claim, "evidence": evidence, "labels": ", ".join(labels)}
    return _PLACE.sub(lambda place: values[place.group(1)], template)


class Judge:
    name = "judge"
    version = 1

    def plan(self, fields: Mapping[str, Any], encoder: TextEncoder, job: ScoreJob) -> KindPlan:
        evidence, claim = fields["evidence"], fields["claim"]
        evidence = evidence if isinstance(evidence, str) else "\n".join(evidence)
        template, labels = job.template or JUDGE_TEMPLATE, job.labels or JUDGE_LABELS
        text = encoder.prompt_text(fill_template(template, claim=claim, evidence=evidence, labels=labels))
        ids = encoder.encode_prompt_text(text)
        answers = [encoder.encode_prompt_text(text + label) for label in labels]
        # All labels are compared from one context: the ids that prompt and every answer have in common.
        start = min(common_prefix(ids, answer) for answer in answers)
        head = fill_template(template[: template.find("{evidence}")], claim=claim, evidence=evidence, labels=labels)
        trunk, cut = self._evidence_span(encoder, text, head, evidence, ids)
        excess = max(map(len, answers)) - encoder.max_tokens
        if excess > 0:
            first, last = self._cut_of_evidence(encoder, trunk, cut, excess)
            answers = [answer[:first] + answer[last:] for answer in answers]
            start, cut = start - excess, cut - excess
        if start < 1:  # a template that ends in nothing before the label, for a tokenizer that adds nothing either
            return KindPlan(sequences=(), reduce=lambda _: _undefined(labels, excess > 0, NO_CONTEXT))
        sequences = tuple(
            Scored(ids=tuple(answer), spans=((start, len(answer)),), truncated=excess > 0) for answer in answers
        )
        return KindPlan(
            sequences=sequences, reduce=lambda logprobs: _probabilities(labels, logprobs, excess > 0), trunk=max(cut, 0)
        )

    def _evidence_span(
        self, encoder: TextEncoder, text: str, head: str, evidence: str, ids: list[int]
    ) -> tuple[int, int]:
        """Where the evidence's ids begin and end among `ids`; (0, 0) when its text cannot be found in the rendered
        prompt.
        """
        at = text.find(head + evidence)
        if not evidence or at < 0:
            return 0, 0
        begin = at + len(head)
        first = common_prefix(encoder.encode_prompt_text(text[:begin]), ids)
        return first, common_prefix(encoder.encode_prompt_text(text[: begin + len(evidence)]), ids)

    def _cut_of_evidence(self, encoder: TextEncoder, first: int, last: int, excess: int) -> tuple[int, int]:
        """The ids to leave out of a judgement that is too long: from the evidence, never from claim or question."""
        if encoder.truncate == "refuse":
            total_tokens = encoder.max_tokens + excess
            raise RowRefused("too-long", f"{total_tokens} tokens, more than the limit of {encoder.max_tokens}")
        if last - first < excess:
            raise RowRefused(
                "too-long", f"{encoder.max_tokens + excess - (last - first)} tokens even without the evidence"
            )
        return (first, first + excess) if encoder.truncate == "left" else (last - excess, last)


def _probabilities(labels: Sequence[str], logprobs: Sequence[LogProbs], truncated: bool) -> dict[str, Any]:
    weights = [total(values) for values in logprobs]
    if any(weight is None for weight in weights):
        return _undefined(labels, truncated, NOT_FINITE)
    exact = np.array(weights, dtype=np.float64)
    likelihoods = np.exp(exact - exact.max())
    probabilities = [float(value) for value in likelihoods / likelihoods.sum()]
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return {
        "probabilities": dict(zip(labels, probabilities, strict=True)),
        "label": labels[best],
        "truncated": truncated,
    }


def _undefined(labels: Sequence[str], truncated: bool, reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(labels)
    return {"probabilities": nothing, "label": None, "truncated": truncated, "undefined": reason}
