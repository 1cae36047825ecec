"""Numbers that are none end a training at once: what is computed from them would look like a result.

No report carries NaN or infinity, JSON has no form for them. Must not know where a number comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


class NotFinite(Exception):
    """A loss, gradient or measurement is NaN or infinite. `step` are done; `rows` are those it comes from, by number in
    train.jsonl, where that is known.
    """

    def __init__(self, message: str, step: int, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.step = step
        self.rows = list(rows)


def require_finite(values: Mapping[str, float], when: str, step: int, rows: Sequence[int] = ()) -> None:
    """Raises NotFinite for the first of `values`, by name, that is no number; `when` begins its message."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NotFinite(f"{when}: the {name} is {value}", step, rows)
