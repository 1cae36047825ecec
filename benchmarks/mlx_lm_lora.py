"""mlx_lm.lora as it is, for `mlx.launch` to start on every host: rank 0 also writes what its trainer reports to a file.

    mlx.launch ... -- python mlx_lm_lora.py REPORTS [options of mlx_lm.lora]

REPORTS becomes JSON lines: the trainer's own report after every `steps_per_report` steps. Run by itself it is
mlx_lm.lora on one host.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm import lora
from mlx_lm.tuner.callbacks import TrainingCallback


class Reports(TrainingCallback):  # type: ignore[misc]
    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
        if mx.distributed.init().rank() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps(train_info) + "\n")


def main() -> None:
    reports = Reports(Path(sys.argv.pop(1)))
    lora.get_reporting_callbacks = lambda *_, **__: reports
    lora.main()


if __name__ == "__main__":
    main()
