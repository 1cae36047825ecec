"""What the store keeps, when it distrusts it, and how runs correct it."""

from __future__ import annotations

import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.job import ModelSpec, ScoreJob
from realign_cluster.domain.report import Calibration
from realign_cluster.store.calibrations import CalibrationKey, Calibrations, blend, task_of, versions_text

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
VERSIONS = versions_text({"mlx-lm": "0.32.2", "mlx": "0.32.4"})
KEY = CalibrationKey(node_id="node-1", model_hash="abc", task="loglik v1", versions=VERSIONS)


def calibration(cost_per_second: float = 1000.0, measured_at: str = "2026-11-20T10:00:00Z") -> Calibration:
    return Calibration(
        measured_at=measured_at,
        mode="full",
        cost_per_second=cost_per_second,
        rows_per_second=cost_per_second / 100,
        spread=0.01,
        seconds=20.0,
        matmul_gflops={"float32": 61.5},
        best_batch={"256": 8},
    )


@pytest.fixture
def store(tmp_path: Path) -> Calibrations:
    return Calibrations(tmp_path / "cluster" / "calibrations.sqlite")


def test_what_is_put_is_there_after_a_reopen(store: Calibrations) -> None:
    assert store.get(KEY, now=NOW) is None
    store.put(KEY, "m4max", calibration())
    store.close()
    with Calibrations(store.path) as again:
        found = again.get(KEY, now=NOW)
    assert found is not None
    assert found.calibration == calibration()
    assert found.current == calibration()
    assert (found.node_name, found.runs, found.stale) == ("m4max", 0, "")
    assert found.measured_at == datetime(2026, 11, 20, 10, tzinfo=UTC)


@pytest.mark.parametrize("field", ["node_id", "model_hash", "task"])
def test_another_node_model_or_task_is_not_there(store: Calibrations, field: str) -> None:
    store.put(KEY, "m4max", calibration())
    values = {name: getattr(KEY, name) for name in ("node_id", "model_hash", "task", "versions")}
    other = CalibrationKey(**{**values, field: "other"})
    assert store.find(other, now=NOW) is None


def test_age_makes_stale(store: Calibrations) -> None:
    store.put(KEY, "m4max", calibration())
    later = NOW + timedelta(days=40)
    assert store.get(KEY, now=later) is None
    found = store.find(KEY, now=later)
    assert found is not None
    assert found.stale == "it is 42 days old"
    assert store.get(KEY, now=later, max_age_days=100) is not None


def test_a_correction_renews(store: Calibrations) -> None:
    store.put(KEY, "m4max", calibration())
    later = NOW + timedelta(days=25)
    store.correct(KEY, 900.0, busy_seconds=600, now=later)
    assert store.get(KEY, now=later + timedelta(days=20)) is not None


def test_other_versions_are_found_but_stale(store: Calibrations) -> None:
    old = CalibrationKey(
        node_id="node-1", model_hash="abc", task="loglik v1", versions=versions_text({"mlx": "0.31.0"})
    )
    store.put(old, "m4max", calibration(500))
    assert store.get(KEY, now=NOW) is None
    found = store.find(KEY, now=NOW)
    assert found is not None
    assert found.stale == f"it was measured with mlx=0.31.0, now {VERSIONS}"
    store.put(KEY, "m4max", calibration(1000))
    current = store.get(KEY, now=NOW)
    assert current is not None
    assert current.current.cost_per_second == 1000
    assert len(store.everything(now=NOW)) == 2


def test_runs_correct_and_a_new_measurement_starts_over(store: Calibrations) -> None:
    assert store.correct(KEY, 500.0, busy_seconds=60, now=NOW) is None
    store.put(KEY, "m4max", calibration(1000))
    assert store.correct(KEY, 500.0, busy_seconds=60, now=NOW) == pytest.approx(750)
    assert store.correct(KEY, 500.0, busy_seconds=120, now=NOW) == pytest.approx(562.5)
    found = store.get(KEY, now=NOW)
    assert found is not None
    assert found.calibration.cost_per_second == 1000  # as measured, beside what runs made of it
    assert found.current.cost_per_second == pytest.approx(562.5)
    assert found.current.rows_per_second == pytest.approx(5.625)
    assert found.runs == 2
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        assert store.correct(KEY, nonsense, busy_seconds=60, now=NOW) is None
    store.put(KEY, "m4max", calibration(800))
    again = store.get(KEY, now=NOW)
    assert again is not None
    assert (again.current.cost_per_second, again.runs) == (800, 0)


def test_a_falsified_calibration_is_believed_until_runs_correct_it(store: Calibrations) -> None:
    store.put(KEY, "m4max", calibration(1000))
    store.put(KEY, "m4max", calibration(10_000))
    for _ in range(12):
        store.correct(KEY, 1000.0, busy_seconds=60, now=NOW)
    found = store.get(KEY, now=NOW)
    assert found is not None
    assert found.current.cost_per_second == pytest.approx(1000, rel=0.01)


def test_forget(store: Calibrations) -> None:
    other = CalibrationKey(node_id="node-2", model_hash="abc", task="loglik v1", versions=VERSIONS)
    for key in (KEY, other):
        store.put(key, key.node_id, calibration())
    store.put_link("node-1", "node-2", round_trip_seconds=1e-3, bytes_per_second=1e9, now=NOW)
    assert store.forget(node_id="node-1", model_hash="other") == 0
    assert len(store.links()) == 1
    assert store.forget(node_id="node-1") == 1
    assert store.links() == []
    assert store.find(other, now=NOW) is not None
    assert store.forget() == 1


def test_links(store: Calibrations) -> None:
    store.put_link("a", "b", round_trip_seconds=2e-3, bytes_per_second=1e9, now=NOW)
    store.put_link("a", "b", round_trip_seconds=1e-3, bytes_per_second=2e9, now=NOW)
    (link,) = store.links()
    assert (link.from_node, link.to_node, link.round_trip_seconds, link.bytes_per_second) == ("a", "b", 1e-3, 2e9)
    assert link.measured_at == NOW


def test_a_file_that_is_no_store_is_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "calibrations.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(RealignError, match=r"calibrations\.sqlite") as caught:
        Calibrations(path)
    assert "rm " in caught.value.fix


def test_a_store_of_a_later_version_is_refused(store: Calibrations) -> None:
    store.close()
    with sqlite3.connect(store.path) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(RealignError, match="version 9"):
        Calibrations(store.path)


def test_two_commands_may_write_at_once(store: Calibrations) -> None:
    def write(node: str) -> None:
        with Calibrations(store.path) as own:
            for index in range(10):
                key = CalibrationKey(node_id=node, model_hash=str(index), task="t", versions="v")
                own.put(key, node, calibration())

    threads = [threading.Thread(target=write, args=(f"node-{index}",)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.everything(now=NOW)) == 30


@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9), st.floats(0, 1e6))
def test_blending_stays_between(stored: float, measured: float, busy: float) -> None:
    blended = blend(stored, measured, busy_seconds=busy)
    slack = 1e-9 * max(stored, measured)
    assert min(stored, measured) - slack <= blended <= max(stored, measured) + slack
    assert blend(stored, measured, busy_seconds=0) == stored


def job(**extra: Any) -> ScoreJob:
    values: dict[str, Any] = {"kinds": ("loglik",), "model": ModelSpec(name="m", hash="h"), **extra}
    return ScoreJob(**values)


def test_the_task_is_what_changes_the_cost_of_a_row() -> None:
    assert task_of(job(kinds=("loglik", "ifd"))) == task_of(job(kinds=("ifd", "loglik")))
    assert task_of(job(max_tokens=1500)) == task_of(job(max_tokens=2048)) == "loglik v1, auto, left, up to 2048 tokens"
    different = [
        job(),
        job(max_tokens=512),
        job(kinds=("ifd",)),
        job(chat="plain"),
        job(truncate="refuse"),
        job(reproducible=True),
        job(kinds=("judge",), labels=("a", "b"), template="{claim} {evidence}"),
        job(kinds=("judge",), labels=("a", "b"), template="{evidence} {claim}"),
        job(kind_versions={"loglik": 2}),
    ]
    assert len({task_of(item) for item in different}) == len(different)
