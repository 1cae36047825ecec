"""Benchmarks that are tasks of lm-evaluation-harness: its requests become rows that the cluster scores, each exactly
once; its own code makes metrics of the answers.

An answer is found by its row's name and put back at the place of its request, whoever scored it and in what order.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from realign_cluster.domain.errors import RunFailed
from realign_cluster.domain.job import Sampling
from realign_cluster.workflows.config import HarnessTask
from realign_cluster.workflows.derive import Derived, Inputs, derivation, derive
from realign_cluster.workflows.harness_process import Asked, TaskRefused, ask_harness, request_digest
from realign_cluster.workflows.jobs import ArtifactId, Ask, JobResult, ModelRef, Score
from realign_cluster.workflows.stage import Context

REQUESTS = "harness "  # and the benchmark's name: rows of `harness_tasks.requests_of`
TASKS = "tasks "  # and the benchmark's name: the folder of the user's own tasks, where there is one
PASS = "pass "  # and its number: rows that were scored
Row = dict[str, Any]


def harness_benchmarks(
    context: Context, model: ModelRef, *, title: str
) -> Generator[Ask, JobResult, ArtifactId | None]:
    """Rows of `harness_scores`; None where no benchmark is a task."""
    data, tasks = context.state.data, context.config.harness_tasks
    if not tasks:
        return None
    sets = {name: each for name, each in data.items() if name.startswith(REQUESTS)}
    asked = yield derive(requests_by_pass, f"{title}: requests of tasks", inputs=sets)
    inputs = sets | {name: each for name, each in data.items() if name.startswith(TASKS)}
    for at, way in enumerate(asked.value["passes"]):
        sampling = way["sampling"]
        scored = yield Score(
            title=f"{title}: {'answers to' if sampling else 'likelihoods of'} tasks, {way['chat']}",
            rows=asked.outputs[f"{PASS}{at}"],
            model=model,
            kinds=("generate",) if sampling else ("loglik",),
            sampling=Sampling.model_validate({**sampling, "seed": context.config.seed}) if sampling else None,
            chat=way["chat"],
            max_tokens=context.config.model.max_tokens,
        )
        inputs[f"{PASS}{at}"] = scored.outputs["rows"]
    described = {
        name: task.model_dump(include={"task", "limit", "num_fewshot", "chat"}) for name, task in tasks.items()
    }
    scores = yield derive(harness_scores, f"{title}: metrics of tasks", inputs=inputs, tasks=described)
    return scores.outputs["scores"]


@derivation(version=1)
def requests_by_pass(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "pass 0", "pass 1", ...: the requests of all tasks that can be scored in one go. In the value what is common to
    each of the "passes": its "chat", and its "sampling", None where log-likelihoods are wanted.
    """
    del parameters
    passes: list[Row] = []
    requests: list[list[Row]] = []
    for name in inputs.names():
        for row in inputs.rows(name):
            way = {"chat": "plain" if isinstance(row["prompt"], str) else "chat", "sampling": row.get("sampling")}
            if way not in passes:
                passes.append(way)
                requests.append([])
            request = {"set": name, "id": row["id"], "prompt": row["prompt"]}
            requests[passes.index(way)].append(request if way["sampling"] else {**request, "response": row["response"]})
    return Derived(rows={f"{PASS}{at}": rows for at, rows in enumerate(requests)}, value={"passes": passes})


@derivation(version=1)
def harness_scores(inputs: Inputs, parameters: Mapping[str, Any]) -> Derived:
    """ "scores": {"benchmark", "item", "score", "chance", "prompt", "answer", "said"?} each. In the value "results",
    the harness's own figures by benchmark and task, and "truncated": requests that lost their beginning to the limit.

    `tasks`: fields of `HarnessTask` by benchmark. Raises RunFailed for a request without an answer, and where the
    harness does not ask what was scored.
    """
    answers, truncated = _answers(inputs)
    asked = []
    chances: dict[tuple[str, str], float] = {}
    for name, described in parameters["tasks"].items():
        requests = list(inputs.rows(f"{REQUESTS}{name}"))
        chances |= {(name, row["item"]): row["chance"] for row in requests}
        placed: dict[str, list[tuple[str, float | str]]] = {}
        for row in requests:
            digest = request_digest(row["prompt"], row.get("response"))
            placed.setdefault(row["request"], []).append((digest, _answer_to(name, row, answers)))
        chosen = {key: requests[0][key] for key in ("metric", "filter")}
        folder = f"{TASKS}{name}"
        asked.append(
            Asked(
                name=name,
                task=HarnessTask.model_validate({**described, **chosen}),
                folder=str(inputs.folder(folder).absolute()) if inputs.has(folder) else None,
                answers={kind: tuple(each) for kind, each in placed.items()},
            )
        )
    try:
        found = ask_harness(asked)
    except TaskRefused as refused:
        raise RunFailed(f"benchmark {refused.benchmark}: {refused.what}", refused.fix) from None
    scores = [
        {"benchmark": name, **row, "chance": chances[name, row["item"]]}
        for name in found
        for row in found[name]["items"]
    ]
    results = {name: found[name]["results"] for name in found}
    return Derived(rows={"scores": scores}, value={"results": results, "truncated": truncated})


def _answers(inputs: Inputs) -> tuple[dict[tuple[str, str], float | str | None], int]:
    """What the cluster said, by set and id of the request, and how many requests were truncated."""
    found: dict[tuple[str, str], float | str | None] = {}
    truncated = 0
    for name in (each for each in inputs.names() if each.startswith(PASS)):
        for row in inputs.rows(name):
            (scores,) = row["scores"].values()
            samples = scores.get("samples") or [{"text": None}]
            found[row["set"], row["id"]] = scores["sum"] if "sum" in scores else samples[0]["text"]
            truncated += bool(scores.get("truncated"))
    return found, truncated


def _answer_to(benchmark: str, request: Row, answers: Mapping[tuple[str, str], float | str | None]) -> float | str:
    answer = answers.get((f"{REQUESTS}{benchmark}", request["id"]))
    if answer is None:
        raise RunFailed(
            f"benchmark {benchmark}: the request {request['id']} of item {request['item']} could not be scored",
            "its answer may be empty, or longer than model.max_tokens",
        )
    return answer
