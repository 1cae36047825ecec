from __future__ import annotations

import contextlib
from pathlib import Path

from realign_cluster.coordinator.train_desk import TrainDesk
from realign_cluster.store.train_ledger import TrainLedger


async def test_reference_values_of_others_become_the_runs_own_and_never_replace_them(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    TrainLedger.create(path, {}).close()
    known = []
    for others in ([(1, -3.0, -4.0)], [(0, -9.0, -9.0), (1, -9.0, -9.0), (2, -5.0, -6.0)], []):
        with (
            contextlib.closing(TrainLedger.open(path, {})) as ledger,
            contextlib.closing(TrainDesk(ledger)) as desk,
        ):
            await desk.add_reference(others, when_full=print)
            if not known:
                await desk.record(reference=[(0, -1.0, -2.0)], when_full=print)
            known.append(desk.reference())
    assert known[0] == [(0, -1.0, -2.0), (1, -3.0, -4.0)]
    assert known[1] == known[2] == [*known[0], (2, -5.0, -6.0)]
