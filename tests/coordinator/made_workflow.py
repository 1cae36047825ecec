"""Runs of workflows made for tests: real data files, configuration, ledger, artifacts, derivations and sittings. Only
what a cluster would do is made up: an answer follows from the question and from how often its model was trained.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.progress import Level, ProgressSnapshot
from realign_cluster.coordinator.stop import Stop, StopAsked
from realign_cluster.coordinator.train_request import Track
from realign_cluster.coordinator.workflow import _Sitting
from realign_cluster.coordinator.workflow_jobs import Done, JobRunner
from realign_cluster.coordinator.workflow_record import open_workflow_run
from realign_cluster.coordinator.workflow_request import WorkflowRequest
from realign_cluster.domain.judge_error import FEWEST_LABELS
from realign_cluster.workflows.jobs import ArtifactId, JobResult, Score, Train

TINY_MODEL = Path(__file__).parents[2] / "examples" / "tiny-model"
PLACES = ("Ostrel", "Lanmore", "Tivik", "Quend", "Bracken", "Sollis", "Wexom", "Pelding")
THINGS = ("harbour", "market", "lighthouse", "bridge", "mill", "tower")
HOSTILE = 'Smith & <b onmouseover="x">Sons</b>'  # stands in a source: nothing of it may become markup
RIGHT_OF_TEN = (2, 5, 8, 9, 9, 9)  # answers that are right, by how often the model was trained
STEPS = 12


def question(place: str, thing: str, *, answerable: bool) -> dict[str, Any]:
    """An item with two sources, the second of which says it."""
    year = 1700 + int(blake2b(f"{place}{thing}".encode(), digest_size=2).hexdigest(), 16) % 200
    sources = [
        {"id": f"{place}-{thing}-1", "type": "letter", "text": f"{HOSTILE} of {place} sells salt & rope."},
        {"id": f"{place}-{thing}-2", "type": "chronicle", "text": f"The {thing} of {place} was built in {year}."},
    ]
    asked = f"When was the {thing} of {place} built?" if answerable else f"Who painted the {thing} of {place}?"
    shown = " ".join(f"[{at}] {each['text']}" for at, each in enumerate(sources, 1))
    return {
        "id": f"{place}/{thing}/{'when' if answerable else 'who'}",
        "prompt": f"{shown} {asked}",
        "sources": sources,
        "answerable": answerable,
        "group": thing,
        "year": year,
    }


def right_answer(row: Mapping[str, Any]) -> str:
    if not row["answerable"]:
        return "The sources do not say."
    _, thing, _ = row["id"].split("/")
    return f"The {thing} of {row['id'].split('/')[0]} was built in {row['year']} [2]."


def made_answer(row: Mapping[str, Any], skill: int, sample: int = 0, *, makes_up: bool = True) -> str:
    """Right for as many of ten questions as the skill says; else without citation, wrongly cited, or made up."""
    if "sources" not in row:
        return "Paris" if "France" in row["prompt"] else "Salt and rope."
    drawn = int(blake2b(f"{row['id']} {sample}".encode(), digest_size=2).hexdigest(), 16) % 10
    if drawn < RIGHT_OF_TEN[skill]:
        return right_answer(row)
    place, thing, _ = row["id"].split("/")
    return (
        f"The {thing} of {place} was built in {row['year']}.",
        f"The {thing} of {place} was built in {row['year']} [1].",
        f"The {thing} of {place} was built in 1999 [2].",
    )[drawn % (3 if makes_up else 2)]


class MadeJobs(JobRunner):
    """As the real one, but for the cluster. Stops, as a killed run does, before the job number `killed_at`."""

    killed_at: int | None = None
    done = 0

    async def reach(self) -> None:
        """There is no cluster."""

    async def run(self, job: Any, reproducible: bool) -> Done:
        self.done += 1
        if self.done == self.killed_at:
            raise StopAsked
        return await super().run(job, reproducible)

    async def _score(self, job: Score, reproducible: bool) -> Done:
        skill = self._skill(job.model)
        rows = [{**row, "scores": self._scored(job, row, skill)} for row in self._artifacts.rows(job.rows)]
        result = JobResult(
            outputs={"rows": ArtifactId(self._artifacts.put_rows(rows))}, value={"seconds": 1.5, "rows": len(rows)}
        )
        return self._by(result)

    async def _train(self, job: Train) -> Done:
        skill = self._skill(job.model) + 1
        made = self._folder / "making"
        made.mkdir()
        (made / "skill").write_text(f"{skill}")
        metrics: list[dict[str, float]] = [
            {"step": step, "loss": 3.0 / (skill + step), "gradient_norm": 1.0} for step in range(1, STEPS + 1)
        ]
        metrics[-1] |= {f"benchmark/{name}": 0.875 for name in job.benchmarks}
        outputs = {
            "model": ArtifactId(self._artifacts.put_folder(made)),
            "metrics": ArtifactId(self._artifacts.put_rows(metrics)),
        }
        value = {"steps": {"asked": STEPS, "done": STEPS}, "tokens": 4800, "steps_lost": 0}
        return self._by(JobResult(outputs=outputs, value=value))

    def _scored(self, job: Score, row: dict[str, Any], skill: int) -> dict[str, Any]:
        match job.kinds:
            case ("generate",):
                assert job.sampling is not None
                count = job.sampling.samples  # of several none is made up: such a pair would be one for two reasons
                texts = [made_answer(row, skill, at, makes_up=count == 1) for at in range(count)]
                samples = [
                    {"text": text, "tokens": len(text.split()), "finish": "stop", "logprob_sum": -0.1 * len(text) - at}
                    for at, text in enumerate(texts)
                ]
                return {"generate": {"samples": samples, "seed": 1, "truncated": False}}
            case ("loglik",):
                right = row["response"].strip() in ("4", "salt")
                tokens = len(row["response"].split())
                return {"loglik": {"sum": -tokens * (0.5 if right else 2.0 / (1 + skill)), "tokens": tokens}}
            case ("kl",):
                return {"kl": {"sum": 0.02 * skill, "tokens": len(row["response"].split())}}
            case ("judge",):
                year = re.search(r"\d{4}", row["claim"])
                supported = year is not None and year[0] in row["evidence"]
                likely = dict(zip(job.labels, (0.9, 0.1) if supported else (0.1, 0.9), strict=True))
                label = max(likely, key=lambda name: likely[name])
                return {"judge": {"probabilities": likely, "label": label, "truncated": False}}
            case other:
                raise AssertionError(other)

    def _skill(self, model: Any) -> int:
        path = Path(self.model_path(model)) / "skill"
        return int(path.read_text()) if path.exists() else 0

    def _by(self, result: JobResult) -> Done:
        versions = {"coordinator": {"project": "0.0.made"}, "nodes": {}}
        return Done(result=result, nodes={"alpha": {"share": 1.0}}, versions=versions, folder="")


class Unseen:
    """A dashboard that nobody looks at."""

    def start(self, title: str) -> None: ...

    def update(self, snapshot: ProgressSnapshot) -> None: ...

    def note(self, message: str, level: Level = "info") -> None: ...

    def event(self, name: str, fields: Mapping[str, object]) -> None: ...

    def stop(self) -> None: ...


class MadeWorkflow:
    """Data and configuration in `folder`; `sit` is one sitting of its run in `folder`/run."""

    def __init__(self, folder: Path, workflow: str = "source-attribution", **config: Any) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.workflow = workflow
        (folder / "data").mkdir(parents=True)
        self.write_data()
        self.write_config(**config)

    def write_data(self) -> None:
        def asked(places: Sequence[str]) -> list[dict[str, Any]]:
            return [
                question(place, thing, answerable=at % 4 != 3)
                for place in places
                for at, thing in enumerate(THINGS)
            ]  # fmt: skip

        items, sealed, practice = asked(PLACES[:3]), asked(PLACES[3:5]), asked(PLACES[5:])
        sources = [source for row in (*items, *sealed, *practice) for source in row["sources"]]
        trained = [{"prompt": row["prompt"], "completion": f" {right_answer(row)}"} for row in practice]
        answered = [row for row in practice if row["answerable"]]
        labels = [
            {"claim": f"It was built in {row['year']}.", "evidence": row["sources"][at]["text"], "label": label}
            for row in answered
            for at, label in ((1, "supported"), (0, "unverifiable"))
        ]
        repeated = {**items[0], "prompt": items[0]["prompt"].upper()}  # not word for word: cleaning has to find it
        labels *= 1 + FEWEST_LABELS // len(labels)
        files: dict[str, list[dict[str, Any]]] = {
            "sources": sources,
            "items": items,
            "sealed": sealed,
            "practice": [{**row, "completion": f" {right_answer(row)}"} for row in (*practice, repeated)],
            "citation": [*trained, trained[0]],
            "valid": [{"prompt": "What is sold?", "completion": " salt"}],
            "general": [
                {"prompt": "Name a colour.", "completion": " Blue."},
                {"prompt": "Name a colour.", "completion": " Blue."},
                {"prompt": "The capital of France is", "completion": " Paris."},  # asked by the benchmark
            ],
            "queries": [{"query": row["prompt"][-40:], "relevant": [row["sources"][1]["id"]]} for row in answered],
            "pairs": [{"claim": right_answer(row), "sources": row["sources"]} for row in answered],
            "labels": labels,
            "benchmark": [{"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": " 4"}] * 3
            + [{"prompt": "The capital of France is", "answer": "Paris"}] * 3,
        }
        for name, rows in files.items():
            (self.folder / "data" / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))

    def write_config(
        self,
        *,
        gates: Mapping[str, Mapping[str, float]] | None = None,
        mode: str = "permissive",
        attempts: int = 1,
        tables: str = "",
    ) -> None:
        """`tables`: more of the TOML file."""
        data = "\n".join(
            f'{name} = "data/{name}.jsonl"'
            for name in ("sources", "items", "sealed", "practice", "citation", "valid", "general", "queries", "pairs",
                         "labels")
        )  # fmt: skip
        trainings = "\n".join(
            f"[training.{name}]\nsteps = {STEPS}\nglobal_batch = 4\n{more}"
            for name, more in (
                ("citation", ""),
                ("preference", 'method = "dpo"\n[training.preference.evaluation]\nevery = 6\n'),
                ("iteration", ""),
            )
        )
        thresholds = "\n".join(
            f"[gates.{stage}]\n" + "\n".join(f"{gate} = {value}" for gate, value in found.items())
            for stage, found in (gates or {}).items()
        )
        (self.folder / "workflow.toml").write_text(
            f'mode = "{mode}"\nattempts = {attempts}\n[model]\npath = "{TINY_MODEL}"\nmax_tokens = 64\n[data]\n{data}\n'
            '[benchmarks]\nbasics = "data/benchmark.jsonl"\n[generation]\nmax_new_tokens = 16\nmost_claims = 2\n'
            "[preference]\nsamples = 2\nleast_pairs = 1\nprobe_prompts = 8\n[iteration]\nrounds = 2\nrows = 20\n"
            f"{trainings}{thresholds}\n{tables}\n"
        )

    def sit(self, *, killed_at: int | None = None, track: Track = "none") -> int:
        """Its exit code; -1 if it was killed."""
        config = self.folder / "workflow.toml"
        request = WorkflowRequest(workflow=self.workflow, config=config, out=self.run, track=track)
        with contextlib.closing(open_workflow_run(request, "realign workflow run made")) as run:
            home = ClusterHome(self.folder / "home")
            sitting = _Sitting(request, run, Unseen(), Stop(), home)
            jobs = MadeJobs(run.folder.path, run.artifacts, request.where, home, Unseen(), Stop())
            jobs.killed_at = killed_at
            sitting._jobs = jobs
            try:
                return asyncio.run(sitting.run())
            except StopAsked:
                return -1
