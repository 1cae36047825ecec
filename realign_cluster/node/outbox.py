"""What waits to go up one stream. Results wait as numbers: their bytes stay in the spool until it is their turn."""

from __future__ import annotations

import asyncio
from collections import deque

from realign_cluster.rpc.pb.node_pb2 import NodeMessage, Refusal


class Outbox:
    """One per stream; ends with it. Messages go before results, so that a slow link delays no news."""

    def __init__(self) -> None:
        self._messages: deque[NodeMessage] = deque()
        self._results: deque[int] = deque()
        self._something = asyncio.Event()
        self.ended = asyncio.Event()
        self.refusal: Refusal | None = None  # the last thing to be said, if there is one

    def put(self, message: NodeMessage) -> None:
        self._messages.append(message)
        self._something.set()

    def offer(self, attempt: int) -> None:
        self._results.append(attempt)
        self._something.set()

    def end(self, refusal: Refusal | None = None) -> None:
        self.refusal = refusal
        self.ended.set()
        self._something.set()

    @property
    def empty(self) -> bool:
        return not self._messages and not self._results

    async def wait(self, seconds: float) -> bool:
        """Until there is something, the end has come, or so long. Whether there is something."""
        if self.empty and not self.ended.is_set():
            self._something.clear()
            try:
                await asyncio.wait_for(self._something.wait(), seconds)
            except TimeoutError:
                return False
        return not self.empty

    def next_message(self) -> NodeMessage | None:
        return self._messages.popleft() if self._messages else None

    def next_result(self) -> int | None:
        return self._results.popleft() if self._results else None
