"""Measurements as rows of an artifact: what a report shows is what a gate judges."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from realign_cluster.domain.gate import Gate
from realign_cluster.domain.gates import judge_gate
from realign_cluster.metrics.measured import ItemId
from realign_cluster.metrics.perplexity import perplexity
from realign_cluster.workflows.measured import from_row, measurement_of, summary_of, to_row, value_of
from realign_cluster.workflows.thresholds import perplexity as perplexity_gate
from tests.workflows.made import share


def test_perplexity_is_shown_as_perplexity_wherever_it_is() -> None:
    loss = perplexity([(ItemId(f"{at}"), 2.0 * tokens, tokens) for at, tokens in enumerate((3, 5) * 40)]).loss
    measured = measurement_of("perplexity", loss, verifier="", dataset="valid", scale="exp")
    rule = perplexity_gate().rule
    assert isinstance(rule, Gate)
    verdict = judge_gate(replace(rule, most_units=5.0), measured)
    for shown in (value_of(measured), to_row(measured)["value"], summary_of(measured)["value"], verdict.value):
        assert shown == pytest.approx(math.exp(2.0))
    assert sum(measured.values) / sum(measured.units) == 2.0  # nats per token, row by row


def test_a_row_is_the_measurement() -> None:
    loss = perplexity([(ItemId("a"), 6.0, 3)]).loss
    for measured in (
        share("accuracy", 3, 1),
        measurement_of("perplexity", loss, verifier="", dataset="valid", scale="exp"),
    ):
        assert from_row(to_row(measured)) == measured
