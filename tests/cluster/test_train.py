"""`realign train` on real daemons: what it leaves behind loads elsewhere, bad input costs nothing, words and exit
codes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.cli.main import run as realign_command
from realign_cluster.node.blas import find_openblas
from tests.cluster.kit import TINY_MODEL, CurateCluster, summary, write_rows

pytestmark = pytest.mark.cluster

DATA = Path(__file__).parents[2] / "examples" / "data"
INSTRUCTIONS, PREFERENCES = DATA / "instructions.jsonl", DATA / "preferences.jsonl"
Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def train(pair: CurateCluster) -> Train:
    def run(out: Path, *more: str, data: Path = INSTRUCTIONS, model: Path = TINY_MODEL) -> Any:
        command = [
            *(sys.executable, "-m", "realign_cluster.cli.main", "train", "--hostfile", str(pair.hostfile())),
            *("--data", str(data), "--model", str(model), "--out", str(out), *more),
        ]
        return pair.run(command)

    return run


def in_mlx(code: str) -> str:
    """What a Python program with mlx_lm prints."""
    environment = os.environ | {"LD_PRELOAD": str(find_openblas() or "")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


STEPS = ("--steps", "4", "--global-batch", "8", "--learning-rate", "1e-3")


def test_adapters_load_in_mlx_lm_and_the_run_explains_itself(tmp_path: Path, train: Train) -> None:
    rows = [json.loads(line) for line in INSTRUCTIONS.read_text().splitlines()]
    known = {row["prompt"] for row in rows[:64]}
    learn = write_rows(tmp_path / "learn.jsonl", rows[:64])
    held = write_rows(tmp_path / "held.jsonl", [row for row in rows[64:] if row["prompt"] not in known][:8])
    out = tmp_path / "run"
    done = train(out, *STEPS, "--valid", str(held), "--evaluate-every", "2", "--json", data=learn)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[-1]["event"] == "summary"
    found = summary(out)
    assert {key: found[key] for key in ("state", "method", "fine_tune", "output")} == {
        "state": "complete", "method": "sft", "fine_tune": "lora", "output": "output",
    }  # fmt: skip
    assert found["steps"] == {"asked": 4, "done": 4}
    assert found["validation"]["best"] < found["validation"]["first"]
    assert sum(node["share"] for node in found["nodes"].values()) == pytest.approx(1.0)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4]
    assert "<svg" in (out / "report.html").read_text()
    printed = in_mlx(
        "import mlx.core as mx, mlx_lm\n"
        f"base, _ = mlx_lm.load({str(TINY_MODEL)!r})\n"
        f"tuned, _ = mlx_lm.load({str(TINY_MODEL)!r}, adapter_path={str(out / 'output')!r})\n"
        "tokens = mx.array([[1, 5, 9, 14]])\n"
        "print(float(mx.abs(base(tokens) - tuned(tokens)).max()))"
    )
    assert float(printed) > 1e-3
    again = train(out, *STEPS, "--valid", str(held), "--evaluate-every", "2", data=learn)
    assert again.returncode == 0
    assert "nothing is left to do" in again.stderr
    other = train(out, *STEPS, "--valid", str(held), "--seed", "3", data=learn)
    assert other.returncode == 2
    assert "seed: the run has 0, now it is 3" in other.stderr


@pytest.mark.soak
def test_full_weights_are_a_model_of_their_own(tmp_path: Path, train: Train) -> None:
    done = train(tmp_path / "run", *STEPS, "--fine-tune", "full", "--method", "orpo", data=PREFERENCES)
    assert done.returncode == 0, done.stderr
    printed = in_mlx(
        "import mlx.core as mx, mlx_lm\n"
        f"base, _ = mlx_lm.load({str(TINY_MODEL)!r})\n"
        f"tuned, tokenizer = mlx_lm.load({str(tmp_path / 'run' / 'output')!r})\n"
        "tokens = mx.array([tokenizer.encode('How do magnets work?')])\n"
        "print(float(mx.abs(base(tokens) - tuned(tokens)).max()))"
    )
    assert float(printed) > 1e-3


@pytest.mark.soak
def test_pipelines_of_unequal_stages_end_in_the_same_adapters(tmp_path: Path, train: Train) -> None:
    for parallel in ("single", "pipeline"):
        done = train(tmp_path / parallel, *STEPS, "--parallel", parallel, "--method", "dpo", data=PREFERENCES)
        assert done.returncode == 0, done.stderr
    printed = in_mlx(
        "import mlx.core as mx\n"
        f"one = mx.load({str(tmp_path / 'single' / 'output' / 'adapters.safetensors')!r})\n"
        f"other = mx.load({str(tmp_path / 'pipeline' / 'output' / 'adapters.safetensors')!r})\n"
        "assert one.keys() == other.keys()\n"
        "print(max(float(mx.abs(one[name] - other[name]).max()) for name in one))"
    )
    assert float(printed) < 1e-4
    assert summary(tmp_path / "pipeline")["plan"]["approach"] == "pipeline"


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([], (), "has no rows"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": 3, "completion": "b"}], (), "rows.jsonl:2"),
        ([{"prompt": "a", "completion": "b"}], ("--method", "dpo"), "--method sft"),
        ([{"prompt": "a", "completion": "b"}], (), "a global batch of 8 is more than the 1 rows"),
        (
            [{"prompt": "a", "completion": "b"}],
            ("--global-batch", "1", "--parallel", "data"),
            "a global batch of 1 rows is smaller than 2 ranks",
        ),
        ([{"prompt": "a", "completion": "b"}], ("--learning-rate", "0"), "--learning-rate: with 0 nothing is learned"),
        ([{"prompt": "a", "completion": "b"}], ("--parallel", "both"), "--parallel: 'both' will not do"),
    ],
)
def test_bad_input_costs_nothing(
    tmp_path: Path,
    pair: CurateCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    more: tuple[str, ...],
    said: str,
) -> None:
    """The command as `realign` runs it, in this process."""
    monkeypatch.setenv("REALIGN_HOME", str(pair.realign_home))
    data, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    command = ["train", *("--hostfile", pair.hostfile()), *("--data", data), *("--model", TINY_MODEL), *("--out", out)]
    assert realign_command([str(argument) for argument in (*command, *STEPS, *more)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.soak
def test_what_only_a_rank_can_see_is_said_and_may_be_corrected(tmp_path: Path, train: Train) -> None:
    rows = [{"prompt": f"question {index}", "completion": "words " * (200 if index == 5 else 3)} for index in range(16)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    refused = train(tmp_path / "run", *STEPS, "--max-tokens", "64", data=data)
    assert refused.returncode == 1
    assert "1 of 16 rows of --data are longer than 64 tokens" in refused.stderr
    assert "rows.jsonl:6" in refused.stderr
    assert "--max-tokens" in refused.stderr
    corrected = train(tmp_path / "run", *STEPS, "--max-tokens", "64", "--truncate", "right", data=data)
    assert corrected.returncode == 0, corrected.stderr
    assert "1 of 16 training rows were longer than the limit and were cut" in corrected.stderr
    assert summary(tmp_path / "run")["rows"] == {"train": 16, "valid": 0, "truncated": 1, "empty": 0}
