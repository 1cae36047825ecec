"""Commands, files and numbers that others rely on, held against the contract on small real runs."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import click
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import zstandard

from realign_cluster.cli.main import app as realign_app
from realign_cluster.cli.main import run as realign_command
from realign_cluster.cli.realignd import app as realignd_app
from realign_cluster.coordinator.curate import curate
from realign_cluster.coordinator.dashboard import LogDashboard
from realign_cluster.coordinator.progress import ProgressSnapshot
from realign_cluster.coordinator.request import CurateRequest
from tests.cluster.conftest import made_rows
from tests.cluster.kit import TINY_MODEL, CurateCluster, committed_units, ledger, output_bytes, summary, wait_until
from tests.cluster.kit import write_rows as write_jsonl

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CurateCluster]:
    """A cluster of one daemon, alpha."""
    made = CurateCluster(tmp_path_factory.mktemp("one"))
    try:
        made.start("alpha")
        yield made
    finally:
        made.close()


def lines_of(folder: Path) -> Rows:
    return [json.loads(line) for part in sorted(folder.glob("part-*.jsonl")) for line in part.read_bytes().splitlines()]


def events_of(stdout: str) -> list[dict[str, Any]]:
    """Standard output of a command with --json: every line of it is an event."""
    events = [orjson.loads(line) for line in stdout.splitlines()]
    assert all(isinstance(event["event"], str) for event in events)
    assert [event["event"] for event in events].count("summary") == 1
    assert events[-1]["event"] == "summary"
    return events


def row_id(file: int, row: int, raw: bytes) -> str:
    return blake2b(file.to_bytes(4, "little") + row.to_bytes(8, "little") + raw, digest_size=16).hexdigest()


def contained(value: Any) -> Iterator[Any]:
    """Every value within a JSON value."""
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from contained(item)


# --- one run of texts: every kind over prompt and response, every way a row can end -----------------------------------


def question(index: int, **more: Any) -> dict[str, Any]:
    row = made_rows(index + 1)[index]
    return {"id": index, "q": {"text": row["prompt"]}, "a.b": row["response"], "group": row["group"], **more}


class Texts:
    """A folder with a plain, a gzipped and a zstandard file, and the run of it. File order is that of the paths."""

    def __init__(self, folder: Path, cluster: CurateCluster) -> None:
        self.folder = folder
        self.cluster = cluster
        self.run = folder / "run"
        long = "far too long " * 60
        plain: list[bytes] = [json.dumps(question(index)).encode() for index in range(12)]
        plain[3] = plain[2]  # a duplicate
        plain[5] = b"{not json"
        plain[7] = json.dumps(question(7) | {"a.b": ""}).encode()  # nothing to score: undefined
        plain[9] = b'{"id": 9, "q": {"text": 4}, "a.b": "r"}'
        plain[10] = b'{"id": 10, "q": {"text": "\\ud800"}, "a.b": "r"}'
        zipped = [json.dumps(question(index)).encode() for index in range(20, 26)]
        packed = [json.dumps(question(30)).encode(), json.dumps(question(31) | {"a.b": long}).encode()]
        data = folder / "data"
        (data / "b").mkdir(parents=True)
        (data / "a.jsonl").write_bytes(b"\n".join(plain))  # no newline at the end
        (data / "b" / "x.jsonl.gz").write_bytes(gzip.compress(b"\n".join(zipped) + b"\n"))
        (data / "c.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(b"\n".join(packed) + b"\n"))
        self.files = [plain, zipped, packed]
        self.command = [
            *cluster.command(data, self.run, "--model", str(TINY_MODEL), "--score", "loglik,ifd,ifd-ppl", "--json"),
            *("--prompt-field", "q.text", "--response-field", "a.b", "--max-tokens", "256", "--truncate", "refuse"),
            *("--keep-if", 'scores.loglik.mean < 0 and row.group != "1"', "--on-bad-row", "quarantine", "--plain"),
        ]
        self.done = cluster.run(self.command)
        assert self.done.returncode == 0, self.done.stderr

    @property
    def summary(self) -> dict[str, Any]:
        return summary(self.run)


@pytest.fixture(scope="module")
def texts(one: CurateCluster, tmp_path_factory: pytest.TempPathFactory) -> Texts:
    return Texts(tmp_path_factory.mktemp("texts"), one)


def test_run_folder(texts: Texts) -> None:
    names = {path.name for path in texts.run.iterdir()}
    assert names - {".lock"} == {
        *("run.toml", "plan.json", "ledger.sqlite", "events.jsonl", "output", "dropped", "failed"),
        *("summary.json", "report.html"),
    }
    assert [path.name for path in (texts.run / "output").iterdir()] == ["part-00000.jsonl"]
    for line in (texts.run / "events.jsonl").read_bytes().splitlines():
        assert isinstance(orjson.loads(line), dict)
    plan = json.loads((texts.run / "plan.json").read_text())
    assert plan["nodes"][0]["name"] == "alpha"
    assert plan == texts.summary["plan"]


def test_every_row_once_in_input_order(texts: Texts) -> None:
    given = {
        row_id(file, at, raw): (file, at, raw) for file, rows in enumerate(texts.files) for at, raw in enumerate(rows)
    }
    seen: list[str] = []
    for folder in ("output", "dropped", "failed"):
        ids = [row["row_id"] for row in lines_of(texts.run / folder)]
        assert ids == sorted(ids, key=lambda item: given[item][:2]), folder
        seen += ids
    assert sorted(seen) == sorted(given)
    for folder in ("output", "dropped"):
        for part in (texts.run / folder).iterdir():
            for line in part.read_bytes().splitlines():
                row = json.loads(line)
                raw = given[row["row_id"]][2]
                assert line.startswith(raw[:-1]), "the row's own bytes come first, as they were"
                added = {"row_id", "scores"} | ({"reason"} if folder == "dropped" else set())
                assert set(row) == set(json.loads(raw)) | added


def test_scores_of_texts(texts: Texts) -> None:
    scored = [*lines_of(texts.run / "output"), *lines_of(texts.run / "dropped")]
    assert len(scored) == 16
    for row in scored:
        scores = row["scores"]
        assert set(scores) == {"loglik", "ifd", "ifd-ppl"}
        assert not any(isinstance(value, float) and not math.isfinite(value) for value in contained(scores))
        loglik, ifd, ppl = scores["loglik"], scores["ifd"], scores["ifd-ppl"]
        undefined = {"undefined"} if row["a.b"] == "" else set()
        assert set(loglik) == {"sum", "mean", "tokens", "truncated"} | undefined
        for found in (ifd, ppl):
            assert set(found) == {"value", "nll_conditioned", "nll_alone", "tokens", "truncated"} | undefined
        assert loglik["truncated"] is ifd["truncated"] is False
        if undefined:
            assert (loglik["sum"], loglik["mean"], ifd["value"], ppl["value"]) == (None, None, None, None)
            assert isinstance(loglik["undefined"], str)
            continue
        assert loglik["tokens"] == ifd["tokens"] == ppl["tokens"] > 0
        assert loglik["sum"] == pytest.approx(loglik["mean"] * loglik["tokens"])
        assert ifd["nll_conditioned"] == pytest.approx(-loglik["mean"])
        assert ifd["value"] == pytest.approx(ifd["nll_conditioned"] / ifd["nll_alone"])
        assert ppl["value"] == pytest.approx(math.exp(ifd["nll_conditioned"] - ifd["nll_alone"]))


def test_dropped_and_failed(texts: Texts) -> None:
    kept, dropped, failed = (lines_of(texts.run / name) for name in ("output", "dropped", "failed"))
    assert all(row["group"] != "1" for row in kept)
    reasons = {row["id"]: row["reason"] for row in dropped}
    assert reasons[7] == "undefined"
    assert {reason for row, reason in reasons.items() if row != 7} == {"keep_if"}
    assert all(row["group"] == "1" for row in dropped if row["id"] != 7)
    codes = [row["error"]["code"] for row in failed]
    assert codes == ["not-json", "bad-field", "not-unicode", "too-long"]
    for row in failed:
        assert set(row["error"]) == {"code", "message"}
        assert "scores" not in row
        assert "alpha" not in row["error"]["message"]
    assert failed[0]["raw"] == "{not json"
    assert failed[1]["error"]["message"] == 'q.text: is a number, expected a text or a list of {"role", "content"}'
    assert [row["id"] for row in failed[1:]] == [9, 10, 31]
    assert "256" in failed[3]["error"]["message"]


def test_summary_of_a_run(texts: Texts) -> None:
    found = texts.summary
    kept, dropped, failed = (len(lines_of(texts.run / name)) for name in ("output", "dropped", "failed"))
    assert found["state"] == "complete"
    assert found["rows"] == {"in": 20, "kept": kept, "dropped": dropped, "failed": failed}
    assert found["rows"]["in"] == kept + dropped + failed
    assert sum(found["dropped_by_reason"].values()) == dropped
    assert found["dropped_by_reason"]["undefined"] == 1
    assert list(found["nodes"]) == ["alpha"]
    alpha = found["nodes"]["alpha"]
    assert set(alpha) == {"rows", "share", "rows_per_second", "busy_seconds"}
    assert alpha["share"] == pytest.approx(1.0)
    assert alpha["rows"] == 17  # with the one that its worker refused
    assert alpha["rows_per_second"] == pytest.approx(alpha["rows"] / alpha["busy_seconds"])
    assert found["wall_seconds"] >= alpha["busy_seconds"] > 0
    assert found["rows_per_second"] == pytest.approx(found["scored_rows"] / found["wall_seconds"])
    assert set(found["efficiency"]) == {"warm", "cold"}
    assert all(value is None or 0 < value <= 1 for value in found["efficiency"].values())
    assert 0 <= found["duplicate_fraction"] < 1  # of work, not of rows
    assert found["duplicate_rows"] == 1
    assert found["resumed"] == 0
    assert found["versions"]["nodes"]["alpha"]["mlx"]


def test_json_lines_and_notes(texts: Texts) -> None:
    events = events_of(texts.done.stdout)
    assert events[0]["event"] == "start"
    last = dict(events[-1])
    assert last.pop("event") == "summary"
    assert last == texts.summary
    assert {"progress", "plan", "note"} <= {event["event"] for event in events}
    assert "warning: 4 rows could not be scored" in texts.done.stderr
    assert "1 rows are equal to an earlier one; they are kept" in texts.done.stderr


def test_run_toml_says_what_was_typed(texts: Texts) -> None:
    import shlex
    import tomllib

    record = tomllib.loads((texts.run / "run.toml").read_text())
    words = shlex.split(record["command"])
    assert words == ["realign", *texts.command[3:]]
    assert record["request"]["keep_if"] == 'scores.loglik.mean < 0 and row.group != "1"'
    shown = texts.cluster.run([sys.executable, "-m", "realign_cluster.cli.main", "runs", "show", str(texts.run)])
    assert record["command"] in shown.stdout


def test_second_invocation_does_nothing_again(
    texts: Texts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REALIGN_HOME", str(texts.cluster.realign_home))
    before, attempts = output_bytes(texts.run), len(ledger(texts.run).attempts())
    for arguments in (texts.command[3:], ["runs", "resume", str(texts.run), "--json"]):
        assert realign_command(arguments) == 0
        captured = capsys.readouterr()
        last = events_of(captured.out)[-1]
        assert (last["state"], last["rows"], last["resumed"]) == ("complete", texts.summary["rows"], 0)
        assert "complete" in captured.err
        assert output_bytes(texts.run) == before
        assert len(ledger(texts.run).attempts()) == attempts


def test_runs_commands(texts: Texts, capsys: pytest.CaptureFixture[str]) -> None:
    assert realign_command(["runs", "list", "--root", str(texts.folder), "--json"]) == 0
    run, last = events_of(capsys.readouterr().out)
    assert (run["event"], run["name"], run["state"], run["rows"]) == ("run", "run", "complete", 20)
    assert last["runs"] == 1
    assert realign_command(["runs", "show", "run", "--root", str(texts.folder), "--json"]) == 0
    shown = events_of(capsys.readouterr().out)[-1]
    assert (shown["state"], shown["summary"]["rows"]) == ("complete", texts.summary["rows"])
    (texts.run / "report.html").unlink()
    assert realign_command(["runs", "report", str(texts.run), "--json"]) == 0
    assert events_of(capsys.readouterr().out)[-1]["report"] == str(texts.run / "report.html")
    page = (texts.run / "report.html").read_text()
    assert "alpha" in page
    assert "realign curate" in page
    assert "src=" not in page.replace("src=&quot;", "")  # self-contained
    assert realign_command(["runs", "show", "nothing", "--root", str(texts.folder), "--json"]) == 2
    assert events_of(capsys.readouterr().out)[-1]["exit_code"] == 2


# --- preference: Parquet in, Parquet out, TRL's columns ---------------------------------------------------------------


def test_preference_from_parquet_to_parquet(one: CurateCluster, tmp_path: Path) -> None:
    def said(*texts: str) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]

    table = pa.table(
        {
            "when": pa.array([1, 2, 3], pa.timestamp("ms")),
            "chosen": [said("2 + 2?", "It is 4."), said("A node is lost.", "Its rows go to others."), said("Hi", "Ho")],
            "rejected": [said("2 + 2?", "I cannot say."), said("A node is lost.", "All is lost."), said("Hi", "He")],
            "weight": pa.array([1, 2, 3], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "pairs.parquet")
    run = tmp_path / "run"
    done = one.run(
        one.command(
            *(tmp_path / "pairs.parquet", run, "--model", str(TINY_MODEL), "--score", "preference"),
            *("--format", "parquet", "--export-trl", "--keep-if", "row.weight < 3", "--chat"),
        )
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [path.name for path in (run / "output").iterdir()] == ["part-00000.parquet"]
    written = pq.read_table(run / "output" / "part-00000.parquet")
    assert written.schema.field("weight").type == pa.int8()
    assert written.schema.field("when").type == pa.timestamp("ms")
    assert written.column_names[:4] == table.column_names
    assert {"row_id", "scores", "ref_chosen_logps", "ref_rejected_logps"} <= set(written.column_names)
    rows = written.to_pylist()
    assert [row["weight"] for row in rows] == [1, 2]
    assert [row["chosen"] for row in rows] == table.column("chosen").to_pylist()[:2]
    for at, row in enumerate(rows):
        found = row["scores"]["preference"]
        assert {"chosen", "rejected", "margin_sum", "margin_mean"} <= set(found)
        for side in ("chosen", "rejected"):
            assert {"sum", "mean", "tokens"} <= set(found[side])
            assert found[side]["mean"] == pytest.approx(found[side]["sum"] / found[side]["tokens"])
            assert row[f"ref_{side}_logps"] == found[side]["sum"]
        assert found["margin_sum"] == pytest.approx(found["chosen"]["sum"] - found["rejected"]["sum"])
        assert found["margin_mean"] == pytest.approx(found["chosen"]["mean"] - found["rejected"]["mean"])
        assert len(row["row_id"]) == 32
        canonical = orjson.dumps(
            {
                "when": f"1970-01-01T00:00:00.00{at + 1}000",
                **{name: table.column(name)[at].as_py() for name in ("chosen", "rejected", "weight")},
            },
            option=orjson.OPT_SORT_KEYS,
        )
        assert row["row_id"] == row_id(0, at, canonical)
    [dropped] = pq.read_table(run / "dropped" / "part-00000.parquet").to_pylist()
    assert (dropped["weight"], dropped["reason"]) == (3, "keep_if")
    assert summary(run)["rows"] == {"in": 3, "kept": 2, "dropped": 1, "failed": 0}


# --- judge: a Hugging Face dataset, a template, labels, --limit -------------------------------------------------------


def test_judge_of_a_dataset_folder(one: CurateCluster, tmp_path: Path) -> None:
    data = tmp_path / "claims"
    data.mkdir()
    evidence = ["Node alpha has 8 cores.", "Its case is {grey}."]
    table = pa.table(
        {
            "claim": [f"Node alpha has {count} cores." for count in range(8)],
            "proof": [evidence] * 8,
            "gold": ["no"] * 8,
        }
    )
    with pa.OSFile(str(data / "data-00000-of-00001.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    (data / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (data / "dataset_info.json").write_text("{}")
    (tmp_path / "ask.txt").write_text("{evidence}\nIs it so that {claim}\n")
    run = tmp_path / "run"
    done = one.run(
        one.command(
            *(data, run, "--model", str(TINY_MODEL), "--score", "judge", "--limit", "5", "--evidence-field", "proof"),
            *("--template", str(tmp_path / "ask.txt"), "--labels", "yes,no,perhaps", "--plain"),
        )
    )
    assert done.returncode == 0, done.stderr
    rows = lines_of(run / "output")
    assert [row["claim"] for row in rows] == [f"Node alpha has {count} cores." for count in range(5)]
    assert summary(run)["rows"] == {"in": 5, "kept": 5, "dropped": 0, "failed": 0}
    for row in rows:
        assert row["proof"] == evidence
        found = row["scores"]["judge"]
        assert set(found) == {"probabilities", "label", "truncated"}
        assert list(found["probabilities"]) == ["yes", "no", "perhaps"]
        assert sum(found["probabilities"].values()) == pytest.approx(1.0)
        assert found["label"] == max(found["probabilities"], key=found["probabilities"].__getitem__)
        assert found["truncated"] is False
    assert len({json.dumps(row["scores"]) for row in rows}) == 5


# --- interruption, incompleteness -------------------------------------------------------------------------------------


def test_interrupted_run_is_resumable_from_anywhere(one: CurateCluster, tmp_path: Path) -> None:
    """Typed with relative paths in one folder, resumed by name from another."""
    write_jsonl(tmp_path / "rows.jsonl", made_rows(2500))
    hosts = one.hostfile("alpha")
    relative = os.path.relpath(hosts, tmp_path)
    command = [
        *(sys.executable, "-m", "realign_cluster.cli.main", "curate", "rows.jsonl", "--out", "runs/cut", "--json"),
        *("--hostfile", relative, "--model", str(TINY_MODEL), "--score", "loglik", "--plain", "--reproducible"),
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=one.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    one.processes.append(process)
    run = tmp_path / "runs" / "cut"
    wait_until(lambda: committed_units(run) >= 2, 60, "two committed units")
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = events_of(out)[-1]
    assert last["state"] == summary(run)["state"] == "incomplete"
    assert 0 < last["scored_rows"] < 2500
    assert not (run / "output").exists()
    assert f"{last['scored_rows']:,} of 2,500 rows are scored" in errors
    resume = [sys.executable, "-m", "realign_cluster.cli.main", "runs", "resume", "cut", "--root", str(run.parent)]
    done = one.run([*resume, "--json"])
    assert done.returncode == 0, done.stderr
    last = events_of(done.stdout)[-1]
    assert (last["state"], last["resumed"], last["rows"]["kept"]) == ("complete", 1, 2500)
    assert len(lines_of(run / "output")) == 2500
    reader = ledger(run)
    committed = [attempt.unit for attempt in reader.attempts() if attempt.outcome == "committed"]
    reader.close()
    assert len(committed) == len(set(committed)), "nothing was scored twice"
    assert "realign curate rows.jsonl --out runs/cut" in (run / "run.toml").read_text()


class InterruptsWriting(LogDashboard):
    """Presses Ctrl-C when the output is being written, and waits until it is heard."""

    pressed = False

    def update(self, snapshot: ProgressSnapshot) -> None:
        super().update(snapshot)
        if snapshot.phase == "writing" and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)


async def test_interrupted_while_the_output_is_written(one: CurateCluster, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", made_rows(20_000))
    request = CurateRequest(
        inputs=(str(rows),), out=tmp_path / "run", model="none", kinds=("noop",), hostfile=one.hostfile("alpha")
    )
    told = io.StringIO()
    assert await curate(request, dashboard=InterruptsWriting(told), home=one.home) == 130
    cut = summary(request.out)
    assert (cut["state"], cut["reason"]) == ("incomplete", "interrupted while writing the output")
    assert cut["scored_rows"] == 20_000
    assert not (request.out / "output").exists()
    assert await curate(request, dashboard=LogDashboard(told), home=one.home) == 0
    assert summary(request.out)["rows"]["kept"] == len(lines_of(request.out / "output")) == 20_000


@pytest.fixture
def crowded_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds few files: it is full while there is room for bytes."""
    if os.geteuid() != 0 or not Path("/proc/mounts").exists():
        pytest.skip("a disk of its own needs root on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m,nr_inodes=16", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


def test_disk_full_while_the_output_is_written(one: CurateCluster, crowded_disk: Path, tmp_path: Path) -> None:
    """Exit 1 with what is missing; the scores are in the ledger, and the same command only writes."""
    rows = write_jsonl(tmp_path / "rows.jsonl", made_rows(20))
    run = crowded_disk / "run"
    ballast = [crowded_disk / f"ballast-{at}" for at in range(5)]
    for path in ballast:
        path.touch()
    command = one.command(rows, run, "--model", "none", "--score", "noop", "--json")
    done = one.run(command)
    assert done.returncode == 1, done.stderr
    last = events_of(done.stdout)[-1]
    assert "is full" in last["error"]["message"]
    assert "run the same command again" in done.stderr
    assert not (run / "output").exists()
    assert not (run / ".writing").exists()
    attempts = len(ledger(run).attempts())
    assert attempts > 0
    shown = one.run([sys.executable, "-m", "realign_cluster.cli.main", "runs", "show", str(run), "--json"])
    assert events_of(shown.stdout)[-1]["state"] == "incomplete"
    for path in ballast:
        path.unlink()
    done = one.run(command)
    assert done.returncode == 0, done.stderr
    assert summary(run)["rows"]["kept"] == 20
    assert len(ledger(run).attempts()) == attempts


def test_input_that_changes_during_a_run(one: CurateCluster, tmp_path: Path) -> None:
    """Scores and rows may not belong together: nothing is written, exit 1."""
    rows = write_jsonl(tmp_path / "rows.jsonl", made_rows(500))
    run = tmp_path / "run"
    process = one.spawn(one.command(rows, run, "--model", str(TINY_MODEL), "--score", "loglik", "--plain"))
    wait_until(lambda: committed_units(run) >= 1, 60, "a committed unit")
    text = rows.read_bytes()
    rows.write_bytes(text.replace(b"Question 7:", b"Question 8:", 1))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "rows.jsonl was changed while the run was on" in errors
    assert "fix:" in errors
    assert not (run / "output").exists()


# --- realign-launch, help ---------------------------------------------------------------------------------------------


def test_launch_passes_arguments_and_exit_codes_through(one: CurateCluster, tmp_path: Path) -> None:
    """On daemons that run already: it finds them, uses them, and leaves them running."""
    rows = write_jsonl(tmp_path / "rows.jsonl", made_rows(9))
    launch = [sys.executable, "-m", "realign_launcher.main", "--hostfile", str(one.hostfile("alpha"))]
    curate = ["curate", str(rows), "--model", "none", "--score", "noop", "--json"]
    done = one.run([*launch, *curate, "--out", str(tmp_path / "run"), "--limit", "4", "--keep-if", 'row.group < "2"'])
    assert done.returncode == 0, done.stderr
    assert events_of(done.stdout)[-1]["rows"] == {"in": 4, "kept": 3, "dropped": 1, "failed": 0}
    assert "--keep-if 'row.group < \\\"2\\\"'" in (tmp_path / "run" / "run.toml").read_text()
    assert one.daemons["alpha"].running
    done = one.run([*launch, *curate, "--out", str(tmp_path / "run"), "--limit", "5"])
    assert done.returncode == 2
    assert "limit: the run has 4, now it is 5" in done.stderr


def commands_under(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    for sub, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from commands_under(below, f"{name} {sub}")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *commands_under(typer.main.get_command(realign_app), "realign"),
        *commands_under(typer.main.get_command(realignd_app), "realignd"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_help_has_an_example(name: str, command: click.Command) -> None:
    with click.Context(command, info_name=name) as context:
        text = command.get_help(context)
    [*_, after] = text.split("xample", 1)
    assert after != text, text
    assert name in " ".join(after.split())
