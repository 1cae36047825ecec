"""Copies of a model on devices that round differently end as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.rank_processes import run_ranks
from tests.training.replica_ranks import drift


@pytest.mark.parametrize("unlike", [True, False])
def test_replicas_that_drifted_go_on_from_what_rank_0_has_and_equal_ones_stay_as_they_are(
    tmp_path: Path, unlike: bool
) -> None:
    first, second = run_ranks(drift, 2, tmp_path, unlike=unlike)
    assert first["norm"] == second["norm"] == 2.0
    assert bool(first["was_aligned"]) == bool(second["was_aligned"]) == unlike
    names = [name.removeprefix("after ") for name in first if name.startswith("after ")]
    same = [np.array_equal(first[f"before {name}"], second[f"before {name}"]) for name in names]
    assert all(same) != unlike
    for name in names:
        assert (
            first[f"before {name}"].tobytes() == first[f"after {name}"].tobytes() == second[f"after {name}"].tobytes()
        )
