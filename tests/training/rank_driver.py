"""Ranks as the daemon starts them: real worker processes that speak frames over pipes, driven by a test.

with Crew(folder, job, world) as crew:
    crew.go()
    reports = crew.finish()
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from realign_cluster.domain.rank_report import RANK_REPORT, Ended, Failed, Loaded, RankReport, StepDone
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.world import RankSpec, StatePart, WorldPlan
from realign_cluster.node.blas import find_openblas
from realign_cluster.rpc.frames import FrameReader, write_frame
from realign_cluster.store.model_files import describe_model
from realign_cluster.store.training_data import prepare_training_data

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny-model"
SECONDS = 60.0


def prepared_job(
    folder: Path,
    data: Path,
    valid: Path | None = None,
    *,
    model: Path = TINY,
    beside: Mapping[str, bytes] = MappingProxyType({}),
    probes: Path | None = None,
    **settings: Any,
) -> TrainJob:
    """A job on `data` with the tiny model; the prepared dataset is in folder/data/HASH."""
    method = settings.get("method", "sft")
    valid_paths = [valid] if valid is not None else []
    asked = [probes] if probes is not None else []
    prepared = prepare_training_data([data], valid_paths, method, folder / "data", probe_paths=asked, beside=beside)
    return TrainJob(model=describe_model(model), data=prepared.spec, **settings)


class RankProcess:
    """One worker. Reports come in `reports`, in order, as they are heard."""

    def __init__(self, folder: Path, job: TrainJob, spec: RankSpec, model: Path, data: Path) -> None:
        self.spec = spec
        self.reports: list[RankReport] = []
        self._heard: queue.Queue[RankReport | None] = queue.Queue()
        state = folder / f"state-{spec.rank}"
        state.mkdir(parents=True, exist_ok=True)
        (folder / "cache").mkdir(exist_ok=True)
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if (library := find_openblas()) is not None:
            environment["LD_PRELOAD"] = str(library)
        self.errors = folder / f"rank-{spec.rank}.{spec.generation}.stderr"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "realign_cluster.training.worker"),
                    *("--read-fd", str(to_read), "--write-fd", str(from_write)),
                ],
                pass_fds=(to_read, from_write),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=environment,
            )
        os.close(to_read)
        os.close(from_write)
        self._pipe = os.fdopen(to_write, "wb", 0)
        self._reader = os.fdopen(from_read, "rb")
        threading.Thread(target=self._listen, daemon=True).start()
        self.tell(
            {
                "op": "prepare",
                "job": job.model_dump_json().encode(),
                "spec": spec.model_dump_json().encode(),
                "model_dir": str(model),
                "data_dir": str(data / job.data.hash),
                "state_dir": str(state),
                "cache_dir": str(folder / "cache"),
                "cores": 1,
                "run_id": "test",
            }
        )

    def tell(self, frame: dict[str, Any]) -> None:
        write_frame(self._pipe, frame)

    def hear(self, seconds: float = SECONDS) -> RankReport | None:
        """The next report; None once the process has closed its pipe."""
        try:
            report = self._heard.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"rank {self.spec.rank} said nothing\n{self.errors.read_text()}") from None
        if report is not None:
            self.reports.append(report)
        return report

    def until(self, kind: type[Any], seconds: float = SECONDS, **having: Any) -> Any:
        """Hears until a report of this kind and these values comes. Raises AssertionError if the rank fails or ends
        first.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            report = self.hear(seconds)
            if isinstance(report, kind) and all(getattr(report, name) == value for name, value in having.items()):
                return report
            if report is None or isinstance(report, Failed):
                raise AssertionError(f"rank {self.spec.rank}: {report}\n{self.errors.read_text()}")
        raise AssertionError(f"rank {self.spec.rank}: no {kind.__name__} within {seconds} s")

    def all(self, kind: type[Any]) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _listen(self) -> None:
        for frame in FrameReader(self._reader):
            self._heard.put(RANK_REPORT.validate_json(frame["body"]))
        self._heard.put(None)


class Crew:
    """One generation. Each rank has its own state folder, which outlives it: folder/state-RANK. The prepared dataset
    is in `data`, or in folder/data.
    """

    def __init__(
        self,
        folder: Path,
        job: TrainJob,
        world: WorldPlan,
        *,
        generation: int = 1,
        start: tuple[StatePart, ...] = (),
        model: Path = TINY,
        data: Path | None = None,
        **spec: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        step = start[0].step if start else 0
        self.ranks = [
            RankProcess(
                folder,
                job,
                RankSpec(generation=generation, rank=rank, world=world, start_step=step, start=start, **spec),
                model,
                data or folder / "data",
            )
            for rank in range(world.size)
        ]
        self._generation = generation

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank in self.ranks:
            rank.kill()

    def go(self) -> None:
        ports = [rank.until(Loaded).port for rank in self.ranks]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        for rank in self.ranks:
            rank.tell({"op": "go", "generation": self._generation, "addresses": addresses})

    def finish(self) -> list[Ended]:
        return [rank.until(Ended) for rank in self.ranks]

    def losses(self, rank: int = 0) -> list[float]:
        return [done.loss for done in self.ranks[rank].all(StepDone)]


def single() -> WorldPlan:
    return WorldPlan(parallel="single", nodes=("alpha",), shares=(1.0,))


def replicas(*shares: float) -> WorldPlan:
    total = sum(shares)
    names = ("alpha", "beta", "gamma", "delta")[: len(shares)]
    return WorldPlan(parallel="data", nodes=names, shares=tuple(share / total for share in shares))
