"""Which jobs a workflow will ask for, before anything is run: its own bodies, sent assumed results.

What is assumed: every gate passes at the first attempt, every training ends well, every round of stage 6 is done, and
a model answers as the completions of the practice questions do. Derivations are the real ones, but for those that
ask other programs, or take long and lead to no job. So what is listed is what a run asks for, as far as it does not
hang on what models say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final, assert_never

from realign_cluster.domain.errors import RealignError
from realign_cluster.metrics.retrieval.choice import UsersCode
from realign_cluster.metrics.verifiers.verdict import unanswerable
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.config import WorkflowConfig
from realign_cluster.workflows.course import state_after
from realign_cluster.workflows.harness import REQUESTS
from realign_cluster.workflows.jobs import (
    ArtifactId,
    Ask,
    Consult,
    Derive,
    JobResult,
    Look,
    ModelRef,
    Score,
    Train,
    content_hash,
    job_key,
)
from realign_cluster.workflows.stage import Context, Outcome, Stage, State, Workflow
from realign_cluster.workflows.verify import pair_of

Row = dict[str, Any]
RowsOf = Callable[[str], Iterator[Row]]  # of an input, by its name
Deriver = Callable[[Derive], JobResult]
Texts = Callable[[Row, int], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """One job that will cost time on the cluster. `rows`: an artifact of the rehearsal's store that is as long."""

    stage: str
    job: Score | Train | Consult
    rows: ArtifactId
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """`jobs` in the order they are asked for, each once, as a run does it. `stopped`: why no more could be seen."""

    jobs: tuple[Rehearsed, ...]
    stopped: str = ""


def rehearse(
    workflow: Workflow,
    config: WorkflowConfig,
    state: State,
    *,
    store: ArtifactStore,
    derive: Deriver,
    judge: ModelRef | None = None,
    retriever: UsersCode | None = None,
) -> Rehearsal:
    """`state.data` are rows in `store`; `derive` computes a derivation whose inputs are there."""
    rounds = config.iteration.model_copy(update={"flat_rounds": config.iteration.rounds})
    config = config.model_copy(update={"iteration": rounds})
    stand_in = _StandIn(store, derive, [*store.rows(state.data["practice"])])
    for stage in workflow.stages:
        context = Context(config=config, state=state, attempt=0, number=0, judge=judge, retriever=retriever)
        try:
            outcome = _through(stage, context, stand_in)
        except RealignError as error:
            return Rehearsal(jobs=tuple(stand_in.jobs), stopped=f"{stage.title}: {error.message}")
        if outcome.failed:
            return Rehearsal(jobs=tuple(stand_in.jobs), stopped=f"{stage.title}: {outcome.failed}")
        state = state_after(state, stage, outcome)
    return Rehearsal(jobs=tuple(stand_in.jobs))


def _through(stage: Stage, context: Context, stand_in: _StandIn) -> Outcome:
    body, answer = stage.body(context), None
    while True:
        try:
            asked = body.send(answer)  # type: ignore[arg-type]  # None begins it
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        answer = stand_in.answer(asked, stage.name)


@dataclass(slots=True)
class _StandIn:
    """Stands in for the cluster. Artifacts are named by what makes them, not by what is in them: two models of which
    the same is assumed are two all the same, and so are the jobs that each is asked in.
    """

    store: ArtifactStore
    derive: Deriver
    practice: list[Row]
    jobs: list[Rehearsed] = field(default_factory=list)
    _done: dict[str, JobResult] = field(default_factory=dict)  # by the key of a job, as it was asked for
    _derived: dict[str, JobResult] = field(default_factory=dict)  # by the key of a derivation of what is in the store
    _held: dict[str, ArtifactId] = field(default_factory=dict)  # an artifact by what makes it -> in the store

    def answer(self, asked: Ask, stage: str) -> JobResult:
        if isinstance(asked, Look):
            return JobResult(value=list(self._rows(asked.rows)))
        key = job_key(asked)
        if key not in self._done:
            self._done[key] = self._do(key, asked, stage)
        return self._done[key]

    def _do(self, key: str, job: Score | Train | Consult | Derive, stage: str) -> JobResult:
        match job:
            case Derive():
                return self._renamed(key, self._derive(job))
            case Score():
                count = self._note(stage, job, job.rows)
                scored = ({**row, "scores": scores} for row, scores in self._scored(job))
                made = {"rows": ArtifactId(self.store.put_rows(scored))}
                return self._renamed(key, JobResult(outputs=made, value={"seconds": 0.0, "rows": count}))
            case Consult():
                self._note(stage, job, job.pairs)
                verdicts = ArtifactId(self.store.put_rows(_verdict(row) for row in self._rows(job.pairs)))
                return self._renamed(key, JobResult(outputs={"verdicts": verdicts}))
            case Train():
                self._note(stage, job, job.data)
                names = {name: ArtifactId(content_hash([key, name])) for name in ("model", "metrics")}
                return JobResult(outputs=names, value={})
            case _:
                assert_never(job)

    def _note(self, stage: str, job: Score | Train | Consult, rows: ArtifactId) -> int:
        held = self._held.get(rows, rows)
        count = sum(1 for _ in self.store.rows(held))
        self.jobs.append(Rehearsed(stage=stage, job=job, rows=held, count=count))
        return count

    def _derive(self, job: Derive) -> JobResult:
        held = job.model_copy(
            update={"inputs": {name: self._held.get(each, each) for name, each in job.inputs.items()}}
        )
        key = job_key(held)
        if key not in self._derived:
            if job.function in ASSUMED:
                rows, value = ASSUMED[job.function](lambda name: self.store.rows(held.inputs[name]), job)
                made = {name: ArtifactId(self.store.put_rows(each)) for name, each in rows.items()}
                self._derived[key] = JobResult(outputs=made, value=value)
            else:
                self._derived[key] = self.derive(held)
        return self._derived[key]

    def _renamed(self, key: str, made: JobResult) -> JobResult:
        names = {name: ArtifactId(content_hash([key, name])) for name in made.outputs}
        self._held |= {names[name]: each for name, each in made.outputs.items()}
        return JobResult(outputs=names, value=made.value)

    def _rows(self, name: ArtifactId) -> Iterator[Row]:
        return self.store.rows(self._held.get(name, name))

    def _scored(self, job: Score) -> Iterator[tuple[Row, Row]]:
        texts = _texts(self.practice)
        for row in self._rows(job.rows):
            yield row, {kind: _score(kind, job, row, texts) for kind in job.kinds}


# --- what is assumed ---


def _texts(practice: Sequence[Row]) -> Texts:
    """So many answers to a row: its own completion first, where it has one; then, in turn, those of practice questions
    that are as answerable. Samples that all say something else are the most that a verifier can be asked.
    """
    by_kind = {
        kind: [str(row["completion"]) for row in practice if bool(row.get("answerable", True)) == kind]
        for kind in (True, False)
    }
    everything = [str(row["completion"]) for row in practice]
    turns = {kind: cycle(found or everything) for kind, found in by_kind.items()}

    def texts(row: Row, count: int) -> list[str]:
        said = [str(row["completion"])] if "completion" in row else []
        turn = turns[bool(row.get("answerable", True))]
        while len(said) < count:
            text = next(turn)
            said.append(next(turn) if text in said else text)
        return said

    return texts


def _score(kind: str, job: Score, row: Row, texts: Texts) -> Row:
    match kind:
        case "generate":
            said = texts(row, job.sampling.samples if job.sampling else 1)
            samples = [
                {"text": text, "tokens": len(text.split()), "finish": "stop", "logprob_sum": -1.0} for text in said
            ]
            return {"samples": samples, "truncated": False}
        case "judge":
            first, *others = job.labels
            return {"probabilities": {first: 1.0, **dict.fromkeys(others, 0.0)}, "label": first, "truncated": False}
        case "kl":
            return {"sum": 0.0, "tokens": 1}
        case "preference":
            side = {"sum": -1.0, "mean": -1.0, "tokens": 1}
            return {"chosen": side, "rejected": side, "margin_sum": 0.0, "margin_mean": 0.0}
        case "ifd" | "ifd-ppl":
            return {"value": 1.0, "nll_conditioned": 1.0, "nll_alone": 1.0, "tokens": 1, "truncated": False}
        case _:
            return {"sum": -1.0, "mean": -1.0, "tokens": 1, "truncated": False}


def _verdict(row: Row) -> Row:
    pair = pair_of(row)
    known = unanswerable(pair)
    supported, label = (1.0, "supported") if known is None else (known.supported, known.label)
    return {"pair": pair.key, "supported": supported, "label": label, "span": None, "reason": "assumed"}


def _a_pair_each(rows: RowsOf, job: Derive) -> tuple[dict[str, list[Row]], Any]:
    """As many as questions, as long as their answers: how many can be made hangs on what the model says."""
    del job
    pairs = [
        {"prompt": row["prompt"], "chosen": text, "rejected": f"{text} "}
        for row in rows("generated")
        for text in (row["scores"]["generate"]["samples"][0]["text"],)
    ]
    return {"pairs": pairs}, {"pairs": len(pairs), "checks": []}


def _all_right(rows: RowsOf, job: Derive) -> tuple[dict[str, list[Row]], Any]:
    """Of tasks: what the harness makes of answers leads to no other job."""
    items = {
        (name.removeprefix(REQUESTS), row["item"]): float(row["chance"])
        for name in job.inputs
        if name.startswith(REQUESTS)
        for row in rows(name)
    }
    scores = [
        {"benchmark": name, "item": item, "score": 1.0, "chance": chance} for (name, item), chance in items.items()
    ]
    return {"scores": scores}, {}


def _nothing(*outputs: str) -> Callable[[RowsOf, Derive], tuple[dict[str, list[Row]], Any]]:
    """Nobody asks for a job because of what is in it."""

    def assumed(rows: RowsOf, job: Derive) -> tuple[dict[str, list[Row]], Any]:
        del rows, job
        return {name: [] for name in outputs}, {}

    return assumed


ASSUMED: Final[Mapping[str, Callable[[RowsOf, Derive], tuple[dict[str, list[Row]], Any]]]] = {
    "preference_rows": _a_pair_each,
    "harness_scores": _all_right,
    "source_index": _nothing("index"),
    "retrieval_measurements": _nothing("measurements", "rankings"),
    "spread_of_sources": _nothing(),
    "example_measurements": _nothing("measurements", "examples"),
    "leak_measurements": _nothing("measurements", "examples"),
    "source_measurements": _nothing("measurements", "examples"),
}
