"""Which retriever a workflow has: of its configuration, in its record, and what is done again when it is another."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from realign_cluster.cli.workflow_plan import plan_workflow
from realign_cluster.coordinator.workflow_history import Attempt, read_workflow_history
from realign_cluster.coordinator.workflow_report import write_workflow_report
from realign_cluster.domain.errors import UsageError

from .made_workflow import MadeWorkflow

CODE = '''
import json
import zlib
from pathlib import Path

import numpy as np

from realign_cluster.metrics.retrieval.retriever import Ranking


class Letters:
    """A text is how often each run of three letters is in it, in 256 places."""

    def fingerprint(self):
        return Path(__file__).with_name("weights").read_text()

    def embed(self, texts):
        found = np.zeros((len(texts), 256), dtype=np.float32)
        for row, text in zip(found, texts):
            for at in range(len(text) - 2):
                row[zlib.crc32(text[at : at + 3].lower().encode()) % 256] += 1
        return found


class Shared:
    """By the words that query and passage share; of equal ones the first."""

    def fingerprint(self):
        return Path(__file__).with_name("weights").read_text()

    def build(self, passages, folder):
        words = {passage.id: sorted(set(passage.text.lower().split())) for passage in passages}
        (folder / "words.json").write_text(json.dumps(words))

    def search(self, folder, queries, k):
        words = json.loads((folder / "words.json").read_text())
        rankings = []
        for query in queries:
            asked = set(query.lower().split())
            found = sorted(words, key=lambda name: -len(asked & set(words[name])))[:k]
            rankings.append(Ranking(ids=tuple(found), scores=tuple(len(asked & set(words[name])) for name in found)))
        return rankings
'''
KINDS = {
    "vectors": '[retrieval]\nkind = "vectors"\nembedder = "retrieval_of_a_test:Letters"',
    "own": '[retrieval]\nkind = "retrieval_of_a_test:Shared"',
}
LOOSE = {"preparation": {"perplexity": 900000}}  # a type of source is missing: the run ends with stage 2


@pytest.fixture(autouse=True)
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module and no folder of one test is there in the next."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "retrieval_of_a_test", raising=False)


def made(folder: Path, tables: str) -> MadeWorkflow:
    """With the module beside the configuration."""
    workflow = MadeWorkflow(folder, gates=LOOSE, tables=tables)
    (folder / "retrieval_of_a_test.py").write_text(CODE)
    (folder / "weights").write_text("letters 1")
    return workflow


def test_vectors_are_asked_and_named_and_others_redo_what_they_found(tmp_path: Path) -> None:
    workflow = made(tmp_path / "made", KINDS["vectors"])
    workflow.sit()
    first = read_workflow_history(workflow.run)
    attempt = next(each for each in first.attempts if each.name == "sources")
    check_it_is_named(workflow, attempt, "vectors", "Letters")
    check_rankings_are_those_of_the_vectors(workflow, first.rows(attempt.artifacts["rankings"]))

    (workflow.folder / "weights").write_text("letters 2")
    workflow.sit()
    again = read_workflow_history(workflow.run)
    known = {job.key for job in first.jobs}
    begun = sorted(job.request["function"] for job in again.jobs if job.key not in known)
    assert begun == ["retrieval_measurements", "source_index", "source_measurements"]
    rerun = next(note.body for note in again.notes_of("rerun") if note.body["stage"] == 2)
    assert rerun["changed"] == ["retriever"]


def test_a_retriever_of_ones_own_is_asked_and_named(tmp_path: Path) -> None:
    workflow = made(tmp_path / "made", KINDS["own"])
    workflow.sit()
    history = read_workflow_history(workflow.run)
    attempt = next(each for each in history.attempts if each.name == "sources")
    check_it_is_named(workflow, attempt, "own", "Shared")
    for row in history.rows(attempt.artifacts["rankings"]):
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert row["relevant"][0] in row["ranked"]


def check_it_is_named(workflow: MadeWorkflow, attempt: Attempt, kind: str, name: str) -> None:
    manifest = orjson.loads((workflow.run / "artifacts" / attempt.artifacts["index"] / "index.json").read_bytes())
    assert manifest["kind"] == kind
    assert attempt.measurements["retrieval_r_precision"]["verifier"] == manifest["fingerprint"]
    page = write_workflow_report(workflow.run).read_text()
    assert f"retrieval_of_a_test:{name}, which calls itself letters 1." in page
    assert manifest["fingerprint"][:12] in page


def check_rankings_are_those_of_the_vectors(workflow: MadeWorkflow, rankings: list[dict[str, Any]]) -> None:
    from retrieval_of_a_test import Letters  # type: ignore[import-not-found]

    sources = [orjson.loads(line) for line in (workflow.folder / "data" / "sources.jsonl").read_bytes().splitlines()]
    passages = Letters().embed([row["text"] for row in sources])
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    assert len(rankings) > 5
    for row in rankings:
        cosines = passages @ Letters().embed([row["query"]])[0]
        assert row["ranked"][0] == sources[int(np.argmax(np.round(cosines, 5)))]["id"]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ('kind = "bm52"', "kind: 'bm52' is none of bm25, vectors, and no module:attribute; did you mean 'bm25'?"),
        ('kind = "vectors"', "embedder: missing: vectors are made by an embedder"),
        ('kind = "vectors"\nembedder = "minilm"', "embedder: 'minilm' is no module:attribute"),
        ('embedder = "retrieval_of_a_test:Letters"', 'embedder: only kind = "vectors" has one'),
        ('kind = "vectors"\nembedder = "retrieval_of_a_test:Shared"', "gave a Shared that has not all of"),
        ('kind = "no_such_module_anywhere:Thing"', "No module named 'no_such_module_anywhere'"),
    ],
)
def test_what_will_not_do_is_said_by_plan_and_before_a_run(tmp_path: Path, tables: str, said: str) -> None:
    workflow = made(tmp_path / "made", f"[retrieval]\n{tables}")
    for start in (
        lambda: asyncio.run(plan_workflow("source-attribution", workflow.folder / "workflow.toml", None)),
        workflow.sit,
    ):
        with pytest.raises(UsageError, match=re.escape(said)) as error:
            start()
        assert error.value.message.startswith(f"{workflow.folder / 'workflow.toml'}:")
        assert "retrieval." in error.value.message
        assert error.value.fix
    assert not workflow.run.exists()
