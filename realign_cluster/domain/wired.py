"""Whether memory that a killed rank had wired came back.

On a Mac whose ranks are joined by RDMA, SIGKILL may strand wired memory until a reboot (MLX issues 4278 and 3910).
What was wired before the rank began is what there should be after it, give or take what the system itself does. Pure.
"""

from __future__ import annotations

SLACK_FRACTION = 0.05  # of the machine's memory
SLACK_BYTES = 1 << 30


def stranded_bytes(before: int, after: int, total: int) -> int:
    """Wired bytes that did not come back; 0 within the slack. All arguments in bytes."""
    slack = max(SLACK_BYTES, round(SLACK_FRACTION * total))
    return after - before if after - before > slack else 0
