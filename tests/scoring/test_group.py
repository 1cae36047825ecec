"""A model over several worker processes gives the scores that it gives in one: pipeline and tensor, every kind."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.domain.canary import check_canaries
from realign_cluster.domain.group import Place
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.report import WorkerReport
from realign_cluster.domain.world import WorldPlan
from realign_cluster.scoring.model_session import CPU_SHAPE
from tests.scoring.making import make_job, scorer_of
from tests.scoring.worker_process import WorkerProcess

MakeFolder = Callable[..., Path]
TOLERANCE = 1e-5  # nats per token

TEXT = "the node that holds the last blocks leads and the others follow it round the ring of ranks"
WORDS = TEXT.split()


def words(start: int, count: int) -> str:
    return " ".join(WORDS[(start * 7 + at) % len(WORDS)] for at in range(count))


ROWS = [
    orjson.dumps(
        {
            "prompt": f"Question {at}: {words(at, 3 + at % 5)}?",
            "response": words(at, 4 + (at * 11) % 40),
            "chosen": words(at, 6 + at % 9),
            "rejected": words(at + 1, 2 + at % 13),
            "claim": words(at, 5),
            "evidence": words(at + 2, 20 + at % 30),
        }
    )
    for at in range(15)
] + [  # longer than a batch, and than what is run at once
    orjson.dumps(
        {
            "prompt": words(1, 700),
            "response": words(3, 400),
            "chosen": words(4, 30),
            "rejected": words(5, 8),
            "claim": words(6, 30),
            "evidence": words(7, 90),
        }
    )
]
KINDS = ("loglik", "ifd", "preference", "judge")


def world(parallel: str, *layers: tuple[int, int], ranks: int = 2) -> WorldPlan:
    names = tuple("abc"[: len(layers) or ranks])
    shares = (1 / len(names),) * len(names)
    return WorldPlan.model_validate({"parallel": parallel, "nodes": names, "shares": shares, "layers": layers})


def job_of(folder: Path, **options: Any) -> ScoreJob:
    judge = {"template": "{evidence}\nIs it so that {claim}?", "labels": ("yes", "no", "not known")}
    canaries = tuple(row.decode() for row in ROWS[:3])
    return make_job(folder, *KINDS, canaries=canaries, chat="plain", **judge, **options)


class Crew:
    """The worker processes of one group, in rank order."""

    def __init__(self, workers: Sequence[WorkerProcess]) -> None:
        self.workers = workers
        self.leader = workers[-1]
        self.reports: list[WorkerReport] = []

    def join(self) -> None:
        addresses = [f"127.0.0.1:{worker.wait_for('waiting')['port']}" for worker in self.workers]
        for worker in self.workers:
            worker.send(op="go", addresses=addresses)
        self.reports = [WorkerReport.model_validate_json(worker.wait_for("ready")["report"]) for worker in self.workers]

    def scores(self, units: Sequence[Sequence[bytes]]) -> list[bytes]:
        for attempt, rows in enumerate(units):
            self.leader.unit(attempt, rows)
        return [self.leader.wait_for("result")["payload"] for _ in units]


@contextmanager
def crew(job: ScoreJob, folder: Path, plan: WorldPlan | None, **options: Any) -> Iterator[Crew]:
    """Joined and ready; without a plan one worker that has the whole model."""
    with ExitStack() as stack:
        found = Crew([stack.enter_context(WorkerProcess()) for _ in range(plan.size if plan is not None else 1)])
        for rank, worker in enumerate(found.workers):
            place = Place(sitting=1, rank=rank, world=plan, batch_tokens=1 << 20) if plan is not None else None
            worker.prepare(job, folder, place=place, **options)
        if plan is None:
            found.reports = [WorkerReport.model_validate_json(found.leader.wait_for("ready")["report"])]
        else:
            found.join()
        yield found


def numbers(value: Any, path: str = "") -> dict[str, Any]:
    """What is in a payload's row, by path."""
    if isinstance(value, dict):
        return {key: found for name in value for key, found in numbers(value[name], f"{path}.{name}").items()}
    return {path: value}


def assert_equal(found: Sequence[bytes], right: Sequence[bytes]) -> None:
    lines = [orjson.loads(line) for line in b"\n".join(found).split(b"\n")]
    expected = [orjson.loads(line) for line in b"\n".join(right).split(b"\n")]
    assert len(lines) == len(expected)
    for one, other in zip(lines, expected, strict=True):
        tokens = other["loglik"]["tokens"] + other["preference"]["chosen"]["tokens"] + 1
        values, rights = numbers(one), numbers(other)
        assert values.keys() == rights.keys()
        for path, value in rights.items():
            if isinstance(value, float):
                bound = TOLERANCE * (tokens if path.endswith("sum") else 1)
                assert values[path] == pytest.approx(value, abs=bound), path
            else:
                assert values[path] == value, path


UNITS = [ROWS[:9], ROWS[9:10], ROWS[10:]]
CASES = [
    ("llama-deep", world("pipeline", (0, 2), (2, 3), (3, 5))),
    ("gemma3_text", world("pipeline", (0, 1), (1, 2))),  # windows that turn over
    ("qwen3", world("tensor")),
]


@pytest.mark.parametrize(("name", "plan"), CASES, ids=[f"{name}-{plan.layout}" for name, plan in CASES])
def test_scores_are_those_of_the_whole_model(name: str, plan: WorldPlan, model_folder: MakeFolder) -> None:
    folder = model_folder(name)
    job = job_of(folder)
    scorer = scorer_of(job, folder, shape=CPU_SHAPE)
    with crew(job, folder, plan) as group:
        found = group.scores(UNITS)
    assert_equal(found, [scorer.compute(scorer.prepare(rows))[0] for rows in UNITS])


def test_a_pipeline_is_one_process_to_the_bit(tiny_model: Path) -> None:
    """Also measured and trusted as one. `reproducible`: a row's scores are the same whatever unit it is in."""
    job = job_of(tiny_model, reproducible=True, blas_threads=1)
    with crew(job, tiny_model, None) as alone:
        right, whole = alone.scores(UNITS), alone.reports[0]
    with crew(job, tiny_model, world("pipeline", (0, 1), (1, 3)), measure="quick", samples=ROWS[:4]) as group:
        found = group.scores(UNITS)
        [backwards] = group.scores([ROWS[::-1]])
    assert found == right
    assert backwards.split(b"\n")[::-1] == b"\n".join(right).split(b"\n")
    assert check_canaries(group.reports[-1], node="b", reference=whole, reference_node="a", expected=3).trusted
    assert group.reports[-1].calibration is not None
    for report in group.reports:
        assert report.weights_bytes < whole.weights_bytes
        assert report.model_hash == whole.model_hash


def test_a_rank_that_dies_takes_the_others_with_it(tiny_model: Path) -> None:
    """Its unit has no answer; the leader ends instead of trying the rows again with half a model."""
    with crew(job_of(tiny_model), tiny_model, world("pipeline", (0, 1), (1, 3))) as group:
        group.leader.unit(1, ROWS[:3])
        group.leader.wait_for("result")
        group.workers[0].process.send_signal(signal.SIGKILL)
        group.leader.unit(2, ROWS)
        said = [frame["op"] for frame in group.leader.frames()]
        assert group.leader.process.wait(30) == 1
    assert "begin" in said
    assert "result" not in said
    assert "failed" not in said


def test_a_share_that_does_not_fit_is_refused_before_anything_is_joined(tiny_model: Path) -> None:
    job = job_of(tiny_model, memory_limit_bytes=300 << 20)
    with WorkerProcess() as worker:
        worker.prepare(job, tiny_model, place=Place(sitting=1, rank=0, world=world("tensor"), batch_tokens=64))
        refused = next(frame for frame in worker.frames() if frame["op"] in ("refused", "waiting"))
    assert refused["code"] == "memory"
    assert "this node's share" in refused["message"]
