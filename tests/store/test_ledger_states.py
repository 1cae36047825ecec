"""Any order of grants, commits, splits, failures and restarts: rows are never lost or doubled, and what is not
allowed is refused.
"""

import shutil
import tempfile
from pathlib import Path

import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from realign_cluster.domain.events import Blame, NodeLost, Quarantine, RevokeAttempts, Split, Tick
from realign_cluster.store.ledger import Entry, LedgerConflict
from tests.store.kit import WALL, Run, made_rows, score_line, write_jsonl

ROWS = 60
NODES = st.sampled_from(["one", "two"])


class LedgerStates(RuleBasedStateMachine):
    """The model: which units are pending (with their rows), which attempts are live, and what became of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.source = write_jsonl(self.folder / "data.jsonl", made_rows(ROWS))
        self.run = Run(self.folder / "run", [self.source])
        self.run.scan(unit_rows=7)
        self.pending: dict[int, list[int]] = {}
        self.live: dict[int, tuple[int, str]] = {}
        self.ended: dict[int, int] = {}
        self.done: dict[int, str] = {}
        self.batch: list[Entry] = []
        self.sitting()
        for ref in self.run.ledger.load_pending(1000)[0]:
            self.pending[ref.unit] = self.run.ledger.unit_positions([ref.unit])[ref.unit]["row"].tolist()
        self.next_unit = max(self.pending) + 1

    def sitting(self) -> None:
        self.run.open()
        self.ended |= {attempt: unit for attempt, (unit, _) in self.live.items()}
        self.live.clear()

    def write(self, entry: Entry) -> None:
        self.batch.append(entry)

    @rule()
    def flush(self) -> None:
        """Group commit: what was decided so far becomes durable at once."""
        self.run.ledger.record(self.batch, WALL)
        self.batch = []

    @precondition(lambda self: self.pending)
    @rule(data=st.data(), node=NODES)
    def grant(self, data, node) -> None:
        units = data.draw(st.lists(st.sampled_from(sorted(self.pending)), min_size=1, max_size=3, unique=True))
        refs = [type("Ref", (), {"unit": unit}) for unit in units]
        entry, attempts = self.run.grant(refs, node)
        self.write(entry)
        self.live |= {attempt: (unit, node) for unit, attempt in attempts.items()}

    @precondition(lambda self: any(unit in self.pending for unit, _ in self.live.values()))
    @rule(data=st.data())
    def commit(self, data) -> None:
        able = sorted(attempt for attempt, (unit, _) in self.live.items() if unit in self.pending)
        attempt = data.draw(st.sampled_from(able))
        unit, node = self.live.pop(attempt)
        self.flush()  # so that the unit's rows can be read back
        self.write(self.run.result(unit, attempt, node))
        self.ended[attempt] = unit
        for row in self.pending.pop(unit):
            self.done[row] = "scored"

    @precondition(lambda self: self.ended)
    @rule(data=st.data())
    def commit_what_is_not_live(self, data) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.ended)))
        self.flush()
        try:
            self.run.ledger.record([self.run.result(self.ended[attempt], attempt)], WALL)
        except LedgerConflict:
            return
        raise AssertionError("an attempt that had ended was committed")

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def revoke(self, data) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.live)))
        unit, node = self.live.pop(attempt)
        self.ended[attempt] = unit
        self.write(Entry(event=Tick(at=1), commands=(RevokeAttempts(node=node, attempts=(attempt,), reason="r"),)))

    @rule(node=NODES)
    def lose(self, node) -> None:
        self.write(Entry(event=NodeLost(at=1, node=node, reason="cut")))
        for attempt in [attempt for attempt, (_, holder) in self.live.items() if holder == node]:
            self.ended[attempt] = self.live.pop(attempt)[0]

    @precondition(lambda self: any(len(rows) > 1 for rows in self.pending.values()))
    @rule(data=st.data(), node=NODES)
    def split(self, data, node) -> None:
        unit = data.draw(st.sampled_from(sorted(unit for unit, rows in self.pending.items() if len(rows) > 1)))
        rows = self.pending.pop(unit)
        half = (len(rows) + 1) // 2
        children = ((self.next_unit, 0, half), (self.next_unit + 1, half, len(rows) - half))
        held = [attempt for attempt, (of, _) in self.live.items() if of == unit]
        revokes = [RevokeAttempts(node=self.live[one][1], attempts=(one,), reason="split") for one in held]
        blame = Blame(unit=unit, node=node, attempt=1, reason="died")
        self.write(Entry(event=Tick(at=1), commands=(blame, Split(unit=unit, children=children, reason="r"), *revokes)))
        for attempt in held:
            self.ended[attempt] = self.live.pop(attempt)[0]
        self.pending[self.next_unit], self.pending[self.next_unit + 1] = rows[:half], rows[half:]
        self.next_unit += 2

    @precondition(lambda self: any(len(rows) == 1 for rows in self.pending.values()))
    @rule(data=st.data())
    def quarantine(self, data) -> None:
        unit = data.draw(st.sampled_from(sorted(unit for unit, rows in self.pending.items() if len(rows) == 1)))
        (row,) = self.pending.pop(unit)
        held = [attempt for attempt, (of, _) in self.live.items() if of == unit]
        revokes = [RevokeAttempts(node=self.live[one][1], attempts=(one,), reason="poison") for one in held]
        self.write(Entry(event=Tick(at=1), commands=(Quarantine(unit=unit, code="c", message="m"), *revokes)))
        for attempt in held:
            self.ended[attempt] = self.live.pop(attempt)[0]
        self.done[row] = "quarantined"

    @rule()
    def restart(self) -> None:
        """The coordinator is killed after its last group commit and started again."""
        self.flush()
        self.run.ledger.close()
        self.run = Run(self.folder / "run", [self.source])
        self.sitting()
        refs = {ref.unit: ref for ref in self.run.ledger.load_pending(1000)[0]}
        assert {unit: ref.rows for unit, ref in refs.items()} == {
            unit: len(rows) for unit, rows in self.pending.items()
        }

    @invariant()
    def every_row_is_accounted_for(self) -> None:
        if self.batch:
            return
        counters = self.run.ledger.counters()
        states = list(self.done.values())
        assert counters.committed_rows == states.count("scored")
        assert counters.quarantined_rows == states.count("quarantined")
        assert counters.pending_rows == ROWS - len(states)
        assert {record.attempt for record in self.run.ledger.attempts(live_only=True)} == set(self.live)
        (window,) = self.run.ledger.windows()
        raws = self.run.sources.read(window.positions)
        assert [orjson.loads(raw)["id"] for raw in raws] == sorted(self.done)
        for raw, line, error in zip(raws, window.results, window.errors, strict=True):
            scored = self.done[orjson.loads(raw)["id"]] == "scored"
            assert (line, error) == ((score_line(raw), None) if scored else (None, ("c", "m")))

    def teardown(self) -> None:
        self.run.sources.close()
        self.run.ledger.close()
        shutil.rmtree(self.folder)


LedgerStates.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLedgerStates = LedgerStates.TestCase
