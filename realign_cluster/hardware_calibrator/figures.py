"""A number that says where it comes from, and the request of which it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.job import Chat, Fields

Source = Literal["measured", "stale", "prior"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with its unit, whether it was measured or is a prior, and on what grounds."""

    value: float
    unit: str
    source: Source
    why: str


def task_request(
    model: str | Path,
    data: Sequence[str | Path],
    score: Sequence[str],
    fields: Fields | None,
    *,
    chat: Chat,
    max_tokens: int,
) -> CurateRequest:
    return CurateRequest(
        inputs=tuple(map(str, data)),
        out=Path("-"),
        model=str(model),
        kinds=tuple(score),
        fields=fields or Fields(),
        chat=chat,
        max_tokens=max_tokens,
    )
