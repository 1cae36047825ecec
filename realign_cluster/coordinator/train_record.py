"""A training run on disk: opens its folder, prepares its data, opens its ledger; refuses to continue one that was made
from something else.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.run_record import note_request
from realign_cluster.coordinator.train_request import TrainRequest
from realign_cluster.coordinator.train_work import check_batch
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.ids import RunId
from realign_cluster.domain.recovery_codec import decode
from realign_cluster.domain.recovery_commands import Remember
from realign_cluster.domain.run_memory import RunMemory
from realign_cluster.domain.training import TrainJob
from realign_cluster.store.benchmark_data import prepared_benchmarks
from realign_cluster.store.checkpoints import CheckpointStore
from realign_cluster.store.model_files import describe_model, resolve_model
from realign_cluster.store.run_folder import RunFolder
from realign_cluster.store.train_ledger import TrainLedger, TrainLedgerReader
from realign_cluster.store.training_data import PreparedData, prepare_training_data


@dataclass(slots=True, kw_only=True)
class TrainRun:
    """An open run: this process has its lock until `close`."""

    folder: RunFolder
    ledger: TrainLedger
    checkpoints: CheckpointStore
    request: TrainRequest
    run_id: RunId
    job: TrainJob
    model: ModelSource
    data: ModelSource
    prepared: PreparedData
    finished_summary: dict[str, Any] | None

    @property
    def started(self) -> bool:
        """Whether a rank was ever started: then there may be something to go on with."""
        return bool(self.ledger.meta("memory"))

    @property
    def memory(self) -> RunMemory:
        """What recovery is to know of earlier sittings."""
        stored = self.ledger.meta("memory")
        if stored is None:
            return RunMemory()
        remembered = decode(stored)
        assert isinstance(remembered, Remember)
        return remembered.memory

    def close(self) -> None:
        self.ledger.close()
        self.folder.close()

    def abandon(self) -> None:
        """It cannot be started: a fresh run leaves nothing behind."""
        self.ledger.close()
        self.folder.abandon()


def open_train_run(
    request: TrainRequest, command: str | None = None, look: Callable[[], None] = lambda: None
) -> TrainRun:
    """Everything that can be checked without a node is checked here; what fails leaves nothing behind. `look` is called
    now and then while the data is read, and may raise: to be interrupted.

    Raises UsageError for data that is not right (with file and line), a bad model folder, and a run folder that was
    made from something else or that another process has.
    """
    spec = describe_model(request.model)
    model = ModelSource(folder=resolve_model(request.model), spec=spec)
    with contextlib.ExitStack() as undo:
        folder = RunFolder.hold(request.out)
        undo.callback(folder.abandon)
        benchmarks = prepared_benchmarks(request.benchmarks)
        prepared = prepare_training_data(
            request.data,
            request.valid,
            request.settings.method,
            folder.data,
            probe_paths=request.kl_probes,
            beside=benchmarks,
            look=look,
        )
        check_batch(request.settings, prepared.rows)
        job = request.job(spec, prepared.spec)
        identity = request.identity(spec, prepared.spec)
        ledger = _open_ledger(folder, identity)
        undo.callback(ledger.close)
        note_request(folder, "train", request.anchored(), command)
        run_id = ledger.meta("run_id")
        if run_id is None:
            run_id = secrets.token_hex(8)
            ledger.set_meta("run_id", run_id)
        run = TrainRun(
            folder=folder,
            ledger=ledger,
            checkpoints=CheckpointStore(folder.checkpoints),
            request=request,
            run_id=RunId(run_id),
            job=job,
            model=model,
            data=ModelSource(folder=prepared.folder, spec=prepared.spec),
            prepared=prepared,
            finished_summary=_finished_summary(folder, ledger),
        )
        undo.pop_all()
        return run


def read_train_request(path: Path) -> TrainRequest:
    """What run.toml of this folder asks for, wherever the folder is now. Raises UsageError when it is no training
    run.
    """
    try:
        request = TrainRequest.model_validate(RunFolder.read(path).read_run_toml()["request"])
        return request.model_copy(update={"out": path.absolute()})
    except (KeyError, ValidationError) as error:
        raise UsageError(f"{path}/run.toml cannot be read: {error}", "start the run again with its command") from error


def _open_ledger(folder: RunFolder, identity: dict[str, Any]) -> TrainLedger:
    """A run that never did a step may be corrected: it begins anew from what is asked now."""
    if not folder.ledger.exists():
        return TrainLedger.create(folder.ledger, identity)
    try:
        return TrainLedger.open(folder.ledger, identity)
    except UsageError:
        with contextlib.closing(TrainLedgerReader(folder.ledger)) as reader:
            if reader.last_step():
                raise
        for suffix in ("", "-wal", "-shm"):
            folder.ledger.with_name(folder.ledger.name + suffix).unlink(missing_ok=True)
        folder.summary.unlink(missing_ok=True)
        return TrainLedger.create(folder.ledger, identity)


def _finished_summary(folder: RunFolder, ledger: TrainLedger) -> dict[str, Any] | None:
    """The summary of a run that is over and written out."""
    if not ledger.meta("finished") or not folder.summary.exists():
        return None
    summary: dict[str, Any] = orjson.loads(folder.summary.read_bytes())
    return summary
