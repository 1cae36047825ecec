"""Puts a scorer together as a worker would, in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.domain.job import ModelSpec, ScoreJob
from realign_cluster.scoring.encode import TextEncoder
from realign_cluster.scoring.forward import Forward, Shape, Work
from realign_cluster.scoring.model import load
from realign_cluster.scoring.scorer import Scorer
from realign_cluster.store.model_files import describe_model

SHAPE = Shape(batch_tokens=512, chunk=64, logit_rows=50)  # small, so that rows meet every boundary


def make_job(folder: Path, *kinds: str, **options: Any) -> ScoreJob:
    return ScoreJob(kinds=kinds, model=describe_model(folder), **options)


def make_scorer(folder: Path, *kinds: str, shape: Shape = SHAPE, on_cpu: bool = True, **options: Any) -> Scorer:
    return scorer_of(make_job(folder, *kinds, **options), folder, shape=shape, on_cpu=on_cpu)


def scorer_of(job: ScoreJob, folder: Path, *, shape: Shape = SHAPE, on_cpu: bool = True) -> Scorer:
    model = load(folder, job)
    encoder = TextEncoder(model.tokenizer, chat=job.chat, max_tokens=job.max_tokens, truncate=job.truncate)
    return Scorer(job, encoder, Forward(model.split, shape, on_cpu=on_cpu, one_by_one=job.reproducible))


def score(scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], Work]:
    payload, work = scorer.compute(scorer.prepare([orjson.dumps(row) for row in rows]))
    scores = [orjson.loads(line) for line in payload.split(b"\n")]
    assert len(scores) == len(rows)
    return scores, work


NO_SPEC = ModelSpec(name="none", hash="none")
