"""The page: self-contained, well formed, and it says what happened."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import pytest

from realign_cluster.coordinator.report import render_report, write_report
from realign_cluster.coordinator.report_data import report_data, shown_command, shown_environment
from realign_cluster.domain.errors import UsageError
from realign_cluster.store.run_folder import to_toml

from .made_runs import Fault, MadeNode, make_run

VOID = {"meta", "br", "hr", "img", "input", "link"}
NODES = [MadeNode("m4max-1", 4000.0), MadeNode("m3ultra-1", 2000.0)]


class WellFormed(HTMLParser):
    """Fails on tags that are not closed in order; collects text and everything that would fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.fetches: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetches += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert tag not in ("script", "link", "iframe", "object", "embed", "img")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open[-1] == tag, (self.open, tag)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(page: str) -> WellFormed:
    parsed = WellFormed()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    assert parsed.fetches == []
    assert not re.search(r"url\(|@import|https?://", page)
    return parsed


def write_summary(folder: Path, **more: Any) -> None:
    summary = {"state": "complete", "rows": {"in": 3000, "kept": 2600, "dropped": 380, "failed": 20}, **more}
    (folder / "summary.json").write_bytes(orjson.dumps(summary))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    faults = [Fault(6.0, "m4max-1", "worker", 1.0), Fault(9.0, "m3ultra-1", "node", 4.0)]
    return make_run(tmp_path / "run-1", rows=3000, nodes=NODES, faults=faults)


def test_a_run_that_is_going_on_has_a_page(run: Path):
    path = write_report(run)
    parsed = read_page(path.read_text())
    text = " ".join(parsed.text)
    assert "3,000 of 3,000 rows scored so far" in text
    assert "running" in text
    for heading in ("Throughput over time", "Nodes", "Efficiency", "Score distributions", "What happened"):
        assert heading in text
    assert "worker gone: killed by signal 9" in text
    assert "no beat for 3.0 s" in text


def test_a_complete_run_says_what_became_of_the_rows(run: Path):
    write_summary(run, dropped_by_reason={"keep_if": 350, "undefined": 30}, wall_seconds=61.0, rows_per_second=49.2)
    (run / "failed").mkdir()
    errors = [
        {"row_id": f"{n:032x}", "error": {"code": "too-long", "message": "9,000 tokens, at most 2,048"}}
        for n in range(30)
    ]
    (run / "failed" / "part-00000.jsonl").write_bytes(b"\n".join(map(orjson.dumps, errors)) + b"\n")
    request = {"kinds": ["loglik", "ifd"], "keep_if": 'scores.ifd.value < 1 and row.topic == "a"'}
    (run / "run.toml").write_text(to_toml({"command": "realign curate 'a b.jsonl' --score loglik", "request": request}))
    text = " ".join(read_page(render_report(report_data(run))).text)
    assert "3,000 rows in: 2,600 kept, 380 dropped, 20 failed" in text
    assert 'did not pass scores.ifd.value < 1 and row.topic == "a"' in text
    assert "Failed rows, the first 25 of 30" in text
    assert "realign curate 'a b.jsonl' --score loglik" in text
    assert "1 min 01 s" in text


def test_the_plan_and_its_reasons_are_shown(run: Path):
    plan = {
        "model": "tiny", "expected_seconds": 50.0, "rows_per_second": 60.0, "fastest_alone": "m4max-1",
        "fastest_alone_seconds": 80.0, "equal_split_seconds": 90.0, "why": ["one copy fits on every node"],
        "nodes": [{"name": "m4max-1", "chip": "Apple M4 Max", "share": 0.66, "rows_per_second": 40.0}],
        "left_out": [{"name": "mini", "reason": "no route to host"}],
    }  # fmt: skip
    (run / "plan.json").write_bytes(orjson.dumps(plan))
    text = " ".join(read_page(render_report(report_data(run))).text)
    for said in (
        "one copy fits on every node",
        "m4max-1 alone 1 min 20 s",
        "an equal split 1 min 30 s",
        "no route to host",
    ):
        assert said in text
    assert "Apple M4 Max" in text


def test_what_comes_from_outside_is_text_and_never_markup(run: Path):
    attack = "<script>alert(1)</script>"
    write_summary(run, dropped_by_reason={attack: 3}, versions={attack: attack}, failed_by_code={attack: 1})
    (run / "run.toml").write_text(to_toml({"command": attack, "request": {"keep_if": attack, "model": attack}}))
    (run / "plan.json").write_bytes(orjson.dumps({"why": [attack], "nodes": [{"name": attack, "chip": attack}]}))
    page = render_report(report_data(run))
    assert "<script" not in page
    read_page(page)


def test_a_run_without_a_single_result_has_a_page(tmp_path: Path):
    empty = make_run(tmp_path / "empty", rows=10, sittings=())
    text = " ".join(read_page(write_report(empty).read_text()).text)
    assert "0 of 10 rows scored so far" in text


def test_a_run_too_short_to_measure_says_so(tmp_path: Path):
    short = make_run(tmp_path / "short", rows=20, nodes=NODES)
    text = " ".join(read_page(write_report(short).read_text()).text)
    assert "not measured" in text
    assert "too short to measure" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no ledger"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_secrets_of_the_environment_are_not_shown():
    environment = {
        "HF_TOKEN": "x",
        "MLX_API_KEY": "x",
        "REALIGN_SECRET": "x",
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": "x",
    }
    assert shown_environment(environment) == {"TOKENIZERS_PARALLELISM": "false"}


def test_the_command_is_shown_as_it_is_typed():
    assert shown_command("/opt/venv/bin/realign curate 'a b.jsonl'") == "realign curate 'a b.jsonl'"
    assert shown_command("/x/realign_cluster/cli/main.py plan") == "realign plan"
    assert shown_command("") == ""
