"""What a node sends as a result is looked at before it can be committed."""

from __future__ import annotations

import pytest

from realign_cluster.coordinator.engine import _is_objects


@pytest.mark.parametrize(
    ("payload", "rows"),
    [(b'{"noop":{}}', 1), (b'{"a":1}\n{"a":2}', 2), (b'{"text":"}\\n{"}\n{"a":{}}', 2)],
)
def test_objects_one_per_line(payload: bytes, rows: int) -> None:
    assert _is_objects(payload, rows)


@pytest.mark.parametrize(
    ("payload", "rows"),
    [
        (b"", 0),
        (b"", 1),
        (b'{"a":1}', 2),
        (b'{"a":1}\n{"a":2}', 1),
        (b'{"a":1}\n\n{"a":2}', 3),
        (b'{"a":1}\nnull', 2),
        (b'{"a":1}\n{"a":2}\n', 2),
        (b'{"a":1}\n[1]\n{"a":2}', 3),
    ],
)
def test_anything_else_is_refused(payload: bytes, rows: int) -> None:
    assert not _is_objects(payload, rows)
