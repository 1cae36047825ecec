"""Tasks of lm-evaluation-harness, in a process of their own: the only module that imports it.

    python -m realign_cluster.workflows.harness_tasks --order FILE --out FILE

The harness builds requests, and computes metrics by its own filters and aggregation. In between the cluster scores:
the model that the harness talks to is a table of answers, each found at its request's place and checked against it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import random
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.workflows.harness_metrics import GREEDY_FIX, chosen_metric, in_range, samples_of, values_of
from realign_cluster.workflows.harness_process import (
    REFUSED,
    Answers,
    Asked,
    Order,
    Prompt,
    Row,
    TaskRefused,
    request_digest,
)

PLACEHOLDER: Final = -1.0  # nats; and "" for a text: what is asked does not depend on what was answered


class Model(LM):  # type: ignore[misc]
    """What the harness takes for a model. `greedy` is claimed of every continuation: what comes out must not depend on
    it, as the cluster's log-likelihoods do not say whether one is the likeliest text. A conversation stays one, as
    JSON in the place of a prompt's text: templates are the tokenizer's, and applied where the model is.
    """

    tokenizer_name = ""  # of the harness's own cache of requests, which is not used

    def __init__(self, asked: Asked, *, greedy: bool) -> None:
        super().__init__()
        self._asked = asked
        self._greedy = greedy
        self.requests: dict[str, list[Any]] = {}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not add_generation_prompt:
            what = f"{self._asked.task.task} begins the model's answers for it, which a conversation here has not"
            raise TaskRefused(self._asked.name, "chat", what, "remove the line")
        return orjson.dumps(chat_history).decode()

    def value(self, kind: str, at: int, prompt: Prompt, response: str | None) -> float | str:
        """The answer to the request at this place among its kind."""
        del at, prompt, response
        return "" if kind == "generate_until" else PLACEHOLDER

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        self.requests["loglikelihood"] = requests
        return [
            (
                float(self.value("loglikelihood", at, _prompt(self._asked, request.args[0]), request.args[1])),
                self._greedy,
            )
            for at, request in enumerate(requests)
        ]

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.requests["generate_until"] = requests
        return [
            str(self.value("generate_until", at, _prompt(self._asked, request.args[0]), None))
            for at, request in enumerate(requests)
        ]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        name = requests[0].task_name
        what = f"{name} asks for rolling log-likelihoods of whole texts, which are not computed here"
        raise TaskRefused(self._asked.name, "task", what, "name a multiple-choice or generation task")


class Answered(Model):
    """Answers from the table that was given."""

    def value(self, kind: str, at: int, prompt: Prompt, response: str | None) -> float | str:
        answers: Answers = self._asked.answers or {}
        known = answers.get(kind, ())
        if at >= len(known) or known[at][0] != request_digest(prompt, response):
            what = "the task gives other requests than those that were scored: its data or its code has changed"
            raise TaskRefused(self._asked.name, "task", what, "put them back as they were, or start a new run")
        return known[at][1]


def requests_of(asked: Asked) -> Row:
    """ "rows": {"id", "request", "item", "prompt", "response" or "sampling", "metric", "filter", "chance", "harness"}
    each, in the harness's order. `item`: the document, with its task's name where there are several; `harness`: the
    version. Raises TaskRefused.
    """
    models = [Model(asked, greedy=greedy) for greedy in (False, True)]
    (tasks, first), (_, second) = (_evaluated(asked, model) for model in models)
    rows, again = ([*_rows(asked, model, several=len(tasks) > 1)] for model in models)
    if rows != again:
        raise TaskRefused(asked.name, "task", f"{asked.task.task} asks something else each time", "give it a seed")
    better = {name: task.higher_is_better() for name, task in tasks.items()}
    metric, filter_name = chosen_metric(asked, better, first["samples"], second["samples"])
    chances = {
        _item(name, sample["doc_id"], several=len(tasks) > 1): _chance(asked, task, sample)
        for name, task in tasks.items()
        for sample in first["samples"][name]
    }
    version = importlib.metadata.version("lm_eval")
    more = {"metric": metric, "filter": filter_name, "harness": version}
    return {"rows": [{**row, **more, "chance": chances[row["item"]]} for row in rows]}


def scores_of(asked: Asked) -> Row:
    """ "items": {"item", "score", "prompt", "answer", "said"?} each; "results": the harness's own figures, by task or
    group. The task's metric and filter must be given. Raises TaskRefused.
    """
    (tasks, first), (_, second) = (_evaluated(asked, Answered(asked, greedy=greedy)) for greedy in (False, True))
    metric, filter_name = str(asked.task.metric), str(asked.task.filter)
    items = []
    for name in tasks:
        values, others = (values_of(each["samples"][name], (metric, filter_name)) for each in (first, second))
        if not in_range(values):
            what = f"{metric} of {name} is not between 0 and 1 for each document"
            raise TaskRefused(asked.name, "metric", what, "name another metric")
        if values != others:
            what = f"{metric} of {name} depends on which text is the likeliest"
            raise TaskRefused(asked.name, "metric", what, GREEDY_FIX)
        items += [
            {
                "item": _item(name, sample["doc_id"], several=len(tasks) > 1),
                "score": float(sample[metric]),
                "prompt": _prompt(asked, sample["arguments"][0][0]),
                "answer": _right(sample),
            }
            | ({"said": str(sample["resps"][0][0])} if isinstance(sample["resps"][0][0], str) else {})
            for sample in samples_of(first["samples"][name], (metric, filter_name))
        ]
    results = {name: _figures(each, second["results"][name]) for name, each in first["results"].items()}
    return {"items": items, "results": results}


# --- the harness ---


def _evaluated(asked: Asked, model: Model) -> tuple[dict[str, Any], Row]:
    """The tasks by name and all that the harness says, seeded and loaded as its own `simple_evaluate` does it."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    if asked.folder:
        os.chdir(asked.folder)
    loaded = _loaded(asked)
    for task in loaded["tasks"].values():
        _set_shots(asked, task)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    found: Row = evaluate(
        lm=model,
        task_dict=loaded,
        limit=asked.task.limit,
        bootstrap_iters=0,
        apply_chat_template=asked.task.chat,
        fewshot_as_multiturn=True,
    )
    return loaded["tasks"], found


def _loaded(asked: Asked) -> dict[str, Any]:
    name = asked.task.task
    manager = _manager(asked.folder, own=True) if asked.folder else _manager(None, own=False)
    if asked.folder and name not in manager.all_tasks:
        manager = _manager(asked.folder, own=False)
    if name not in manager.all_tasks:
        near = did_you_mean(name, manager.all_tasks)
        raise TaskRefused(asked.name, "task", f"there is no task {name!r}{near}", "lm-eval ls tasks lists them")
    try:
        loaded: dict[str, Any] = manager.load([name])
    except Exception as error:  # the task's own code, and its data from wherever they are
        raise TaskRefused(
            asked.name,
            "task",
            f"{name} cannot be loaded: {type(error).__name__}: {error}",
            "correct it, or get its data",
        ) from error
    for each in loaded["tasks"].values():
        if getattr(each, "UNSAFE_CODE", False):
            what = f"{each.task_name} runs code that the model writes, which is not done here"
            raise TaskRefused(asked.name, "task", what, "name another task")
        if getattr(each, "MULTIMODAL", False):
            raise TaskRefused(asked.name, "task", f"{each.task_name} shows images or sounds", "name a task of texts")
    return loaded


@cache
def _manager(folder: str | None, *, own: bool) -> Any:
    """All tasks that there are; only those of the folder if `own`: the harness's own are some 14,000 files."""
    return TaskManager(include_path=folder, include_defaults=not own)


def _set_shots(asked: Asked, task: Any) -> None:
    """A task that says 0 means it: the harness leaves that as it is."""
    wanted, fixed = asked.task.num_fewshot, task.get_config("num_fewshot")
    if wanted is None:
        if fixed is None:
            task.set_config(key="num_fewshot", value=0)
    elif fixed == 0 and wanted:
        what = f"{task.task_name} is a task without examples: it fixes num_fewshot at 0"
        raise TaskRefused(asked.name, "num_fewshot", what, "remove the line")
    else:
        task.set_config(key="num_fewshot", value=wanted)


# --- requests ---


def _rows(asked: Asked, model: Model, *, several: bool) -> Iterator[Row]:
    every = [(kind, request) for kind, requests in model.requests.items() for request in requests]
    for number, (kind, request) in enumerate(every):
        prompt, more = _prompt(asked, request.args[0]), request.args[1]
        row = {"id": str(number), "request": kind, "item": _item(request.task_name, request.doc_id, several=several)}
        if not prompt:
            what = f"{request.task_name} wants text of which nothing stands before it: that has no log-likelihood"
            raise TaskRefused(asked.name, "task", what, "name a task whose questions have a context")
        if kind == "loglikelihood":
            yield {**row, "prompt": prompt, "response": more}
        else:
            yield {**row, "prompt": prompt, "sampling": _sampling(asked, request.task_name, more)}


def _prompt(asked: Asked, text: str) -> Prompt:
    prompt: Prompt = orjson.loads(text) if asked.task.chat and text else text
    return prompt


def _sampling(asked: Asked, task: str, wanted: Mapping[str, Any]) -> Row:
    """The fields of `Sampling`."""
    known = normalize_gen_kwargs(dict(wanted))
    temperature = float(known.pop("temperature"))
    drawn = bool(known.pop("do_sample")) and temperature > 0
    sampling = {
        "temperature": temperature if drawn else 0.0,
        "max_new_tokens": int(known.pop("max_gen_toks")),
        "stop": [text for text in known.pop("until") if text],
    }
    top = {name: known.pop(name) for name in ("top_p", "top_k") if name in known}
    if known.pop("num_beams", 1) != 1 or known:
        what = f"{task} sets {', '.join(sorted(known)) or 'num_beams'} for its answers, which generation here has not"
        raise TaskRefused(asked.name, "task", what, "take it out of the task's generation_kwargs")
    return sampling | (top if drawn else {})


def _item(task: str, document: int, *, several: bool) -> str:
    return f"{task}/{document}" if several else str(document)


# --- metrics ---


def _chance(asked: Asked, task: Any, sample: Row) -> float:
    """Of guessing: right choices over all choices. Raises TaskRefused where only the task's own code knows."""
    if asked.task.chance is not None:
        return asked.task.chance
    if getattr(task, "OUTPUT_TYPE", None) != "multiple_choice":
        return 0.0
    own = not isinstance(task, ConfigurableTask) or type(task).process_results is not ConfigurableTask.process_results
    if own or callable(task.config.process_results):
        what = f"missing: {task.task_name} scores by a function of its own, so only you know what guessing gives"
        raise TaskRefused(asked.name, "chance", what, "chance = 0.25, say, where one of four is right")
    target = sample["target"]
    return (len(set(target)) if isinstance(target, list) else 1) / len(sample["arguments"])


def _right(sample: Row) -> str:
    target, arguments = sample["target"], sample["arguments"]
    if isinstance(target, int) and 0 <= target < len(arguments) and isinstance(arguments[target][1], str):
        return str(arguments[target][1]).strip()
    return str(target)


def _figures(results: Row, others: Row) -> dict[str, float]:
    """The numbers among them, by "metric,filter"; none that depends on which text is said to be the likeliest."""
    return {
        name: float(value)
        for name, value in results.items()
        if "," in name and isinstance(value, Real) and np.isfinite(float(value)) and others[name] == value
    }


def answer(order: Order) -> Row:
    """By the benchmark's name. Raises TaskRefused."""
    return {asked.name: requests_of(asked) if asked.answers is None else scores_of(asked) for asked in order.benchmarks}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--order", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    order = Order.model_validate_json(options.order.read_bytes())
    code = 0
    with contextlib.redirect_stdout(sys.stderr):
        try:
            found = answer(order)
        except TaskRefused as refused:
            code, found = REFUSED, vars(refused)
    options.out.write_bytes(orjson.dumps(found))
    return code


if __name__ == "__main__":
    sys.exit(main())
