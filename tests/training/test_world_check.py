"""What ranks compare before they train, and what is said of those that differ."""

from __future__ import annotations

import pytest

from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.section_limits import SectionLimits
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import RankSpec, StatePart
from realign_cluster.training.world_check import Statement, differences, statement_of, world_identity
from tests.training.rank_driver import replicas

VERSIONS = {"mlx": "0.32.2", "mlx_lm": "0.32.0", "project": "0.1.0", "python": "3.11.2"}
SPEC = ModelSpec(name="tiny", hash="m" * 32)
JOB = TrainJob(model=SPEC, data=SPEC, steps=1, global_batch=4)
RANK = RankSpec(generation=3, rank=0, world=replicas(1, 1))
PART = StatePart(kind="snapshot", step=2, part=0, parts=1, layout="whole", digest="d" * 32, bytes=10)


def stated(job: TrainJob = JOB, spec: RankSpec = RANK, **versions: str) -> Statement:
    found = VERSIONS | versions
    return statement_of(world_identity(job, spec, found), spec, found)


def test_ranks_of_one_world_agree_whatever_is_their_own() -> None:
    second = RANK.model_copy(update={"rank": 1, "limits": SectionLimits(factor=2.0)})
    smaller = JOB.model_copy(update={"memory_limit_bytes": 10**9})
    assert differences([stated(), stated(smaller, second, python="3.12.0")]) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (stated(mlx="0.32.0"), "rank 1 has versions mlx 0.32.0, mlx_lm 0.32.0, project 0.1.0, rank 0 mlx 0.32.2, "),
        (
            stated(spec=RANK.model_copy(update={"world": replicas(3, 1)})),
            "rank 1 has shares [0.75, 0.25], rank 0 [0.5, 0.5]",
        ),
        (stated(spec=RANK.model_copy(update={"generation": 2})), "rank 1 has generation 2, rank 0 3"),
        (stated(spec=RANK.model_copy(update={"start": (PART,)})), 'rank 1 has start ["dddddddd'),
        (stated(JOB.model_copy(update={"seed": 1})), "rank 1 was started for another job than rank 0"),
    ],
)
def test_who_differs_in_what(other: Statement, said: str) -> None:
    found = differences([stated(), other, stated()])
    assert len(found) == 1
    assert said in found[0]
