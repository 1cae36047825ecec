"""What the ledger records, what it refuses, and how it is taken up again."""

import sqlite3
import threading
from hashlib import blake2b

import orjson
import pytest

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.events import (
    Blame,
    Commit,
    Discard,
    Grant,
    NodeLost,
    NodeReady,
    Quarantine,
    RevokeAttempts,
    Split,
    Tick,
    UnitFailed,
    UnitRef,
    WorkerExited,
)
from realign_cluster.store.connection import version_warning
from realign_cluster.store.ledger import Entry, Ledger, LedgerConflict
from realign_cluster.store.space import StorageFull
from tests.store.kit import WALL, Run, made_rows, score_line, write_jsonl


@pytest.fixture
def run(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", made_rows(400))
    with Run(tmp_path / "run", [path]) as run:
        run.scan(unit_rows=10)
        run.open()
        yield run


def outcomes(ledger):
    return {record.attempt: record.outcome for record in ledger.attempts()}


def test_identity_names_every_key_that_differs(tmp_path):
    Ledger.create(tmp_path / "l", {"model": "abc", "score": ["ifd"], "old": 1}).close()
    Ledger.open(tmp_path / "l", {"model": "abc", "score": ("ifd",), "old": 1}).close()
    with pytest.raises(UsageError) as caught:
        Ledger.open(tmp_path / "l", {"model": "def", "score": ["ifd"], "new": None})
    text = str(caught.value)
    assert 'model: the run has "abc", now it is "def"' in text
    assert "old: the run has 1, now it is nothing" in text
    assert "new: the run has nothing, now it is null" in text
    assert "score:" not in text
    with pytest.raises(FileExistsError):
        Ledger.create(tmp_path / "l", {})


def test_a_difference_is_named_however_deep_or_far_it_stands(tmp_path):
    made = {"optimizer": {"name": "adamw", "weight_decay": 0.01}, "kl": None, "files": ["a" * 200, "b"]}
    Ledger.create(tmp_path / "l", made).close()
    asked = {"optimizer": {"name": "adamw", "weight_decay": 0.02}, "kl": {"every": 2}, "files": ["a" * 200, "c"]}
    with pytest.raises(UsageError) as caught:
        Ledger.open(tmp_path / "l", asked)
    lines = str(caught.value).splitlines()
    assert "  optimizer.weight_decay: the run has 0.01, now it is 0.02" in lines
    assert '  kl: the run has null, now it is {"every":2}' in lines
    [files] = [line for line in lines if "files:" in line]
    assert 'aa","b"], now' in files
    assert files.endswith('aa","c"]')
    assert len(files) < 200


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, but long enough to be looked at" * 40])
def test_what_is_no_ledger_is_refused(tmp_path, content):
    path = tmp_path / "ledger.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError):
        Ledger.open(path, {})


def test_another_schema_version_is_refused(tmp_path):
    Ledger.create(tmp_path / "l", {}).close()
    with sqlite3.connect(tmp_path / "l") as connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema_version'")
    connection.close()
    with pytest.raises(UsageError, match="version 999"):
        Ledger.read_only(tmp_path / "l")


def test_it_is_fully_synchronous_and_in_wal_mode(run):
    assert run.ledger._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert run.ledger._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_old_sqlite_is_a_warning(monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    assert "3.51.3" in version_warning()
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 52, 0))
    assert version_warning() is None


def test_pending_units_come_once_per_epoch_longest_first(run):
    pages = []
    exhausted = False
    while not exhausted:
        units, exhausted = run.ledger.load_pending(7)
        pages += units
    assert len({unit.unit for unit in pages}) == len(pages) == run.ledger.counters().pending_units
    assert [unit.longest for unit in pages] == sorted((unit.longest for unit in pages), reverse=True)
    assert run.ledger.load_pending(7) == ((), True)
    run.open()
    assert len(run.ledger.load_pending(10_000)[0]) == len(pages)


def test_paging_goes_on_past_units_of_equal_length(tmp_path):
    rows = [{"prompt": "same", "response": f"{at:05d}"} for at in range(2000)]
    with Run(tmp_path / "run", [write_jsonl(tmp_path / "d.jsonl", rows)]) as run:
        run.scan(unit_rows=3)
        run.open()
        seen, exhausted = [], False
        while not exhausted:
            units, exhausted = run.ledger.load_pending(50)
            seen += [unit.unit for unit in units]
            if units:  # committing some of what was handed out does not disturb the rest
                entry, attempts = run.grant(units[:5])
                run.ledger.record([entry, *(run.result(unit, attempt) for unit, attempt in attempts.items())], WALL)
        assert len(seen) == len(set(seen)) == run.ledger.counters().units > 600


def test_commits_are_counted_per_node(run):
    units, _ = run.ledger.load_pending(6)
    one, first = run.grant(units[:4], "one")
    two, second = run.grant(units[4:], "two")
    run.ledger.record([one, two], WALL)
    run.ledger.record([run.result(unit, attempt) for unit, attempt in first.items()], WALL + 1)
    run.ledger.record([run.result(unit, attempt, "two") for unit, attempt in second.items()], WALL + 2)
    summary = {node.node: node for node in run.ledger.nodes_summary()}
    assert (summary["one"].units, summary["two"].units) == (4, 2)
    assert summary["one"].rows == sum(unit.rows for unit in units[:4])
    assert summary["one"].busy_seconds == 2.0
    assert summary["one"].share + summary["two"].share == pytest.approx(1)
    assert summary["one"].share == pytest.approx(
        sum(unit.cost for unit in units[:4]) / sum(unit.cost for unit in units)
    )
    counters = run.ledger.counters()
    assert counters.committed_rows == sum(unit.rows for unit in units)
    assert counters.pending_cost == pytest.approx(counters.cost - sum(unit.cost for unit in units))
    assert [point.committed_at for point in run.ledger.results_timeline()] == [WALL + 1] * 4 + [WALL + 2] * 2


def test_a_reader_sees_what_was_recorded_while_the_writer_is_open(run):
    reader = Ledger.read_only(run.ledger.path)
    units, _ = run.ledger.load_pending(1)
    entry, attempts = run.grant(units)
    run.ledger.record([entry], WALL)
    assert [record.attempt for record in reader.attempts(live_only=True)] == list(attempts.values())
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._reader.execute("DELETE FROM unit")
    reader.close()


def test_events_come_back_with_their_commands(run):
    units, _ = run.ledger.load_pending(300)
    entry, attempts = run.grant(units)
    ready = Entry(event=NodeReady(at=0.5, node="one", cost_per_second=9.5, measured=True))
    run.ledger.record([ready, entry], WALL)
    results = [run.result(unit, attempt) for unit, attempt in attempts.items()]
    run.ledger.record(results, WALL + 1)
    recorded = list(run.ledger.events(run.epoch))
    expected = [ready, entry, *results]
    assert [record.event for record in recorded] == [entry.event for entry in expected]
    assert [record.commands for record in recorded] == [tuple(entry.commands) for entry in expected]
    assert list(run.ledger.events(99)) == []


@pytest.mark.parametrize(
    "fault", ["twice", "revoked", "same batch", "older epoch", "unknown", "no result", "wrong unit"]
)
def test_what_may_not_commit_is_refused_and_nothing_is_written(run, fault):
    units, _ = run.ledger.load_pending(2)
    entry, attempts = run.grant(units)
    run.ledger.record([entry], WALL)
    unit, attempt = units[0].unit, attempts[units[0].unit]
    good, revoke = run.result(unit, attempt), RevokeAttempts(node="one", attempts=(attempt,), reason="overdue")
    batch = [good]
    if fault == "twice":
        run.ledger.record([good], WALL)
    elif fault == "revoked":
        run.ledger.record([Entry(event=Tick(at=1.5), commands=(revoke,))], WALL)
    elif fault == "same batch":
        batch = [Entry(event=Tick(at=1.5), commands=(revoke,)), good]
    elif fault == "older epoch":
        run.ledger.open_epoch(5.0, WALL)
    elif fault == "unknown":
        batch = [run.result(unit, 999)]
    elif fault == "no result":
        batch = [Entry(event=good.event, commands=good.commands)]
    else:
        batch = [run.result(units[1].unit, attempt)]
    before = (run.ledger.counters(), outcomes(run.ledger), len(list(run.ledger.events())))
    with pytest.raises(LedgerConflict):
        run.ledger.record([Entry(event=Tick(at=1.9)), *batch], WALL)
    assert (run.ledger.counters(), outcomes(run.ledger), len(list(run.ledger.events()))) == before


def test_attempts_end_with_their_reason(run):
    units, _ = run.ledger.load_pending(6)
    entry, attempts = run.grant(units)
    (a, b, c, d, e, f), (unit_a, *_) = attempts.values(), attempts
    run.ledger.record([entry], WALL)
    run.ledger.record(
        [
            Entry(event=Tick(at=2), commands=(RevokeAttempts(node="one", attempts=(a,), reason="overdue"),)),
            Entry(event=Tick(at=2), commands=(Discard(node="one", attempt=a, unit=unit_a, reason="revoked"),)),
            Entry(event=UnitFailed(at=3, node="one", attempt=b, unit=units[1].unit, code="boom", message="m")),
            Entry(event=Tick(at=5), commands=(Discard(node="one", attempt=d, unit=units[3].unit, reason="invalid"),)),
        ],
        WALL + 3,
    )
    run.ledger.record([Entry(event=NodeLost(at=6, node="one", reason="lease ran out"))], WALL + 4)
    assert outcomes(run.ledger) == {
        a: "revoked: overdue",
        b: "failed: boom",
        c: "node lost: lease ran out",
        d: "discarded: invalid",
        e: "node lost: lease ran out",
        f: "node lost: lease ran out",
    }
    assert {record.attempt: record.ended_at for record in run.ledger.attempts("one")}[e] == WALL + 4
    assert run.ledger.attempts("two") == []


def test_a_dead_worker_ends_what_else_its_node_held(run):
    units, _ = run.ledger.load_pending(3)
    mine, held = run.grant(units[:2], "one")
    other, _ = run.grant(units[2:], "two")
    computing, waiting = held.values()
    died = Entry(event=WorkerExited(at=4, node="one", reason="signal 9", computing=computing))
    run.ledger.record([mine, other, died], WALL)
    assert list(outcomes(run.ledger).values()) == [
        "worker exited: signal 9",
        "worker exited, not to blame: signal 9",
        None,
    ]
    assert waiting not in [record.attempt for record in run.ledger.attempts(live_only=True)]


def test_a_node_that_comes_back_in_the_same_batch_keeps_its_new_attempts(run):
    units, _ = run.ledger.load_pending(2)
    first, old = run.grant(units[:1])
    again, new = run.grant(units[1:])
    run.ledger.record([first, Entry(event=NodeLost(at=2, node="one", reason="cut")), again], WALL)
    assert outcomes(run.ledger) == {old[units[0].unit]: "node lost: cut", new[units[1].unit]: None}


def test_a_new_sitting_ends_the_old_attempts_and_numbers_on(run):
    units, _ = run.ledger.load_pending(3)
    entry, attempts = run.grant(units)
    run.ledger.record([entry, run.result(units[0].unit, attempts[units[0].unit])], WALL)
    opened = run.ledger.open_epoch(77.0, WALL + 9)
    assert (opened.epoch, opened.at) == (2, 77.0)
    assert opened.next_attempt == max(attempts.values()) + 1
    assert opened.next_lease > entry.commands[0].lease
    counters = run.ledger.counters()
    assert opened.units == counters.pending_units == counters.units - 1
    assert opened.cost == pytest.approx(counters.pending_cost)
    assert sorted(map(str, outcomes(run.ledger).values())) == ["committed", "older epoch", "older epoch"]
    assert units[0].unit not in {unit.unit for unit in run.ledger.load_pending(1000)[0]}
    run.ledger.close_epoch(WALL + 20)
    assert [(epoch.epoch, epoch.closed_at) for epoch in run.ledger.epochs()] == [(1, None), (2, WALL + 20)]


def test_splits_carry_the_rows_and_come_again_only_in_the_next_sitting(run):
    units, _ = run.ledger.load_pending(1)
    whole = run.ledger.unit_positions([units[0].unit])[units[0].unit]
    next_unit = run.ledger.open_epoch(1.0, WALL).next_unit
    split = Split(unit=units[0].unit, children=((next_unit, 0, 6), (next_unit + 1, 6, 4)), reason="failed on two nodes")
    deeper = Split(
        unit=next_unit, children=((next_unit + 2, 0, 3), (next_unit + 3, 3, 3)), reason="failed on two nodes"
    )
    run.ledger.record([Entry(event=Tick(at=2), commands=(split,)), Entry(event=Tick(at=3), commands=(deeper,))], WALL)
    children = run.ledger.unit_positions([next_unit + at for at in (2, 3, 1)])
    assert [position.tolist() for child in (2, 3, 1) for position in children[next_unit + child]] == [
        position.tolist() for position in whole
    ]
    assert not {unit.unit for unit in run.ledger.load_pending(1000)[0]} & {next_unit + at for at in range(4)}
    before = run.ledger.counters()
    assert before.pending_rows == 400
    assert before.pending_cost == pytest.approx(before.cost)
    run.ledger.open_epoch(5.0, WALL)
    again = {unit.unit: unit for unit in run.ledger.load_pending(1000)[0]}
    assert {next_unit + 1, next_unit + 2, next_unit + 3} <= set(again)
    assert next_unit not in again
    assert again[next_unit + 2] == UnitRef(
        unit=next_unit + 2, cost=pytest.approx(units[0].cost * 0.3), longest=units[0].longest, rows=3, suspected=True
    )


@pytest.mark.parametrize("children", [((0, 5),), ((0, 5), (5, 4)), ((0, 5), (4, 6)), ((0, 11),), ((0, 10), (10, 0))])
def test_a_split_that_loses_or_repeats_rows_is_refused(run, children):
    units, _ = run.ledger.load_pending(1)
    split = Split(
        unit=units[0].unit, children=tuple((9000 + at, *child) for at, child in enumerate(children)), reason="r"
    )
    with pytest.raises(LedgerConflict, match="do not cover"):
        run.ledger.record([Entry(event=Tick(at=2), commands=(split,))], WALL)


def test_blame_survives_a_restart(run):
    units, _ = run.ledger.load_pending(1)
    unit = units[0].unit
    blames = [
        Entry(event=Tick(at=2), commands=(Blame(unit=unit, node=node, attempt=1, reason="died"),))
        for node in ("é'1", "b")
    ]
    run.ledger.record(blames, WALL)
    run.open()
    assert next(ref for ref in run.ledger.load_pending(1000)[0] if ref.unit == unit).failed_on == ("é'1", "b")


def test_quarantined_rows_are_accounted_with_their_error(tmp_path):
    with Run(tmp_path / "run", [write_jsonl(tmp_path / "d.jsonl", made_rows(10))]) as run:
        run.scan(unit_rows=1)
        run.open()
        units, _ = run.ledger.load_pending(100)
        quarantine = Quarantine(unit=units[3].unit, code="worker-died", message="it died")
        run.ledger.record([Entry(event=Tick(at=1), commands=(quarantine,))], WALL)
        entry, attempts = run.grant([unit for unit in units if unit != units[3]])
        run.ledger.record([entry, *(run.result(unit, attempt) for unit, attempt in attempts.items())], WALL)
        counters = run.ledger.counters()
        assert (counters.committed_rows, counters.quarantined_rows, counters.pending_units) == (9, 1, 0)
        (window,) = run.ledger.windows()
        bad = [at for at, error in enumerate(window.errors) if error is not None]
        assert [window.errors[at] for at in bad] == [("worker-died", "it died")]
        assert window.positions["row"].tolist() == list(range(10))
        with pytest.raises(LedgerConflict):
            run.ledger.record([Entry(event=Tick(at=1), commands=(quarantine,))], WALL)


def test_windows_give_every_row_its_own_result_in_input_order(tmp_path):
    paths = [write_jsonl(tmp_path / f"in/{name}.jsonl", made_rows(5000, at * 5000)) for at, name in enumerate("ab")]
    with Run(tmp_path / "run", paths) as run:
        run.scan()
        run.score_all()
        seen = 0
        for window in run.ledger.windows():
            for raw, line in zip(run.sources.read(window.positions), window.results, strict=True):
                assert orjson.loads(raw)["id"] == seen
                assert line == score_line(raw)
                seen += 1
        assert seen == 10_000


def test_a_full_database_writes_nothing_and_takes_the_same_batch_later(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", made_rows(2000))
    with Run(tmp_path / "run", [path]) as run:
        run.scan(unit_rows=20)
    pages = (tmp_path / "run/ledger.sqlite").stat().st_size // 4096

    def noise(raw):  # does not compress
        return orjson.dumps({"loglik": {"sum": blake2b(raw).hexdigest() * 8}})

    with Run(tmp_path / "run", [path], max_pages=pages + 40) as run:
        run.open()
        units, _ = run.ledger.load_pending(1000)
        entry, attempts = run.grant(units)
        run.ledger.record([entry], WALL)
        waiting = [run.result(unit, attempt, line=noise) for unit, attempt in attempts.items()]
        committed = []
        needed = 0
        for result in waiting:
            try:
                run.ledger.record([result], WALL)
            except StorageFull as error:
                needed = error.needed_bytes
                break
            committed.append(result)
        assert needed > 4096
        assert committed
        assert run.ledger.counters().committed_rows == sum(result.result.rows for result in committed)
        assert len(run.ledger.attempts(live_only=True)) == len(waiting) - len(committed)
        with pytest.raises(StorageFull):
            run.ledger.record(waiting[len(committed) :], WALL)
        run.ledger._writer.execute("PRAGMA max_page_count = 1000000")  # somebody made room
        run.ledger.record(waiting[len(committed) :], WALL)
        assert run.ledger.counters().pending_units == 0
        assert run.ledger._query("PRAGMA integrity_check") == [("ok",)]


def test_recording_from_one_thread_while_another_reads(run):
    errors = []

    def record():
        try:
            exhausted = False
            while not exhausted:
                units, exhausted = run.ledger.load_pending(5)
                if units:
                    entry, attempts = run.grant(units)
                    run.ledger.record([entry, *(run.result(unit, attempt) for unit, attempt in attempts.items())], WALL)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            errors.append(error)

    thread = threading.Thread(target=record)
    thread.start()
    while thread.is_alive():
        counters = run.ledger.counters()
        assert counters.committed_rows + counters.pending_rows == 400
    thread.join()
    assert errors == []
    assert run.ledger.counters().pending_rows == 0


def test_grants_of_one_attempt_id_twice_are_refused(run):
    units, _ = run.ledger.load_pending(1)
    entry, _ = run.grant(units)
    run.ledger.record([entry], WALL)
    with pytest.raises(sqlite3.IntegrityError):
        run.ledger.record([entry], WALL)


def test_a_commit_needs_its_grant_first(run):
    units, _ = run.ledger.load_pending(1)
    grant = Grant(node="one", lease=1, attempts=((5, units[0].unit),), expected_seconds=1, reason="r")
    result = run.result(units[0].unit, 5)
    commit = Entry(
        event=result.event, commands=(grant, Commit(node="one", attempt=5, unit=units[0].unit)), result=result.result
    )
    run.ledger.record([commit], WALL)
    assert run.ledger.counters().committed_rows == units[0].rows
