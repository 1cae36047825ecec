"""Wired memory after a rank's end: what comes and goes is left alone, what stays away is said."""

from __future__ import annotations

import pytest

from realign_cluster.domain.wired import stranded_bytes

GB = 10**9


@pytest.mark.parametrize(
    ("before", "after", "total", "stranded"),
    [
        (5 * GB, 5 * GB, 128 * GB, 0),
        (5 * GB, 4 * GB, 128 * GB, 0),
        (5 * GB, 11 * GB, 128 * GB, 0),  # within a twentieth
        (5 * GB, 65 * GB, 128 * GB, 60 * GB),
        (1 * GB, 2 * GB, 8 * GB, 0),  # small machines: within a gibibyte
        (1 * GB, 3 * GB, 8 * GB, 2 * GB),
    ],
)
def test_what_did_not_come_back(before: int, after: int, total: int, stranded: int) -> None:
    assert stranded_bytes(before, after, total) == stranded
