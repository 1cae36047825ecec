"""Which metric of a task of lm-evaluation-harness is retained: one that each document has by itself, between 0 and 1,
and that follows from what the cluster measures.

Reads the harness's samples ("filter", "metrics", and a value by each metric's name); must not import it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Final

from realign_cluster.workflows.harness_process import Asked, Row, TaskRefused

GREEDY_FIX: Final = "name another metric: that an answer is the likeliest of all texts is not measured here"
Chosen = tuple[str, str]  # a metric and the filter before it


def chosen_metric(
    asked: Asked, better: Mapping[str, Mapping[str, bool]], first: Mapping[str, Any], second: Mapping[str, Any]
) -> Chosen:
    """The metric and filter asked for, or the first of all that will do for every task.

    `first` and `second`: the samples of two runs by task, every continuation said to be the likeliest text in one of
    them. `better`: by task and metric, whether more is. Raises TaskRefused.
    """
    depends: set[str] = set()
    of_each = [_usable(first[name], second[name], better[name], depends) for name in better]
    usable = [each for each in of_each[0] if all(each in others for others in of_each)]
    wanted = asked.task
    for metric, filter_name in usable:
        if wanted.metric in (None, metric) and wanted.filter in (None, filter_name):
            return metric, filter_name
    if wanted.metric in depends or (wanted.metric is None and depends and len(better) == 1 and not usable):
        what = f"{wanted.metric or min(depends)} of {wanted.task} asks whether an answer is the likeliest of all texts"
        raise TaskRefused(asked.name, "metric" if wanted.metric else "task", what, GREEDY_FIX)
    key = "metric" if wanted.metric else "filter" if wanted.filter else "task"
    named = " ".join(each for each in (wanted.metric, wanted.filter and f"after filter {wanted.filter}") if each)
    what = f"{wanted.task} has no metric {named or 'in [0, 1] that each document has'}"
    there = ", ".join(f"{metric} (filter {filter_name})" for metric, filter_name in usable)
    raise TaskRefused(asked.name, key, what, f"it has {there}" if there else "name another task")


def _usable(first: Sequence[Row], second: Sequence[Row], better: Mapping[str, bool], depends: set[str]) -> list[Chosen]:
    """Metrics in [0, 1] for each document, of which more is better. Those that differ go to `depends` instead."""
    found: list[Chosen] = []
    for filter_name in dict.fromkeys(sample["filter"] for sample in first):
        documents = [sample for sample in first if sample["filter"] == filter_name]
        for metric in dict.fromkeys(metric for sample in documents for metric in sample["metrics"]):
            one, other = (values_of(each, (metric, filter_name)) for each in (first, second))
            if len(one) < len(documents) or not in_range([*one, *other]):
                continue
            if one != other:
                depends.add(metric)
            elif better.get(metric, True):
                found.append((metric, filter_name))
    return found


def samples_of(samples: Sequence[Row], chosen: Chosen) -> list[Row]:
    """Those after that filter which have that metric."""
    metric, filter_name = chosen
    return [each for each in samples if each["filter"] == filter_name and metric in each["metrics"]]


def values_of(samples: Sequence[Row], chosen: Chosen) -> list[Any]:
    return [each[chosen[0]] for each in samples_of(samples, chosen)]


def in_range(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Real) and 0 <= float(value) <= 1 for value in values)
