"""A job with a model: loads it, scores the canaries, measures itself if asked, then scores units.

Puts model, encoder, forward pass and scorer together and reports on them. Must not know frames or processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import mlx.core as mx

from realign_cluster.domain.job import Sampling, ScoreJob, comparable_kinds
from realign_cluster.domain.report import WorkerReport
from realign_cluster.scoring import device
from realign_cluster.scoring.canaries import score_canaries
from realign_cluster.scoring.cpu_kernels import takes_attention_kernel
from realign_cluster.scoring.divergence import DIVERGENCES, PairedModels
from realign_cluster.scoring.encode import TextEncoder
from realign_cluster.scoring.forward import Forward, Shape
from realign_cluster.scoring.generate import Generator
from realign_cluster.scoring.measure import measure_node
from realign_cluster.scoring.membership import Membership
from realign_cluster.scoring.model import LoadedModel, complete, load
from realign_cluster.scoring.part import LeadingModel
from realign_cluster.scoring.rows import RowFault
from realign_cluster.scoring.scorer import Scorer
from realign_cluster.scoring.session import (
    Phase,
    Prepared,
    Progress,
    Result,
    faults_allowed,
    raise_if_asked,
    split_rows,
)
from realign_cluster.scoring.text import TextDecoder

ROW_ID_BYTES = 16

CPU_SHAPE = Shape(batch_tokens=2048, chunk=1024, logit_rows=256)
CPU_CHUNK_WITHOUT_KERNEL = 128  # attention in MLX: short chunks leave out most of what is above the diagonal
GPU_SHAPE = Shape(batch_tokens=8192, chunk=2048, logit_rows=1024)


def open_model_session(
    job: ScoreJob,
    model_dir: Path,
    *,
    measure: str,
    samples: Sequence[bytes],
    cores: int,
    phase: Phase,
    others: Mapping[str, Path] = MappingProxyType({}),
) -> ModelSession:
    """With the whole model; `others` as for `model.load`. Raises JobRefused, with the fix, if the job is not right for
    this node.
    """
    phase("load", job.model.name, 0.0)
    device.set_blas_threads(job.blas_threads or cores)
    return ModelSession(job, load(model_dir, job, others), measure=measure, samples=samples, phase=phase)


def lead(job: ScoreJob, member: Membership, *, measure: str, samples: Sequence[bytes], phase: Phase) -> ModelSession:
    """With the model of a group, on the rank that leads it. Raises JobRefused."""
    model = complete(member.weights, job, LeadingModel(member.part, member.group))
    return ModelSession(job, model, measure=measure, samples=samples, phase=phase)


class ModelSession:
    """Open from the moment it is made."""

    def __init__(
        self, job: ScoreJob, model: LoadedModel, *, measure: str, samples: Sequence[bytes], phase: Phase
    ) -> None:
        self._scorer = make_scorer(job, model)
        forward = self._scorer.forward
        phase("canary", f"{len(job.canaries)} rows alone and batched", 0.0)
        compared = self._scorer.for_kinds(job.model_copy(update={"kinds": comparable_kinds(job.kinds)}))
        canaries = score_canaries(compared, [row.encode() for row in job.canaries], mixture=model.mixture)
        calibration = None
        if measure != "none" and samples:
            calibration = measure_node(self._scorer, model, samples, full=measure == "full", phase=phase)
            if job.batch_tokens is None and not job.reproducible and calibration.batch_tokens is not None:
                forward.shape = with_batch_tokens(forward.shape, calibration.batch_tokens)
        blas = device.find_blas()
        self.report = WorkerReport(
            model_hash=model.hash,
            dtype=model.dtype,
            load_seconds=model.load_seconds,
            weights_bytes=model.weights_bytes,
            peak_bytes=int(mx.get_peak_memory()),
            device=device.device_name(),
            blas=blas.name,
            blas_core_type=blas.core_type,
            blas_threads=blas.threads,
            tokens_per_byte=canaries.tokens_per_byte,
            mixture=model.mixture,
            canaries_alone=canaries.alone,
            canaries_batched=canaries.batched,
            canary_tokens=canaries.tokens,
            calibration=calibration,
        )

    def prepare(self, rows: bytes, count: int, row_ids: bytes = b"") -> Prepared:
        ids = [row_ids[at : at + ROW_ID_BYTES] for at in range(0, len(row_ids), ROW_ID_BYTES)]
        try:
            unit = self._scorer.prepare(split_rows(rows, count), ids)
        except RowFault as fault:
            return Prepared(count=count, content=fault)
        return Prepared(count=count, content=unit, asked_faults=unit.asked_faults)

    def compute(self, prepared: Prepared, progress: Progress) -> Result:
        if isinstance(prepared.content, RowFault):
            raise prepared.content
        raise_if_asked(prepared.asked_faults)
        payload, work = self._scorer.compute(prepared.content, progress)
        return Result(payload=payload, tokens=work.tokens, shape=work.describe())


def make_scorer(job: ScoreJob, model: LoadedModel) -> Scorer:
    """Everything that the job's kinds need of the model."""
    encoder = TextEncoder(model.tokenizer, chat=job.chat, max_tokens=job.max_tokens, truncate=job.truncate)
    on_cpu, shape = device.backend() == "cpu", shape_for(job, model)
    comparison = generator = None
    if model.reference is not None:
        pair = PairedModels(model.split, model.reference)
        comparison = Forward(pair, shape, on_cpu=on_cpu, one_by_one=job.reproducible, valuation=DIVERGENCES)
    if "generate" in job.kinds:
        sampling = job.sampling or Sampling()
        generator = Generator(
            model.split,
            TextDecoder(model.tokenizer, sampling.stop),
            sampling,
            ends=model.tokenizer.eos_token_ids,
            tokens=job.max_tokens if job.reproducible else model.fit.batch_tokens,
            shape=shape,
            on_cpu=on_cpu,
            one_by_one=job.reproducible,
        )
    forward = Forward(model.split, shape, on_cpu=on_cpu, one_by_one=job.reproducible)
    return Scorer(job, encoder, forward, comparison=comparison, generator=generator, obey_faults=faults_allowed())


def shape_for(job: ScoreJob, model: LoadedModel) -> Shape:
    """The device's default within what its memory takes, or the job's batch."""
    default = CPU_SHAPE if device.backend() == "cpu" else GPU_SHAPE
    has_kernel = model.dtype == "float32" and takes_attention_kernel(model.split.model)
    if default is CPU_SHAPE and not has_kernel:
        default = replace(CPU_SHAPE, chunk=CPU_CHUNK_WITHOUT_KERNEL)
    return with_batch_tokens(default, job.batch_tokens or min(default.batch_tokens, max(model.fit.batch_tokens, 1)))


def with_batch_tokens(shape: Shape, batch_tokens: int) -> Shape:
    return replace(shape, batch_tokens=batch_tokens)
