"""Errors a user can act on: what is wrong, where, and what puts it right. Each family has its exit code."""

from __future__ import annotations


class RealignError(Exception):
    """Base: `message` says what is wrong and where, `fix` what to do (a command where there is one)."""

    exit_code = 1

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message}\n  fix: {fix}" if fix else message)
        self.message = message
        self.fix = fix


class UsageError(RealignError):
    """Bad options or bad input: nothing was started."""

    exit_code = 2


class NodesMissing(RealignError):
    """Nodes that the command needs are not there, or refused."""

    exit_code = 3


class RunFailed(RealignError):
    """The run ended without every row accounted for."""

    exit_code = 1
