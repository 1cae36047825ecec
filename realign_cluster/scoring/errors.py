"""What a worker refuses, split by who has to act: a row's own fault, or a job that this node cannot do."""

from __future__ import annotations


class RowRefused(Exception):
    """This row can never be scored, on any node: it becomes {"error": {"code", "message"}} in its place."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class JobRefused(Exception):
    """This worker cannot do the job at all. `message` is complete and ends with the fix."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
