"""Measurements as stages pass them: made from what metrics return, kept as rows, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from realign_cluster.domain.gate import Measurement, Scale, on_scale
from realign_cluster.metrics.measured import MeanOverItems, PooledRatio


def measurement_of(
    metric: str, found: MeanOverItems | PooledRatio, *, verifier: str, dataset: str, scale: Scale = "plain"
) -> Measurement:
    """What a gate judges: the items on which the metric is defined, and how many it is not."""
    if isinstance(found, PooledRatio):
        return Measurement(
            metric=metric,
            items=tuple(str(item) for item, _, _ in found.defined),
            values=tuple(numerator for _, numerator, _ in found.defined),
            units=tuple(denominator for _, _, denominator in found.defined),
            scale=scale,
            undefined=len(found.undefined),
            verifier=verifier,
            dataset=dataset,
        )
    return Measurement(
        metric=metric,
        items=tuple(str(item) for item, _ in found.defined),
        values=tuple(value for _, value in found.defined),
        scale=scale,
        undefined=len(found.undefined),
        verifier=verifier,
        dataset=dataset,
    )


def value_of(measurement: Measurement) -> float | None:
    """The estimate: mean of the items, or total over units, on the metric's scale. None where there is nothing."""
    below = math.fsum(measurement.units) if measurement.units else float(len(measurement.items))
    return on_scale(math.fsum(measurement.values) / below, measurement.scale) if below else None


def to_row(measurement: Measurement) -> dict[str, Any]:
    """As a line of a measurements artifact."""
    return {
        "metric": measurement.metric,
        "value": value_of(measurement),
        "verifier": measurement.verifier,
        "dataset": measurement.dataset,
        "undefined": measurement.undefined,
        "items": list(measurement.items),
        "values": list(measurement.values),
        "units": list(measurement.units),
    } | ({} if measurement.scale == "plain" else {"scale": measurement.scale})


def from_row(row: Mapping[str, Any]) -> Measurement:
    return Measurement(
        metric=row["metric"],
        items=tuple(row["items"]),
        values=tuple(row["values"]),
        units=tuple(row["units"]),
        scale=row.get("scale", "plain"),
        undefined=row["undefined"],
        verifier=row["verifier"],
        dataset=row["dataset"],
    )


def summary_of(measurement: Measurement) -> dict[str, Any]:
    """What the ledger keeps beside the artifact that has the items."""
    return {
        "value": value_of(measurement),
        "items": len(measurement.items),
        "undefined": measurement.undefined,
        "verifier": measurement.verifier,
        "dataset": measurement.dataset,
    }


def by_metric(rows: Iterable[Mapping[str, Any]]) -> dict[str, Measurement]:
    return {row["metric"]: from_row(row) for row in rows}
