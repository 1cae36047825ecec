"""Scoring calibrations as the speed of a forward pass: which of them count, and in which unit."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from realign_cluster.coordinator.planning import calibration_key
from realign_cluster.coordinator.scoring_speeds import kinds_of, scoring_speeds
from realign_cluster.domain.report import Calibration
from realign_cluster.rpc.pb import common_pb2 as common
from realign_cluster.store.calibrations import Calibrations

NOW = datetime(2026, 11, 20, tzinfo=UTC)
INFO = common.NodeInfo(node_id="n1", versions=common.Versions(mlx="0.32.4", mlx_lm="0.32.2"))
IFD, LOGLIK, NOOP = (
    f"{kinds}, auto, left, up to 2048 tokens" for kinds in ("ifd v1+loglik v1", "loglik v1", "noop v1")
)


def calibration(cost_per_second: float, age: timedelta) -> Calibration:
    return Calibration(
        measured_at=(NOW - age).isoformat(),
        mode="quick",
        cost_per_second=cost_per_second,
        rows_per_second=1.0,
        spread=0.0,
        seconds=1.0,
    )


def test_only_scoring_has_kinds() -> None:
    assert kinds_of(IFD) == ("ifd", "loglik")
    assert kinds_of(NOOP) == ()
    assert kinds_of("train, sft, lora, auto, up to 2048 tokens") == ()


def test_the_newest_of_this_model_and_these_versions_counts(tmp_path: Path) -> None:
    day = timedelta(days=1)
    with Calibrations(tmp_path / "calibrations.sqlite") as store:

        def found(model: str = "m") -> dict[str, float]:
            speeds = scoring_speeds(store, [("alpha", INFO)], model_hash=model, now=NOW)
            return {name: speed.cost_per_second for name, speed in speeds.items()}

        assert found() == {}
        store.put(calibration_key(INFO, "m", NOOP), "alpha", calibration(9.0, 0 * day))
        store.put(calibration_key(INFO, "other", LOGLIK), "alpha", calibration(8.0, 0 * day))
        store.put(replace(calibration_key(INFO, "m", LOGLIK), versions="mlx=0.1"), "alpha", calibration(7.0, day))
        assert found() == {}
        store.put(calibration_key(INFO, "m", LOGLIK), "alpha", calibration(100.0, 2 * day))
        assert found() == {"alpha": 100.0}
        # ifd goes over an answer twice: what is scored a second is less than what goes forward
        store.put(calibration_key(INFO, "m", IFD), "alpha", calibration(100.0, day))
        assert found() == {"alpha": pytest.approx(160.0)}
        assert found("other") == {"alpha": 8.0}
        store.put(calibration_key(INFO, "old", LOGLIK), "alpha", calibration(1.0, 60 * day))
        assert found("old") == {}
