"""Arrays from one rank to another, and sums over all: sending goes on beside the computing, waiting is timed.

All of it is on one CPU stream, so that a rank talks in the order in which it was told to, whatever the backend (MPI is
not to be called from two threads). Must not know models or micro-batches.
"""

from __future__ import annotations

import time

import mlx.core as mx

Group = mx.distributed.Group


class Wire:
    """`waited_seconds` grows with every wait for other ranks. A receiver knows shape and dtype beforehand."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._stream = mx.new_stream(mx.cpu)
        self._sent: mx.array | None = None  # the last: those before it are gone when it is
        self.waited_seconds = 0.0

    def send(self, value: mx.array, rank: int) -> None:
        """Begins; `value` is evaluated already."""
        self._sent = mx.distributed.send(value, rank, group=self._group, stream=self._stream)
        mx.async_eval(self._sent)  # type: ignore[no-untyped-call]

    def expect(self, shape: tuple[int, ...], dtype: mx.Dtype, rank: int) -> mx.array:
        """What `rank` will send. It comes when `wait` is called with it, in the order of those calls."""
        return mx.distributed.recv(shape, dtype, rank, group=self._group, stream=self._stream)

    def wait(self, value: mx.array) -> mx.array:
        started = time.perf_counter()
        mx.eval(value)
        self.waited_seconds += time.perf_counter() - started
        return value

    def sum(self, value: mx.array) -> mx.array:
        """Over all ranks, after everything that was sent."""
        mx.eval(value)
        self.flush()
        return self.wait(mx.distributed.all_sum(value, group=self._group, stream=self._stream))

    def flush(self) -> None:
        """Until all that was sent has gone out."""
        if self._sent is not None:
            self.wait(self._sent)
            self._sent = None
