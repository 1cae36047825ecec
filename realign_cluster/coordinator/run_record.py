"""A run on disk: opens its folder, input and ledger; refuses to continue one that was made from something else."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError

from realign_cluster.coordinator.job_models import open_beside
from realign_cluster.coordinator.model_transfer import ModelSource
from realign_cluster.coordinator.request import CurateRequest
from realign_cluster.domain.batching import drawn_cost, unit_cost_of
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.expression import KeepIf
from realign_cluster.domain.ids import RunId
from realign_cluster.domain.job import NO_MODEL, Beside, ModelSpec
from realign_cluster.domain.rows import RESERVED_COLUMNS
from realign_cluster.store.input_check import check_inputs
from realign_cluster.store.intake import ScanOptions
from realign_cluster.store.ledger import Ledger
from realign_cluster.store.model_files import describe_model, resolve_model
from realign_cluster.store.output import TRL_COLUMNS, OutputOptions
from realign_cluster.store.readers import Sources, expand_inputs
from realign_cluster.store.run_folder import RunFolder

LONGEST_SAMPLE = 1 << 20  # bytes


@dataclass(slots=True, kw_only=True)
class Run:
    """An open run: this process has its lock until `close`."""

    folder: RunFolder
    ledger: Ledger
    sources: Sources
    spec: ModelSpec
    model: ModelSource | None
    beside: Beside
    others: tuple[ModelSource, ...]  # of `beside`
    keep_if: KeepIf | None
    request: CurateRequest
    run_id: RunId
    finished_summary: dict[str, Any] | None
    plan: dict[str, Any]  # plan.json of this sitting or an earlier one

    def scan_options(self, tokens_per_byte: float) -> ScanOptions:
        return ScanOptions(
            tokens_per_byte=tokens_per_byte,
            on_bad_row=self.request.on_bad_row,
            limit=self.request.limit,
            unit_cost=unit_cost_of(self.request.answer_tokens),
            added_cost=drawn_cost(self.request.new_tokens),
            reserved=RESERVED_COLUMNS + TRL_COLUMNS if self.request.export_trl else RESERVED_COLUMNS,
        )

    def output_options(self) -> OutputOptions:
        return OutputOptions(format=self.request.format, keep_if=self.keep_if, export_trl=self.request.export_trl)

    @property
    def started(self) -> bool:
        """Whether a node was ever given work: then there is something to go on with."""
        return self.ledger.granted_anything

    def close(self) -> None:
        self.sources.close()
        self.ledger.close()
        self.folder.close()

    def abandon(self) -> None:
        """It cannot be started: a fresh run leaves nothing behind."""
        self.sources.close()
        self.ledger.close()
        self.folder.abandon()


def open_run(request: CurateRequest, command: str | None = None) -> Run:
    """Everything that can be checked without a node is checked here, cheapest first; what fails leaves nothing behind.

    `command` is noted as what started the run; without one the note that is there stays.

    Raises UsageError for input that is not there, a bad model folder, and a run folder that was made from something
    else or that another process has.
    """
    keep_if = request.compile_keep_if()
    files = expand_inputs(request.inputs)
    spec, model = _model(request)
    beside, others = open_beside(request)
    with contextlib.ExitStack() as undo:
        folder = RunFolder.hold(request.out)
        undo.callback(folder.abandon)
        sources = undo.enter_context(Sources(files, folder.input_cache))
        ledger = undo.enter_context(contextlib.closing(_open_ledger(request, folder, spec, beside)))
        if ledger.files():  # none: the scan has not begun
            check_inputs(ledger, files)
        note_request(folder, "curate", request.anchored(), command)
        run_id = ledger.meta("run_id")
        if run_id is None:
            run_id = secrets.token_hex(8)
            ledger.set_meta("run_id", run_id)
        run = Run(
            folder=folder,
            ledger=ledger,
            sources=sources,
            spec=spec,
            model=model,
            beside=beside,
            others=others,
            keep_if=keep_if,
            request=request,
            run_id=RunId(run_id),
            finished_summary=_finished_summary(folder, ledger),
            plan=orjson.loads(folder.plan.read_bytes()) if folder.plan.exists() else {},
        )
        undo.pop_all()
        return run


def first_rows(sources: Sources, count: int) -> list[bytes]:
    """Raw bytes of the first `count` rows of the input that are not blank; rows too long to be one are left out."""
    rows: list[bytes] = []
    for file in sources.files:
        with sources.prepare(file.index).open("rb") as lines:
            while len(rows) < count and (line := lines.readline(LONGEST_SAMPLE)):
                if line.endswith(b"\n") or len(line) < LONGEST_SAMPLE:
                    if stripped := line.strip():
                        rows.append(stripped)
                else:
                    while (rest := lines.readline(LONGEST_SAMPLE)) and not rest.endswith(b"\n"):
                        pass
        if len(rows) >= count:
            break
    return rows


def read_request(path: Path) -> CurateRequest:
    """What run.toml of this folder asks for, wherever the folder is now. Raises UsageError when it is no run folder."""
    try:
        request = CurateRequest.model_validate(RunFolder.read(path).read_run_toml()["request"])
        return request.model_copy(update={"out": path.absolute()})
    except (KeyError, ValidationError) as error:
        raise UsageError(f"{path}/run.toml cannot be read: {error}", "start the run again with its command") from error


def note_request(folder: RunFolder, kind: str, request: BaseModel, command: str | None) -> None:
    """run.toml: which command (`kind`), what was typed, and the request, which has to have absolute paths."""
    if command is None and folder.run_toml.exists():
        noted = folder.read_run_toml()
        command, directory = noted.get("command"), noted.get("directory")
    else:
        directory = str(Path.cwd())
    body = request.model_dump(mode="json", exclude_none=True)
    folder.write_run_toml({"kind": kind, "command": command, "directory": directory, "request": body})


def _model(request: CurateRequest) -> tuple[ModelSpec, ModelSource | None]:
    if request.model == NO_MODEL:
        return ModelSpec(name=NO_MODEL, hash=NO_MODEL), None
    spec = describe_model(request.model)
    return spec, ModelSource(folder=resolve_model(request.model), spec=spec)


def _open_ledger(request: CurateRequest, folder: RunFolder, spec: ModelSpec, beside: Beside) -> Ledger:
    identity = request.identity(spec, beside)  # the input itself is checked by the intake
    if not folder.ledger.exists():
        return Ledger.create(folder.ledger, identity)
    ledger = Ledger.open(folder.ledger)
    try:
        recorded = ledger.meta("identity")
        if _awaits_a_rule(ledger):
            ledger.check_identity(identity | {"keep-if": recorded["keep-if"]})
            ledger.set_meta("identity", recorded | {"keep-if": request.keep_if})
        ledger.check_identity(identity)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _awaits_a_rule(ledger: Ledger) -> bool:
    """Whether everything is scored and nothing is written, as when --keep-if did not fit a row: it may be corrected."""
    return ledger.scanned and not ledger.counters().pending_units and ledger.meta("written") is None


def _finished_summary(folder: RunFolder, ledger: Ledger) -> dict[str, Any] | None:
    """The summary of a run that is over and written out."""
    if ledger.meta("written") is None or not folder.summary.exists():
        return None
    summary: dict[str, Any] = orjson.loads(folder.summary.read_bytes())
    return summary
