"""IFD: how much an instruction helps to predict its answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from realign_cluster.domain.job import Chat, Fields, Truncate
from realign_cluster.store.model_files import describe_model
from realign_cluster.store.whole_files import read_rows
from realign_cluster.training_metrics.inputs import Paths, paths_of
from realign_cluster.training_metrics.scoring import request_for, score_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class IfdRow:
    """Losses in nats per token. `value` is None where it is `undefined`, for the reason given there. A truncated row's
    value is that of what was left of it.
    """

    where: str
    value: float | None
    nll_conditioned: float | None
    nll_alone: float | None
    tokens: int
    truncated: bool
    undefined: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IfdScores:
    """`mean` and `median` over the rows whose value is defined, None if there are none. `above_one`: rows whose
    instruction makes the answer less likely; they are counted, not dropped.
    """

    kind: Literal["ifd", "ifd-ppl"]
    model: str
    model_hash: str
    computed_by: str
    rows: tuple[IfdRow, ...]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(row.value for row in self.rows if row.value is not None)

    @property
    def mean(self) -> float | None:
        return fmean(self.values) if self.values else None

    @property
    def median(self) -> float | None:
        return median(self.values) if self.values else None

    @property
    def above_one(self) -> int:
        return sum(value > 1 for value in self.values)

    @property
    def undefined(self) -> int:
        return len(self.rows) - len(self.values)

    @property
    def truncated(self) -> int:
        return sum(row.truncated for row in self.rows)


def calculate_ifd_score(
    path: Paths,
    model: str | Path,
    *,
    prompt_field: str = "prompt",
    response_field: str = "response",
    kind: Literal["ifd", "ifd-ppl"] = "ifd",
    chat: Chat = "auto",
    max_tokens: int = 2048,
    truncate: Truncate = "left",
    hostfile: str | Path | None = None,
    out: str | Path | None = None,
) -> IfdScores:
    """How much the instruction helps to predict the answer, row by row: the mean loss of the answer given the
    instruction over its mean loss alone (`ifd`, arXiv 2308.12032), or exp of their difference (`ifd-ppl`, arXiv
    2402.00530).

    `out`, with `hostfile`: a folder to keep the run in, which the same call resumes. Raises RunFailed if a worker dies.
    """
    rows = read_rows(*paths_of(path))
    request = request_for(
        (kind,),
        model,
        Fields(prompt=prompt_field, response=response_field),
        chat=chat,
        max_tokens=max_tokens,
        truncate=truncate,
        hostfile=hostfile,
        out=out,
    )
    scores, errors, computed_by = score_rows(rows, request)
    spec = describe_model(model)
    return IfdScores(
        kind=kind,
        model=spec.name,
        model_hash=spec.hash,
        computed_by=computed_by,
        rows=tuple(
            _ifd_row(row.where, None if found is None else found[kind], errors.get(at, ""))
            for at, (row, found) in enumerate(zip(rows, scores, strict=True))
        ),
    )


def _ifd_row(where: str, found: dict[str, Any] | None, error: str) -> IfdRow:
    if found is None:
        return IfdRow(
            where=where, value=None, nll_conditioned=None, nll_alone=None, tokens=0, truncated=False, undefined=error
        )
    return IfdRow(
        where=where,
        value=found["value"],
        nll_conditioned=found["nll_conditioned"],
        nll_alone=found["nll_alone"],
        tokens=found["tokens"],
        truncated=found["truncated"],
        undefined=found.get("undefined", ""),
    )
