"""KL between two models, measured by a short-lived process on this machine: the only one that imports MLX for it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.divergence_order import DivergenceOrder
from realign_cluster.domain.errors import RunFailed, UsageError
from realign_cluster.node.worker_process import CHILD_MODULE, Launch, worker_environment

DIVERGENCE_MODULE: Final = "realign_cluster.training.divergence_child"


def measure_divergence_here(order: DivergenceOrder) -> dict[str, Any]:
    """{"prompts": [[sum of KL over its tokens, tokens], ...], "vocabulary": n}.

    Raises UsageError for what cannot be compared, RunFailed with its last words if the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "order.json", Path(folder) / "answer.json"
        asked.write_text(order.model_dump_json(), encoding="utf-8")
        child = [sys.executable, "-m", CHILD_MODULE, str(os.getpid()), DIVERGENCE_MODULE]
        ended = subprocess.run(
            [*child, "--order", str(asked), "--out", str(answered)],
            env=worker_environment(os.environ, Launch(module=DIVERGENCE_MODULE), order.cores),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        said = ended.stderr.decode(errors="replace").strip()
        if ended.returncode == UsageError.exit_code:
            message, _, fix = said.partition("\n  fix: ")
            raise UsageError(message, fix)
        if ended.returncode:
            raise RunFailed(f"the KL could not be measured: {said[-2000:] or f'status {ended.returncode}'}")
        answer: dict[str, Any] = orjson.loads(answered.read_bytes())
    return answer
