"""What a run's folder holds, found by what it was made from: a model's answers, likelihoods, divergences, a verifier's
verdicts. The ledger is read with sqlite3, artifacts as JSON lines.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recompute_bounds import Labels
from recompute_reading import Answer, Supports, plain, read

Rows = list[dict[str, Any]]
PASSED = ("pass", "go on")


class NotStored(LookupError):
    """What a verdict would follow from is not in the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """`made_from`: artifacts and models by what they are to the job."""

    asked: Mapping[str, Any]
    made_from: Mapping[str, str]
    made: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """An attempt that ended. `model` is the one that it was to judge: its own, else the one that it began with."""

    number: int
    attempt: int
    name: str
    begun: float
    turn: str
    entered: str  # model that it began with
    model: str
    data: Mapping[str, str]  # artifacts of the user's files, and what earlier stages left
    settings: Mapping[str, str]  # of the configuration, thresholds apart, by hash
    artifacts: Mapping[str, str]
    verifier: str  # fingerprint of who said what is supported, "" where nobody was asked


class Stored:
    def __init__(self, run: Path) -> None:
        self._folder = run / "artifacts"
        self._ledger = sqlite3.connect(f"file:{run / 'ledger.sqlite'}?mode=ro", uri=True)
        self._rows: dict[str, Rows] = {}

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self._meta("config"))

    @cached_property
    def workflow(self) -> str:
        return str(self._meta("workflow"))

    @cached_property
    def stages(self) -> list[Stage]:
        """In the order in which they were begun."""
        query = "SELECT stage, attempt, begun, body FROM stage WHERE ended IS NOT NULL ORDER BY begun, stage"
        found = []
        for number, attempt, begun, text in self._ledger.execute(query):
            body = json.loads(text)
            made = body["model"] or {}
            said = (body["measurements"].get(name, {}).get("verifier") for name in ("factuality", "pairs_supported"))
            stage = Stage(
                number=number,
                attempt=attempt,
                name=body["name"],
                begun=begun,
                turn=body["turn"],
                entered=body["inputs"]["model"],
                model=made.get("artifact") or made.get("hash") or body["inputs"]["model"],
                data={name.removeprefix("data "): each for name, each in body["inputs"].items()},
                settings={name: each for name, each in body["inputs"].items() if name.startswith("settings ")},
                artifacts=body["artifacts"],
                verifier=next(filter(None, said), ""),
            )
            found.append(stage)
        return found

    def done_again(self, stage: Stage) -> Stage | None:
        """The last attempt of the same stage, if this is not it."""
        last = max((each for each in self.stages if each.number == stage.number), key=lambda each: each.attempt)
        return None if last.attempt == stage.attempt else last

    def verdicts(self) -> Iterator[tuple[int, int, str, dict[str, Any]]]:
        """(stage, attempt, gate, verdict)"""
        query = "SELECT stage, attempt, gate, body FROM verdict ORDER BY stage, attempt, gate"
        for stage, attempt, gate, body in self._ledger.execute(query):
            yield stage, attempt, gate, json.loads(body)

    @cached_property
    def looks(self) -> dict[tuple[str, str, str], list[str]]:
        return looks_of(self._ledger)

    def rows(self, artifact: str) -> Rows:
        if artifact not in self._rows:
            path = self._folder / f"{artifact}.jsonl"
            if not path.exists():
                raise NotStored(f"there is no {path.name}")
            self._rows[artifact] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return self._rows[artifact]

    def of(self, stage: Stage, name: str) -> Rows:
        """A file of the user's, as the stage had it."""
        if name not in stage.data:
            raise NotStored(f"the stage had no {name}")
        return self.rows(stage.data[name])

    # --- what jobs made ---

    def generated(self, stage: Stage, model: str, items: str) -> str:
        """The artifact of what `model` said to the data set `items`, and to the benchmarks that are asked in words."""
        wanted = {"items": stage.data[items], **_benchmarks(stage)}
        return self._scored("generate", model, "evaluation_prompts", wanted, {"temperature": 0.0})

    def answers(self, stage: Stage, model: str, items: str) -> list[Answer]:
        rows = self.rows(self.generated(stage, model, items))
        said = {row["id"]: row["scores"]["generate"]["samples"][0]["text"] for row in rows if row["set"] == "items"}
        return [read(row, said[row["id"]]) for row in self.of(stage, items)]

    def supports(self, stage: Stage, model: str, items: str) -> Supports:
        """What the verifier said of those answers."""
        parted = self._jobs("part_generated", generated=self.generated(stage, model, items))[0].made["items"]
        asked = self._jobs("answer_pairs", generated=parted)[0]
        measured = self._jobs("answer_measurements", generated=parted)
        return self._said(asked.made["pairs"], _by(stage.verifier, measured).made_from["verdicts"])

    def likelihoods(self, stage: Stage, *, valid: bool) -> Rows:
        """Of the benchmarks' choices, and of the validation rows."""
        wanted = {**_benchmarks(stage), **({"valid": stage.data["valid"]} if valid else {})}
        return self.rows(self._scored("loglik", stage.model, "likelihood_rows", wanted, {}))

    def divergences(self, stage: Stage, reference: str) -> Rows:
        """Of completions of the practice questions and the general prompts."""
        wanted = {name: stage.data[name] for name in ("practice", "general") if name in stage.data}
        sampled = self._scored(
            "generate",
            stage.model,
            "probe_prompts",
            wanted,
            {"temperature": 1.0},
            self.config["preference"]["probe_prompts"],
        )
        written = self._jobs("completions", sampled=sampled)[0].made["rows"]
        return self.rows(self._jobs("score", rows=written, model=stage.model, reference=reference)[0].made["rows"])

    def retrieval(self, stage: Stage) -> tuple[Rows, Mapping[str, Any]]:
        """Rankings, and the parameters of the retriever."""
        made_from = {"queries": stage.data["queries"], "index": stage.artifacts["index"]}
        job = self._jobs("retrieval_measurements", **made_from)[0]
        return self.rows(job.made["rankings"]), job.asked["parameters"]["retriever"]

    def supports_collected(self, stage: Stage) -> Supports:
        """What the verifier said of the collected pairs."""
        asked = self._jobs("pairs_of_facts", pairs=stage.data["pairs"])[0]
        judged = self._jobs("pairs_supported", pairs=stage.data["pairs"])
        return self._said(asked.made["pairs"], _by(stage.verifier, judged).made_from["verdicts"])

    def labelled(self, stage: Stage, verifier: str) -> list[tuple[str, bool, bool]]:
        """(item, whether people find it supported, whether the verifier does) of each labelled claim."""
        asked = self._jobs("label_pairs", labels=stage.data["labels"])[0]
        judged = self._jobs("verifier_quality", labels=stage.data["labels"])
        said = self._said(asked.made["pairs"], _by(verifier, judged).made_from["verdicts"])
        return [
            (str(row.get("id", at)), row["label"] == "supported", said(row["evidence"], row["claim"]))
            for at, row in enumerate(self.of(stage, "labels"))
        ]

    def labels(self, stage: Stage, verifier: str) -> Labels:
        found = self.labelled(stage, verifier)
        return Labels(
            true_positives=sum(right and said for _, right, said in found),
            positives=sum(right for _, right, _ in found),
            false_positives=sum(said and not right for _, right, said in found),
            negatives=sum(not right for _, right, _ in found),
        )

    # --- models ---

    def baseline(self, stage: Stage) -> Stage:
        """The attempt of stage 1 whose baseline this one is compared with."""
        for each in reversed(self.stages):
            mine = each.artifacts.get("baseline benchmarks")
            if mine is not None and mine == stage.data.get("baseline benchmarks"):
                return each
        raise NotStored("no baseline")

    def entered_optimisation(self, stage: Stage) -> str:
        """What stage 5 began with: the last model that citation training left, before this stage began."""
        before = [each for each in self.stages if each.name == "citation" and each.begun <= stage.begun]
        models = [each.model for each in before if each.turn in PASSED]
        if not models:
            raise NotStored("no model of citation training")
        return models[-1]

    def number_of_look(self, place: tuple[str, str, str], items: Sequence[str]) -> int | None:
        """Which of the sets of items that a gate looked at these are, from 1. None: it never did."""
        text = json.dumps(sorted(items), separators=(",", ":"), ensure_ascii=False)
        name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        sets = self.looks.get(place, [])
        return sets.index(name) + 1 if name in sets else None

    # --- below ---

    def _meta(self, key: str) -> Any:
        [(value,)] = self._ledger.execute("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(value)

    @cached_property
    def _all_jobs(self) -> list[tuple[str, Job]]:
        """The last one first: a configuration that was changed leaves those of before."""
        query = "SELECT request, result FROM job WHERE ended IS NOT NULL ORDER BY begun DESC"
        found = []
        for request, result in self._ledger.execute(query):
            asked, made = json.loads(request), json.loads(result)["outputs"]
            job = Job(asked=asked, made_from=asked["inputs_by_role"], made=made)
            found.append((asked.get("function") or asked["what"], job))
        return found

    def _jobs(self, name: str, **made_from: str) -> list[Job]:
        """Derivations of this name, or scorings ("score"), made from these; there is at least one, or NotStored."""
        found = [
            job
            for each, job in self._all_jobs
            if each == name and all(job.made_from.get(role) == one for role, one in made_from.items())
        ]
        if not found:
            raise NotStored(f"no job {name} of {', '.join(f'{role} {one[:8]}' for role, one in made_from.items())}")
        return found

    def _scored(
        self,
        kind: str,
        model: str,
        function: str,
        made_from: Mapping[str, str],
        sampling: Mapping[str, Any],
        most: int | None = None,
    ) -> str:
        """The rows of the last scoring of what this derivation made of just these, sampled as the configuration says.
        `most`: how many it was to make.
        """
        generation = self.config["generation"]
        limits = {"max_new_tokens": generation["max_new_tokens"], "stop": generation["stop"]} if sampling else {}
        for derived in self._jobs(function, **made_from):
            if derived.made_from != made_from or derived.asked["parameters"].get("most") != most:
                continue
            [rows] = derived.made.values()
            for job in self._jobs("score", rows=rows, model=model):
                sampled = job.asked["sampling"] or {}
                if job.asked["kinds"] == [kind] and {**sampled, **sampling, **limits} == sampled:
                    return job.made["rows"]
        raise NotStored(f"no {kind} of {function} by the model {model[:8]}")

    def _said(self, pairs: str, verdicts: str) -> Supports:
        """A verifier's verdicts on pairs of claim and evidence. What it was not asked is NotStored."""
        probability = {row["pair"]: row["supported"] for row in self.rows(verdicts)}
        known = {
            (_evidence(row["evidence"]), plain(row["claim"])): probability[row["pair"]] for row in self.rows(pairs)
        }
        least = self.config["verifier"]["supported"]

        def supports(sources: Sequence[str], claim: str) -> bool:
            place = (_evidence(sources), plain(claim))
            if place not in known:
                raise NotStored(f"the verifier was not asked about {claim!r}")
            return known[place] is not None and known[place] >= least

        return supports


def looks_of(ledger: sqlite3.Connection) -> dict[tuple[str, str, str], list[str]]:
    """The different sets of items that each gate looked at, oldest first: (stage, gate, candidate) -> sets."""
    sets: dict[tuple[str, str, str], list[str]] = {}
    for (body,) in ledger.execute("SELECT body FROM note WHERE kind = 'look' ORDER BY seq"):
        look = json.loads(body)
        known = sets.setdefault((look["stage"], look["gate"], look["candidate"]), [])
        if look["items"] not in known:
            known.append(look["items"])
    return sets


def _by(verifier: str, judged: Sequence[Job]) -> Job:
    """The last that goes by this verifier."""
    for job in judged:
        if job.asked["parameters"]["verifier"] == verifier:
            return job
    raise NotStored(f"nothing that the verifier {verifier[:8] or '(none)'} was asked for")


def _benchmarks(stage: Stage) -> dict[str, str]:
    return {name: each for name, each in stage.data.items() if name.startswith("benchmark ")}


def _evidence(texts: str | Sequence[str]) -> str:
    return texts if isinstance(texts, str) else "\n".join(texts)
