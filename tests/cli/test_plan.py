"""`realign plan` and `realign calibrate`: options, output, and both on two real daemons."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from realign_cluster.cli import calibrate, plan
from realign_cluster.cli.calibrate import best_batch_text
from realign_cluster.coordinator.calibrate import judge_reports
from realign_cluster.domain.memory import GIB, model_facts
from realign_cluster.domain.plan_facts import NodeFacts, WorkFacts
from realign_cluster.domain.planner import plan_scoring
from realign_cluster.domain.prior import DeviceFacts
from realign_cluster.domain.report import Calibration, WorkerReport
from realign_cluster.store.calibrations import Calibrations
from tests.cli.kit import Ended, run_command
from tests.cluster.kit import TINY_MODEL, CurateCluster, write_rows

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"


def run_plan(*arguments: str | Path) -> Ended:
    return run_command(plan.register, ["plan", *map(str, arguments)])


def run_calibrate(*arguments: str | Path) -> Ended:
    return run_command(calibrate.register, ["calibrate", *map(str, arguments)])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(
        tmp_path / "rows.jsonl",
        [
            {"prompt": "What is it? " * (1 + index % 5), "response": "It is that. " * (1 + index % 9)}
            for index in range(60)
        ],
    )


# --- without a cluster
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--score", "loglik", "--model", str(TINY_MODEL)), "no cluster was named"),
        (("--score", "likelihood", "--model", str(TINY_MODEL)), "no kind 'likelihood'"),
        (("--score", "loglik", "--model", "no/such/folder/x"), "no model folder"),
        (("--score", "loglik", "--model", str(TINY_MODEL), "--truncate", "middle"), "--truncate"),
        (("--score", "loglik", "--model", str(TINY_MODEL), "--allow-skew", "protocol"), "protocol"),
        (("--score", "judge", "--model", str(TINY_MODEL), "--template", "/no/such/file"), "--template"),
        (("--score", "loglik", "--model", str(TINY_MODEL), "--prompt-field", "question"), "question"),
        (("--score", "loglik", "--model", str(TINY_MODEL), "--max-tokens", "1"), "--max-tokens"),
    ],
)
def test_bad_options_end_with_2_and_the_fix(rows: Path, arguments: tuple[str, ...], says: str) -> None:
    ended = run_plan(rows, *arguments)
    assert ended.code == 2
    assert says in ended.err
    assert ended.out == ""


def test_help_has_an_example() -> None:
    for register, name in ((plan.register, "plan"), (calibrate.register, "calibrate")):
        shown = run_command(register, [name, "--help"])
        assert shown.code == 0
        assert "Example" in shown.out
        assert f"realign {name} " in shown.out


def example_plan() -> Any:
    config = json.loads((CONFIGS / "qwen3-30b-a3b.json").read_text())
    nodes = [
        NodeFacts(name=name, device=DeviceFacts(chip=chip, backend="metal"), memory_bytes=memory * GIB)
        for name, chip, memory in (("m4max", "Apple M4 Max", 128), ("m3ultra", "Apple M3 Ultra", 512))
    ]
    work = WorkFacts(kinds=("loglik", "ifd"), rows=4507, cost=1.3e6)
    return plan_scoring(nodes, model_facts(config, 0, name="qwen3-30b-a3b"), work, {"m4max": calibration(5000.0)})


def calibration(cost_per_second: float) -> Calibration:
    return Calibration(
        measured_at="2026-11-20T10:00:00+00:00",
        mode="full",
        cost_per_second=cost_per_second,
        rows_per_second=20.0,
        spread=0.02,
        seconds=10.0,
        best_batch={"2048": 4, "128": 32},
        batch_tokens=4096,
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_measured_and_prior_are_shown_next_to_each_other(terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=160, highlight=False)
    (plan.show_table if terminal else plan.show_lines)(example_plan(), console)
    text = shown.getvalue()
    assert "qwen3-30b-a3b (bfloat16): loglik, ifd over 4,507 rows" in text.replace("4507", "4,507")
    for expected in ("m4max", "Apple M3 Ultra", "65.4%", "5,000"):
        assert expected in text
    assert ("\x1b" in text) == terminal


def test_best_batches_are_sorted_by_length() -> None:
    assert best_batch_text(calibration(1.0)) == "32 x 128, 4 x 2048; 4096 tokens"


def report(mean: float, batched: float | None = None) -> WorkerReport:
    alone = {"loglik": {"sum": mean * 10, "mean": mean, "tokens": 10, "truncated": False}}
    other = mean if batched is None else batched
    together = {"loglik": {"sum": other * 10, "mean": other, "tokens": 10, "truncated": False}}
    return WorkerReport(
        model_hash="h",
        dtype="float32",
        load_seconds=1.0,
        weights_bytes=1,
        peak_bytes=1,
        device="cpu",
        blas="openblas",
        blas_core_type="",
        blas_threads=1,
        canaries_alone=(alone,),
        canaries_batched=(together,),
        canary_tokens=(10,),
    )


def test_a_node_that_computes_wrongly_is_not_kept() -> None:
    trusted, refused = judge_reports(
        {"alpha": report(-2.0, batched=-2.5), "beta": report(-2.0), "gamma": report(-2.3)}, canaries=1
    )
    assert list(trusted) == ["beta"]
    assert set(refused) == {"alpha", "gamma"}
    assert "node alpha refused: alone and batched" in refused["alpha"]
    assert "the reference beta" in refused["gamma"]


# --- on two daemons
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CurateCluster]:
    made = CurateCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start("alpha")
        made.start("beta")
        yield made
    finally:
        made.close()


@pytest.fixture
def home(cluster: CurateCluster, monkeypatch: pytest.MonkeyPatch) -> CurateCluster:
    monkeypatch.setenv("REALIGN_HOME", str(cluster.realign_home))
    (cluster.home.folder / "calibrations.sqlite").unlink(missing_ok=True)
    return cluster


TASK = ("--model", TINY_MODEL, "--score", "loglik,ifd")


@pytest.mark.cluster
def test_plan_calibrate_plan(home: CurateCluster, rows: Path) -> None:
    hosts = home.hostfile("alpha", "beta")
    before = run_plan(rows, *TASK, "--hostfile", hosts, "--json")
    assert before.code == 0, before.err
    assert [event["event"] for event in before.events] == ["plan", "summary"]
    assert {node["source"] for node in before.events[0]["nodes"]} == {"prior"}
    assert before.summary["rows"] == 60
    assert before.summary["state"] == "planned"
    assert sum(before.summary["shares"].values()) == pytest.approx(1.0)

    measured = run_calibrate(rows, *TASK, "--hostfile", hosts, "--quick", "--json")
    assert measured.code == 0, measured.err
    assert measured.summary["state"] == "complete"
    calibrations = {event["node"]: event for event in measured.events if event["event"] == "calibration"}
    assert set(calibrations) == {"alpha", "beta"}
    assert all(event["cost_per_second"] > 0 and event["mode"] == "quick" for event in calibrations.values())
    assert any(event["event"] == "progress" for event in measured.events)

    after = run_plan(rows, *TASK, "--hostfile", hosts, "--json")
    assert {node["source"] for node in after.events[0]["nodes"]} == {"measured"}
    assert after.summary["shares"] == pytest.approx(measured.summary["shares"])
    for node in after.events[0]["nodes"]:
        assert node["cost_per_second"] == pytest.approx(calibrations[node["name"]]["cost_per_second"])
        assert node["prior_cost_per_second"] > 0

    another_task = run_plan(rows, "--model", TINY_MODEL, "--score", "loglik", "--hostfile", hosts, "--json")
    assert {node["source"] for node in another_task.events[0]["nodes"]} == {"prior"}


@pytest.mark.cluster
def test_a_falsified_calibration_moves_the_shares(home: CurateCluster, rows: Path) -> None:
    hosts = home.hostfile("alpha", "beta")
    assert run_calibrate(rows, *TASK, "--hostfile", hosts, "--quick").code == 0
    with Calibrations(home.home.folder / "calibrations.sqlite") as store:
        for item in store.everything(now=datetime.now(UTC)):
            speed = 6500.0 if item.node_name == "alpha" else 3500.0
            store.put(item.key, item.node_name, item.calibration.model_copy(update={"cost_per_second": speed}))
    shown = run_plan(rows, *TASK, "--hostfile", hosts, "--json")
    assert shown.summary["shares"] == {"alpha": pytest.approx(0.65), "beta": pytest.approx(0.35)}


@pytest.mark.cluster
def test_full_calibration_without_input_measures_links_too(home: CurateCluster, tmp_path: Path) -> None:
    hosts = home.hostfile("alpha", "beta")
    measured = run_calibrate("--model", "none", "--score", "noop", "--hostfile", hosts, "--json")
    assert measured.code == 0, measured.err
    links = [event for event in measured.events if event["event"] == "link"]
    assert [(link["from"], link["to"]) for link in links] == [("alpha", "beta")]
    assert links[0]["bytes_per_second"] > 1e6
    assert 0 < links[0]["round_trip_seconds"] < 1
    with Calibrations(home.home.folder / "calibrations.sqlite") as store:
        assert len(store.links()) == 1


@pytest.mark.cluster
def test_plain_output_says_why(home: CurateCluster, rows: Path) -> None:
    shown = run_plan(rows, *TASK, "--hostfile", home.hostfile("alpha", "beta"))
    assert shown.code == 0
    for expected in ("alpha", "share 50.0%", "together", "done at", "why:", "separate batches", "KV cache", "prior"):
        assert expected in shown.out
    assert "\x1b" not in shown.out


@pytest.mark.cluster
def test_a_model_that_fits_nowhere_is_refused_with_the_arithmetic(home: CurateCluster, rows: Path) -> None:
    hosts = home.hostfile("alpha", "beta", limits={"alpha": "0.1 GB", "beta": "0.1 GB"})
    shown = run_plan(rows, *TASK, "--hostfile", hosts, "--json")
    assert shown.code == 2
    assert shown.summary["state"] == "refused"
    assert "fits on none of alpha, beta" in shown.summary["refusal"]
    assert "the hostfile's limit" in shown.events[0]["left_out"][0]["reason"]
    text = run_plan(rows, *TASK, "--hostfile", hosts)
    assert text.code == 2
    assert "refused: " in text.out


@pytest.mark.cluster
def test_a_missing_node_ends_with_3_unless_fewer_will_do(home: CurateCluster, rows: Path) -> None:
    hosts = json.loads(home.hostfile("alpha", "beta").read_text())
    hosts["hosts"][1]["realign"]["name"] = "gamma"
    hosts["hosts"][1]["realign"]["port"] = 1
    path = home.folder / "missing.json"
    path.write_text(json.dumps(hosts))
    assert run_plan(rows, *TASK, "--hostfile", path).code == 3
    shown = run_plan(rows, *TASK, "--hostfile", path, "--min-nodes", "1", "--json")
    assert shown.code == 0
    assert [item["name"] for item in shown.events[0]["left_out"]] == ["gamma"]
    assert shown.summary["shares"] == {"alpha": pytest.approx(1.0)}
