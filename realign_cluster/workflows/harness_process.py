"""Asks lm-evaluation-harness for a task's requests, and for its metrics of the answers, in a short-lived process.

The harness and what it brings along (data sets' own code, global seeds, whatever a task imports) stay out of the
coordinator. Knows the extra `harness` by name only; must not import it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.domain.job import Sampling, Strict
from realign_cluster.domain.toml_lines import line_of_toml, lines_of_toml
from realign_cluster.workflows.config import HarnessTask, WorkflowConfig

TASKS_MODULE: Final = "realign_cluster.workflows.harness_tasks"
PACKAGE: Final = "lm_eval"
REFUSED: Final = 3  # exit status: the task will not do, and the answer says why
Row = dict[str, Any]
Prompt = str | list[dict[str, str]]  # a text, or the messages of a conversation
Answers = dict[str, tuple[tuple[str, float | str], ...]]  # kind of request -> (its digest, answer), in their order


class Asked(Strict):
    """`folder`: of the user's own tasks, and where their data files are looked for. No `answers`: the requests are
    wanted; else what the harness makes of them.
    """

    name: str
    task: HarnessTask
    folder: str | None = None
    answers: Answers | None = None


class Order(Strict):
    benchmarks: tuple[Asked, ...]


class TaskRefused(Exception):
    """`key` of the benchmark's table is to be corrected: it says something that will not do."""

    def __init__(self, benchmark: str, key: str, what: str, fix: str) -> None:
        super().__init__(what)
        self.benchmark, self.key, self.what, self.fix = benchmark, key, what, fix


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequests:
    """What a task asks of a model, a row each, in the harness's order; see `harness_tasks.requests_of`."""

    rows: tuple[Row, ...]
    folder: Path | None


def request_digest(prompt: Prompt, response: str | None) -> str:
    """BLAKE2b-128, hex: one request can be told from another by it."""
    return hashlib.blake2b(orjson.dumps([prompt, response]), digest_size=16).hexdigest()


def prepared_tasks(config: WorkflowConfig, config_file: Path) -> dict[str, TaskRequests]:
    """The requests of every benchmark that names a task. Raises UsageError, with file and line, where the extra is not
    installed and for tasks that are not there, cannot be loaded or cannot be scored here.
    """
    wanted = config.harness_tasks
    if not wanted:
        return {}
    lines = lines_of_toml(config_file.read_text(encoding="utf-8"))

    def wrong(name: str, key: str, what: str, fix: str) -> UsageError:
        place = f"{config_file}:{line_of_toml(lines, ('benchmarks', name, key))}: benchmarks.{name}.{key}"
        return UsageError(f"{place}: {what}", fix)

    if importlib.util.find_spec(PACKAGE) is None:
        first = next(iter(wanted))
        what = f"{wanted[first].task!r} is a task of lm-evaluation-harness, which is not installed"
        raise wrong(first, "task", what, "pip install 'realign-cluster[harness]', only where this command runs")
    folders: dict[str, Path | None] = dict.fromkeys(wanted)
    for name, task in wanted.items():
        if task.include is not None:
            folders[name] = folder = (config_file.parent / Path(task.include).expanduser()).absolute()
            if not folder.is_dir():
                raise wrong(name, "include", f"{folder} is no folder", "name the folder that your tasks' YAML is in")
    try:
        answer = ask_harness(
            Asked(name=name, task=task, folder=str(folders[name]) if folders[name] else None)
            for name, task in wanted.items()
        )
    except TaskRefused as refused:
        raise wrong(refused.benchmark, refused.key, refused.what, refused.fix) from None
    found = {name: TaskRequests(rows=tuple(answer[name]["rows"]), folder=folders[name]) for name in wanted}
    for name, requests in found.items():
        samplings = (Sampling.model_validate(row["sampling"]) for row in requests.rows if "sampling" in row)
        longest = max((sampling.max_new_tokens for sampling in samplings), default=0)
        if longest >= config.model.max_tokens:
            what = f"the task's answers have up to {longest} tokens, model.max_tokens is {config.model.max_tokens}"
            raise wrong(name, "task", what, "raise model.max_tokens: prompt and answer together have to fit")
    return found


def ask_harness(asked: Iterable[Asked]) -> Mapping[str, Row]:
    """By the benchmark's name {"rows"}, or {"items", "results"} where it has answers. Raises TaskRefused, and RunFailed
    with its last words if the process failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        order, out = Path(scratch) / "order.json", Path(scratch) / "answer.json"
        order.write_text(Order(benchmarks=tuple(asked)).model_dump_json(), encoding="utf-8")
        ended = _run(("--order", str(order), "--out", str(out)), scratch)
        if ended.returncode not in (0, REFUSED):
            said = ended.stderr.decode(errors="replace").strip()
            raise RunFailed(
                f"lm-evaluation-harness failed: {said[-2000:] or f'status {ended.returncode}'}",
                "correct the task; the same command goes on where it stopped",
            )
        answer: dict[str, Row] = orjson.loads(out.read_bytes())
    if ended.returncode == REFUSED:
        raise TaskRefused(**answer)  # type: ignore[arg-type]
    return answer


def _run(arguments: Sequence[str], folder: str) -> subprocess.CompletedProcess[bytes]:
    """Hashes, and so the order of sets in a task's code, are the same each time. Ctrl-C is this process's to hear."""
    return subprocess.run(
        [sys.executable, "-m", TASKS_MODULE, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONHASHSEED": "0", "LMEVAL_LOG_LEVEL": "ERROR"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        start_new_session=True,
        check=False,
    )
