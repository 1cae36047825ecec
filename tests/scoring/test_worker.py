"""The worker as a real child process over real pipes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from realign_cluster.domain.canary import check_canaries
from realign_cluster.domain.job import ModelSpec, ScoreJob
from realign_cluster.domain.report import WorkerReport
from tests.scoring.making import make_job, make_scorer, score
from tests.scoring.worker_process import WorkerProcess

ROWS = [
    orjson.dumps({"prompt": f"Say the number {at}.", "response": f"The number is {at}. " * (at % 7 + 1)})
    for at in range(24)
]
NOOP = ScoreJob(kinds=("noop",), model=ModelSpec(name="none", hash="none"))


def fault(kind: str) -> bytes:
    return orjson.dumps({"prompt": "Why?", "response": "Because.", "__realign_fault__": kind})


@pytest.fixture(scope="module")
def scoring(tiny_model: Path) -> Iterator[tuple[WorkerProcess, WorkerReport]]:
    """One worker that scores loglik and ifd and obeys faults."""
    job = make_job(tiny_model, "loglik", "ifd", canaries=tuple(row.decode() for row in ROWS[:4]))
    with WorkerProcess({"REALIGN_FAULTS": "1"}) as worker:
        worker.prepare(job, tiny_model, measure="quick", samples=ROWS)
        yield worker, WorkerReport.model_validate_json(worker.wait_for("ready")["report"])


def test_the_report(scoring: tuple[WorkerProcess, WorkerReport]) -> None:
    _, report = scoring
    assert report.dtype == "float32"
    assert report.weights_bytes > 3_000_000
    assert check_canaries(report, node="here", expected=4).trusted
    assert report.canary_tokens == tuple(2 * scores["loglik"]["tokens"] for scores in report.canaries_alone)
    assert report.tokens_per_byte is not None
    assert 0.1 < report.tokens_per_byte < 1.0
    calibration = report.calibration
    assert calibration is not None
    assert calibration.mode == "quick"
    assert calibration.seconds < 8.0
    assert calibration.cost_per_second > 0
    assert calibration.rows_per_second > 0


def test_units_give_what_the_scorer_gives(scoring: tuple[WorkerProcess, WorkerReport], tiny_model: Path) -> None:
    worker, _ = scoring
    worker.unit(1, ROWS[:10])
    worker.unit(2, ROWS[10:])
    assert worker.wait_for("begin")["attempt"] == 1
    first = worker.wait_for("result")
    assert worker.wait_for("begin")["attempt"] == 2
    second = worker.wait_for("result")
    assert [(first["attempt"], first["unit"], first["rows"]), (second["attempt"], second["rows"])] == [
        (1, 101, 10),
        (2, 14),
    ]
    assert first["tokens"] > 0
    assert first["compute_seconds"] > 0
    assert "x" in first["shape"]
    lines = (first["payload"] + b"\n" + second["payload"]).split(b"\n")
    right, _ = score(make_scorer(tiny_model, "loglik", "ifd"), [orjson.loads(row) for row in ROWS])
    for line, expected in zip(lines, right, strict=True):
        found = orjson.loads(line)
        assert found["loglik"]["sum"] == pytest.approx(expected["loglik"]["sum"], abs=1e-3)
        assert found["ifd"]["value"] == pytest.approx(expected["ifd"]["value"], abs=1e-5)


def test_a_row_that_raises_fails_its_unit_by_name(scoring: tuple[WorkerProcess, WorkerReport]) -> None:
    worker, _ = scoring
    worker.unit(3, [*ROWS[:3], fault("raise"), ROWS[4]])
    failed = worker.wait_for("failed")
    assert (failed["attempt"], failed["unit"], failed["row"], failed["code"]) == (3, 103, 3, "exception")
    assert "RuntimeError" in failed["message"]
    worker.unit(4, ROWS[:2])
    assert worker.wait_for("result")["attempt"] == 4


def test_bad_rows_are_errors_in_the_payload(scoring: tuple[WorkerProcess, WorkerReport]) -> None:
    worker, _ = scoring
    worker.unit(5, [b"not json", b'{"prompt": 3, "response": "x"}', ROWS[0]])
    lines = [orjson.loads(line) for line in worker.wait_for("result")["payload"].split(b"\n")]
    assert [line.get("error", {}).get("code") for line in lines] == ["bad-row", "bad-row", None]


def test_a_count_that_is_wrong_fails_the_unit(scoring: tuple[WorkerProcess, WorkerReport]) -> None:
    worker, _ = scoring
    worker.unit(6, ROWS[:2], count=3)
    assert "2 rows, not 3" in worker.wait_for("failed")["message"]


def test_noop_and_revoke_and_stop() -> None:
    with WorkerProcess({"REALIGN_FAULTS": "1"}) as worker:
        worker.prepare(NOOP, Path("nowhere"), measure="quick", samples=ROWS)
        report = WorkerReport.model_validate_json(worker.wait_for("ready")["report"])
        assert report.calibration is not None
        assert report.calibration.rows_per_second > 100_000
        worker.unit(1, [*ROWS, b"{broken"])
        lines = worker.wait_for("result")["payload"].split(b"\n")
        assert lines[:-1] == [b'{"noop":{}}'] * len(ROWS)
        assert orjson.loads(lines[-1])["error"]["code"] == "bad-row"
        worker.send(op="stop")
        assert worker.process.wait(10) == 0


def test_revoked_units_are_dropped(tiny_model: Path) -> None:
    with WorkerProcess() as worker:
        worker.prepare(make_job(tiny_model, "loglik"), tiny_model)
        worker.wait_for("ready")
        worker.unit(1, ROWS * 20)
        for attempt in (2, 3, 4):
            worker.unit(attempt, ROWS[:1])
        worker.send(op="revoke", attempts=[2, 3, 99])
        finished = [worker.wait_for("result")["attempt"] for _ in range(2)]
        assert finished == [1, 4]


def test_stop_finishes_the_unit_in_hand(tiny_model: Path) -> None:
    with WorkerProcess() as worker:
        worker.prepare(make_job(tiny_model, "loglik"), tiny_model)
        worker.wait_for("ready")
        worker.unit(1, ROWS * 20)
        worker.unit(2, ROWS)
        worker.wait_for("begin")
        worker.send(op="stop")
        done = [frame["attempt"] for frame in worker.frames() if frame["op"] == "result"]
        assert done == [1]
        assert worker.process.wait(10) == 0


def test_a_closed_pipe_ends_the_process(tiny_model: Path) -> None:
    with WorkerProcess() as worker:
        worker.prepare(make_job(tiny_model, "loglik"), tiny_model)
        worker.wait_for("ready")
        worker.unit(1, ROWS * 200)
        worker.wait_for("progress")
        worker.close_pipe()
        assert worker.process.wait(10) == 0


def test_kill_and_hang() -> None:
    with WorkerProcess({"REALIGN_FAULTS": "1"}) as worker:
        worker.prepare(NOOP, Path("nowhere"))
        worker.wait_for("ready")
        worker.unit(7, [ROWS[0], fault("kill")])
        assert worker.wait_for("begin")["attempt"] == 7
        assert worker.process.wait(10) == -signal.SIGKILL
    with WorkerProcess({"REALIGN_FAULTS": "1"}) as worker:
        worker.prepare(NOOP, Path("nowhere"))
        worker.wait_for("ready")
        worker.unit(8, [fault("hang")])
        worker.wait_for("begin")
        worker.unit(9, [ROWS[0]])
        with pytest.raises(Exception, match="timed out"):
            worker.process.wait(1)
        worker.close_pipe()  # a hung worker still notices that its daemon is gone
        assert worker.process.wait(10) == 0


def test_faults_are_not_obeyed_unless_allowed() -> None:
    with WorkerProcess() as worker:
        worker.prepare(NOOP, Path("nowhere"))
        worker.wait_for("ready")
        worker.unit(1, [fault("kill")])
        assert worker.wait_for("result")["payload"] == b'{"noop":{}}'


def refusal(job: ScoreJob, folder: Path) -> tuple[str, str]:
    with WorkerProcess() as worker:
        worker.prepare(job, folder)
        (refused,) = [frame for frame in worker.frames() if frame["op"] == "refused"]
        assert worker.process.wait(10) == 3
        assert "fix:" in refused["message"]
        return refused["code"], refused["message"]


def test_refusals(tiny_model: Path, tmp_path: Path) -> None:
    job = make_job(tiny_model, "loglik")
    other = job.model_copy(update={"model": job.model.model_copy(update={"hash": "0" * 32})})
    assert refusal(other, tiny_model)[0] == "model_hash"

    code, message = refusal(job.model_copy(update={"memory_limit_bytes": 200 * 2**20}), tiny_model)
    assert code == "memory"
    assert "weights" in message
    assert "KV cache" in message

    shutil.copytree(tiny_model, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    code, message = refusal(job, tmp_path / "bare")
    assert (code, "without tokenizer" in message) == ("model", True)

    code, _ = refusal(job.model_copy(update={"kind_versions": {"loglik": 99}}), tiny_model)
    assert code == "kind"


def test_a_worker_that_cannot_open_its_job_for_a_reason_of_its_own_ends(tiny_model: Path) -> None:
    """It neither hangs in its reading thread nor claims that the job is at fault."""
    with WorkerProcess() as worker:
        worker.prepare(make_job(tiny_model, "loglik"), tiny_model, measure="quick", samples=[b"not a row"])
        assert worker.process.wait(60) == 1
        assert [frame["op"] for frame in worker.frames() if frame["op"] not in ("phase", "progress")] == []
    assert b"Traceback" in worker.stderr
