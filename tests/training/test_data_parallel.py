"""Replicas: the gradient of a step does not depend on how many they are, nor on who computes which rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.training.data_ranks import ROWS, compare, gradients
from tests.training.rank_processes import run_ranks
from tests.training.test_fully_sharded import assert_close


def case(shares: list[float], kind: str, method: str, *, overlap: bool = False) -> dict[str, Any]:
    return {"shares": shares, "kind": kind, "method": method, "overlap": overlap}


def test_gradients_are_those_of_one_rank(tmp_path: Path) -> None:
    """Rows of mixed lengths, dropout on, sums in one bucket or many: within 1e-5 of the norm, in float32."""
    cases = [
        case([1, 1, 1e-6], "lora", "sft"),  # one has no rows
        case([65, 35, 1e-6], "dora", "orpo"),
        case([50, 30, 20], "lora", "dpo"),
        case([50, 30, 20], "full", "sft", overlap=True),  # as on a GPU
    ]
    ranks = run_ranks(compare, 3, tmp_path, cases=cases, bucket_bytes=1 << 16)
    for number, each in enumerate(cases):
        alone = {name: np.array(value) for name, value in gradients(None, each).items()}
        rows = [int(found.pop(f"{number} rows")) for found in ranks]
        assert sum(rows) == int(alone.pop("rows")) == ROWS
        assert (min(rows) == 0) == (min(each["shares"]) < 1)
        for name in alone:
            summed = [found[f"{number} {name}"] for found in ranks]
            assert all(np.array_equal(one, summed[0]) for one in summed[1:]), name
        assert_close(ranks[0][f"{number} metrics"], alone.pop("metrics"), 1e-5, f"{each} metrics")
        together = np.concatenate([ranks[0][f"{number} {name}"].ravel() for name in alone])
        assert_close(together, np.concatenate([value.ravel() for value in alone.values()]), 1e-5, f"{each} gradient")
