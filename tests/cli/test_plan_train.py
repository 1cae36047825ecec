"""`realign plan train`: options, output, and on real daemons."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from realign_cluster.cli import calibrate, plan_train
from realign_cluster.cli.plan_train import NAME, joined
from realign_cluster.domain.train_plan import TrainPlan, train_plan_from_json
from realign_cluster.domain.train_planner import plan_training
from realign_cluster.store.calibrations import Calibrations
from tests.cli.kit import Ended, run_command
from tests.cluster.kit import TINY_MODEL, CurateCluster, write_rows
from tests.domain.test_train_planner import BOTH, FOUR_BITS, config, facts, work


def run_plan(*arguments: str | Path) -> Ended:
    return run_command(plan_train.register, [NAME, *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"prompt": "What is it? " * (1 + at % 5), "completion": "It is that. " * (1 + at % 9)} for at in range(60)]
    return write_rows(tmp_path / "train.jsonl", rows)


TASK = ("--model", TINY_MODEL, "--steps", "10", "--global-batch", "8")


# --- without a cluster ---


def test_two_words_are_one_command() -> None:
    assert joined(["plan", "train", "--json"]) == ["plan train", "--json"]
    for others in (["plan", "./train", "--score", "loglik"], ["plan"], ["train", "plan"], []):
        assert joined(others) == others


def test_the_command_is_found_under_realign_plan() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "realign_cluster.cli.main", "plan", "train", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0
    assert "Usage: realign plan train" in ran.stdout
    for option in ("--fine-tune", "--parallel", "--grad-checkpoint", "--config", "--hostfile"):
        assert option in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "10", "--global-batch", "8"), "no cluster was named"),
        (("--global-batch", "8"), "--steps: missing"),
        (("--steps", "10", "--global-batch", "100"), "a global batch of 100 is more than the 60 rows of --data"),
        (("--steps", "10", "--global-batch", "0"), "--global-batch: 0 will not do"),
        (
            ("--steps", "10", "--global-batch", "8", "--learning-rate", "0"),
            "--learning-rate: with 0 nothing is learned",
        ),
        (("--steps", "10", "--global-batch", "8", "--learning-rate", "50"), "--learning-rate: 50 is absurd"),
        (("--steps", "10", "--global-batch", "8", "--parallel", "date"), "--parallel"),
        (("--steps", "10", "--global-batch", "8", "--backend", "nccl"), "--backend"),
        (("--steps", "10", "--global-batch", "8", "--method", "dpo"), "dpo learns from"),
        (("--steps", "10", "--global-batch", "8", "--allow-skew", "protocol"), "protocol"),
    ],
)
def test_bad_options_end_with_2_and_the_fix(data: Path, arguments: tuple[str, ...], says: str) -> None:
    ended = run_plan("--data", data, "--model", TINY_MODEL, *arguments)
    assert ended.code == 2
    assert says in ended.err
    assert ended.out == ""


def test_bad_rows_are_named_with_file_and_line(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    ended = run_plan("--data", data, *TASK)
    assert ended.code == 2
    assert "rows.jsonl:2" in ended.err


def test_what_is_measured_on_is_checked_too(tmp_path: Path, data: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "answer": "b"}\n{"text": "a"}\n')
    for option in ("--kl-probes", "--benchmark"):
        ended = run_plan("--data", data, *TASK, "--kl-every", "5", option, bad)
        assert ended.code == 2
        assert "bad.jsonl:2" in ended.err


def example(name: str = "llama-3.1-405b", **extra: object) -> TrainPlan:
    model = config(name, **extra)
    return plan_training(BOTH, facts(model, name), work(), config=model)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_plan_is_shown_with_its_numbers_and_reasons(terminal: bool) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=200, highlight=False, soft_wrap=True)
    plan = example(**FOUR_BITS)
    (plan_train.show_table if terminal else plan_train.show_lines)(plan, console)
    plan_train.show_rest(plan, console)
    text = shown.getvalue()
    cut = plan.nodes[0].blocks
    assert cut is not None
    for expected in (
        "llama-3.1-405b (4-bit): sft, lora, 100 steps of 32 rows from 10,000; pipeline over 2 nodes (ring)",
        f"0-{cut[1] - 1}",
        "Apple M3 Ultra",
        "a step: 31 min",
        "why:",
        "instead, m3ultra alone:",
        "the user's matrix: above 70B",
    ):
        assert expected in text
    assert ("\x1b" in text) == terminal


def test_a_refusal_is_shown_with_the_way_out() -> None:
    shown = io.StringIO()
    plan_train.show_rest(example(), Console(file=shown, width=200, soft_wrap=True))
    assert "refused: training llama-3.1-405b needs" in shown.getvalue()
    assert "fix: " in shown.getvalue()
    assert plan_train.summary(example())["state"] == "refused"


# --- on two daemons ---


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


@pytest.mark.cluster
def test_a_training_is_planned_from_priors_then_from_what_was_calibrated(home: CurateCluster, data: Path) -> None:
    hosts = home.hostfile("alpha", "beta")
    before = run_plan("--data", data, *TASK, "--hostfile", hosts, "--json")
    assert before.code == 0, before.err
    assert [event["event"] for event in before.events] == ["plan", "summary"]
    plan = train_plan_from_json({key: value for key, value in before.events[0].items() if key != "event"})
    assert {node.source for node in plan.nodes} == {"prior"}
    assert (plan.rows, plan.method, plan.backend) == (60, "sft", "ring")
    assert before.summary["state"] == "planned"
    assert before.summary["step_seconds"] == pytest.approx(plan.step_seconds)
    assert plan.world().nodes == tuple(node.name for node in plan.nodes)

    measured = run_command(
        calibrate.register,
        ["calibrate", "--model", str(TINY_MODEL), "--score", "ifd", "--hostfile", str(hosts), "--quick"],
    )
    assert measured.code == 0, measured.err
    with Calibrations(home.home.folder / "calibrations.sqlite") as store:
        for item in store.everything(now=datetime.now(UTC)):
            speed = 6500.0 if item.node_name == "alpha" else 3500.0
            store.put(item.key, item.node_name, item.calibration.model_copy(update={"cost_per_second": speed}))
    after = run_plan("--data", data, *TASK, "--hostfile", hosts, "--parallel", "data", "--json")
    nodes = {node["name"]: node for node in after.events[0]["nodes"]}
    assert {node["source"] for node in nodes.values()} == {"measured"}
    assert after.summary["shares"] == {"alpha": pytest.approx(0.65), "beta": pytest.approx(0.35)}
    # ifd runs an answer twice: so much more goes forward than is scored
    assert nodes["alpha"]["cost_per_second"] == pytest.approx(6500 * 1.6)


@pytest.mark.cluster
@pytest.mark.parametrize("parallel", ["pipeline", "sharded", "single"])
def test_a_way_may_be_asked_for(home: CurateCluster, data: Path, parallel: str) -> None:
    hosts = home.hostfile("alpha", "beta")
    shown = run_plan("--data", data, *TASK, "--hostfile", hosts, "--parallel", parallel, "--json")
    assert shown.code == 0, shown.err
    assert shown.summary["approach"] == parallel
    if parallel == "pipeline":
        (start, cut), (again, end) = sorted(shown.summary["blocks"].values())
        assert (start, again, end) == (0, cut, 3)


@pytest.mark.cluster
def test_heads_that_do_not_divide_are_named(home: CurateCluster, data: Path) -> None:
    hosts = home.hostfile("alpha", "beta")
    shown = run_plan("--data", data, *TASK, "--hostfile", hosts, "--parallel", "tensor")
    assert shown.code == 2
    assert "num_key_value_heads 1 is not divisible by 2 ranks" in shown.out
    assert "--parallel auto: fits" in shown.out


@pytest.mark.cluster
def test_a_file_of_settings_is_planned(home: CurateCluster, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'data = "{data}"\nmodel = "{TINY_MODEL}"\nsteps = 50\nglobal_batch = 4\nfine_tune = "full"\n'
        "[optimizer]\nlearning_rate = 1e-4\n"
    )
    shown = run_plan("--config", file, "--global-batch", "16", "--hostfile", home.hostfile("alpha", "beta"))
    assert shown.code == 0, shown.err
    assert "sft, full, 50 steps of 16 rows from 60" in shown.out
    assert "\x1b" not in shown.out


@pytest.mark.cluster
def test_what_fits_nowhere_is_refused_with_the_arithmetic(home: CurateCluster, data: Path) -> None:
    hosts = home.hostfile("alpha", "beta", limits={"alpha": "0.3 GB", "beta": "0.3 GB"})
    shown = run_plan("--data", data, *TASK, "--hostfile", hosts, "--json")
    assert shown.code == 2
    assert shown.summary["state"] == "refused"
    assert "the hostfile's limit" in json.dumps(shown.events[0]["alternatives"])


@pytest.mark.cluster
def test_a_missing_node_ends_with_3_unless_fewer_will_do(home: CurateCluster, data: Path) -> None:
    hosts: Any = json.loads(home.hostfile("alpha", "beta").read_text())
    hosts["hosts"][1]["realign"]["name"] = "gamma"
    hosts["hosts"][1]["realign"]["port"] = 1
    path = home.folder / "missing.json"
    path.write_text(json.dumps(hosts))
    assert run_plan("--data", data, *TASK, "--hostfile", path).code == 3
    shown = run_plan("--data", data, *TASK, "--hostfile", path, "--min-nodes", "1", "--json")
    assert shown.code == 0
    assert "gamma" in [item["name"] for item in shown.events[0]["left_out"]]
    assert shown.summary["approach"] == "single"
