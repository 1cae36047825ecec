"""What a process is started for, a scoring job or a rank of a training: its job, checked, and its first frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.job import ScoreJob
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import RankSpec
from realign_cluster.node.environment import check_environment
from realign_cluster.node.worker_process import Launch
from realign_cluster.rpc.pb import node_pb2 as pb

SCORING_MODULE = "realign_cluster.scoring.worker"
RANK_MODULE = "realign_cluster.training.worker"
Job = TypeVar("Job", ScoreJob, TrainJob)


class JobRefused(RealignError):
    """What a coordinator asks cannot be done here. `code` is for programs."""

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message, fix)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """`job_json` is the job as the coordinator wrote it; `group` the worker's place in one, empty if it is alone.
    `other_dirs`: folders by hash of what the job names besides its model.
    """

    job: ScoreJob
    job_json: bytes
    model_dir: str
    launch: Launch
    other_dirs: Mapping[str, str] = field(default_factory=dict)
    group: bytes = b""
    measure: str = "none"
    samples: tuple[bytes, ...] = ()

    def same_worker(self, other: WorkOrder) -> bool:
        """Whether a worker for `other` serves this one as it is."""
        return (self.job, self.model_dir, self.other_dirs, self.launch, self.group) == (
            other.job,
            other.model_dir,
            other.other_dirs,
            other.launch,
            other.group,
        )

    def frame(self, measure: str, cores: int) -> dict[str, Any]:
        return {
            "op": "prepare",
            "job": self.job_json,
            "model_dir": self.model_dir,
            "other_dirs": dict(self.other_dirs),
            "group": self.group,
            "measure": measure,
            "samples": list(self.samples),
            "cores": cores,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStart:
    """One rank of one generation. `job_json` and `spec_json` as the coordinator wrote them; the folders are there."""

    run_id: str
    spec: RankSpec
    spec_json: bytes
    job_json: bytes
    model_dir: str
    data_dir: str
    state_dir: str
    cache_dir: str
    launch: Launch

    def frame(self, cores: int) -> dict[str, Any]:
        return {
            "op": "prepare",
            "run_id": self.run_id,
            "job": self.job_json,
            "spec": self.spec_json,
            "model_dir": self.model_dir,
            "data_dir": self.data_dir,
            "state_dir": self.state_dir,
            "cache_dir": self.cache_dir,
            "cores": cores,
        }


def read_job(kind: type[Job], asked: pb.Prepare | pb.PrepareTraining) -> Job:
    """Raises JobRefused for a job or an environment that this node does not take."""
    try:
        check_environment(asked.environment)
        return kind.model_validate_json(asked.job)
    except UsageError as error:
        raise JobRefused("environment", error.message, error.fix) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise JobRefused(
            "job",
            f"this node does not understand the job: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            "install the same version of realign-cluster on all nodes: realign-launch --install",
        ) from error


def launch_of(module: str, job: ScoreJob | TrainJob, asked: pb.Prepare | pb.PrepareTraining) -> Launch:
    """For a job that `read_job` took."""
    return Launch(
        module=module,
        environment=dict(asked.environment),
        nice=max(-20, min(19, asked.nice)),
        blas_threads=job.blas_threads,
        blas_core_type=job.blas_core_type,
    )
