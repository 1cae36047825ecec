"""Shares, refusals and reasons of a plan, from facts alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.group import Sharding
from realign_cluster.domain.memory import GIB, ModelFacts, model_facts, no_model
from realign_cluster.domain.plan import LeftOut, Plan, plan_from_json
from realign_cluster.domain.plan_facts import NodeFacts, StaleCalibration, WorkFacts
from realign_cluster.domain.plan_reasons import duration
from realign_cluster.domain.planner import plan_scoring
from realign_cluster.domain.prior import DeviceFacts
from realign_cluster.domain.report import Calibration

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"
WORK = WorkFacts(kinds=("loglik",), rows=10_000, cost=2_000_000.0, median_row_tokens=200)


def model(name: str, **extra: object) -> ModelFacts:
    config = {**json.loads((CONFIGS / f"{name}.json").read_text()), **extra}
    return model_facts(config, 0, name=name)


def small_model() -> ModelFacts:
    config = {
        "model_type": "llama",
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "intermediate_size": 1408,
        "vocab_size": 32000,
    }
    return model_facts(config, 0, name="small")


def mac(name: str, chip: str, gibibytes: int, **extra: object) -> NodeFacts:
    device = DeviceFacts(chip=chip, backend="metal")
    return NodeFacts(name=name, device=device, memory_bytes=gibibytes * GIB, **extra)  # type: ignore[arg-type]


def cpu(name: str, cores: int = 2, available: int = 8) -> NodeFacts:
    device = DeviceFacts(chip="cpu", backend="cpu", cpu_cores=cores, blas="openblas")
    return NodeFacts(name=name, device=device, memory_bytes=16 * GIB, available_bytes=available * GIB)


def measured(cost_per_second: float, **extra: object) -> Calibration:
    values: dict[str, object] = {
        "measured_at": "2026-11-20T10:00:00+00:00",
        "mode": "full",
        "cost_per_second": cost_per_second,
        "rows_per_second": cost_per_second / 200,
        "spread": 0.02,
        "seconds": 30.0,
        **extra,
    }
    return Calibration.model_validate(values)


M4 = mac("m4max", "Apple M4 Max", 128)
M3 = mac("m3ultra", "Apple M3 Ultra", 512)


def test_shares_follow_measured_speed() -> None:
    plan = plan_scoring([M4, M3], small_model(), WORK, {"m4max": measured(6500), "m3ultra": measured(3500)})
    assert plan.approach == "separate"
    assert plan.shares() == {"m4max": pytest.approx(0.65), "m3ultra": pytest.approx(0.35)}
    assert plan.expected_seconds == pytest.approx(200.0)
    assert plan.rows_per_second == pytest.approx(50.0)
    assert plan.equal_split_seconds == pytest.approx(1_000_000 / 3500)
    assert plan.fastest_alone == "m4max"
    assert plan.fastest_alone_seconds == pytest.approx(2_000_000 / 6500)
    for node in plan.nodes:
        assert node.source == "measured"
        assert node.measured_cost_per_second == node.cost_per_second
        assert node.prior_cost_per_second > 0  # both are there, next to each other
        assert "fits" in node.memory


def test_uncalibrated_macs_get_the_users_ratio_and_hear_of_its_contradiction() -> None:
    at_30b = plan_scoring([M4, M3], model("qwen3-30b-a3b"), WORK)
    assert at_30b.shares()["m4max"] == pytest.approx(0.655, abs=0.005)
    small = plan_scoring([M4, M3], small_model(), WORK)
    assert small.shares()["m4max"] == pytest.approx(0.835, abs=0.005)
    why = "\n".join(small.why)
    assert "contradict each other" in why
    assert "65.5 / 34.5 would take" in why
    assert ", slower than " in why  # than the M4 Max alone, at this ratio
    assert "the user's matrix: up to 30B: M4 Max" in why
    assert all(node.source == "prior" and node.measured_cost_per_second is None for node in small.nodes)
    assert ", slower than " not in "\n".join(at_30b.why)


def test_the_prior_of_an_unmeasured_node_is_scaled_by_those_measured() -> None:
    unmeasured = plan_scoring([M4, M3], small_model(), WORK)
    prior = {node.name: node.prior_cost_per_second for node in unmeasured.nodes}
    plan = plan_scoring([M4, M3], small_model(), WORK, {"m4max": measured(prior["m4max"] / 2)})
    speeds = {node.name: node.cost_per_second for node in plan.nodes}
    assert speeds["m3ultra"] == pytest.approx(prior["m3ultra"] / 2)
    assert plan.shares() == pytest.approx(unmeasured.shares())
    other = next(node for node in plan.nodes if node.name == "m3ultra")
    assert other.source == "prior"
    assert "m4max measured against the prior" in other.source_text


def test_a_stale_measurement_is_a_guess_and_shown_as_one() -> None:
    stale = {"m3ultra": StaleCalibration(calibration=measured(500), reason="it is 41 days old")}
    plan = plan_scoring([M4, M3], small_model(), WORK, {"m4max": measured(1500)}, stale=stale)
    node = next(node for node in plan.nodes if node.name == "m3ultra")
    assert (node.source, node.share) == ("stale", pytest.approx(0.25))
    assert "41 days old" in node.source_text
    assert node.measured_cost_per_second is None


def test_a_node_that_is_too_small_is_left_out_with_the_arithmetic() -> None:
    plan = plan_scoring([M4, M3], model("llama-3.1-70b"), WORK)
    assert plan.approach == "separate"
    assert plan.shares() == {"m3ultra": pytest.approx(1.0)}
    (left_out,) = plan.left_out
    assert left_out.name == "m4max"
    assert "does not fit" in left_out.reason
    assert "holds 96.0 GiB" in left_out.reason
    assert "1 of 2 nodes" in "\n".join(plan.why)


def test_405b_is_refused_with_the_ways_out() -> None:
    plan = plan_scoring([M4, M3], model("llama-3.1-405b"), WORK)
    assert plan.approach == "refused"
    assert plan.nodes == ()
    assert "811.7 GB" in plan.refusal
    assert "128 + 512 GiB" in plan.refusal
    assert "4-bit: 228.3 GB" in plan.fix
    assert "more nodes" in plan.fix
    with pytest.raises(UsageError, match=r"811\.7 GB"):
        plan.raise_if_refused()


def test_405b_in_4_bits_runs_on_the_large_machine() -> None:
    plan = plan_scoring([M4, M3], model("llama-3.1-405b", quantization={"bits": 4, "group_size": 64}), WORK)
    assert plan.approach == "separate"
    assert [node.name for node in plan.nodes] == ["m3ultra"]


def of(*sizes: int) -> list[NodeFacts]:
    return [mac(f"mac-{index}", "Apple M3 Ultra", size) for index, size in enumerate(sizes)]


def work(sharding: Sharding = "auto", backend: str = "any") -> WorkFacts:
    return WorkFacts(kinds=("judge",), rows=10, cost=1e4, backend=backend, sharding=sharding)


def test_a_model_larger_than_each_node_is_a_pipeline_with_layers_by_memory() -> None:
    plan = plan_scoring(of(512, 768), model("llama-3.1-405b"), work())
    assert plan.approach == "sharded"
    assert plan.group is not None
    assert plan.group.parallel == "pipeline"
    (small, large) = plan.group.members
    assert plan.group.leader == large.name == "mac-1"
    assert plan.shares() == {"mac-1": 1.0}  # to the scheduler it is one node
    assert small.blocks is not None
    assert large.blocks == (small.blocks[1], 126)
    assert small.blocks[1] - small.blocks[0] < 126 / 2  # 384 GiB hold fewer than 576
    for member in plan.group.members:
        assert member.memory_needed_bytes <= member.memory_limit_bytes
        assert "fits" in member.memory
    why = "\n".join(plan.why)
    assert (
        f"pipeline over mac-0 (blocks 0 to {small.blocks[1] - 1}) and mac-1 (blocks {small.blocks[1]} to 125, leads)"
        in why
    )
    assert "no node holds the model alone" in why
    plan.raise_if_refused()


def test_the_fewest_nodes_that_hold_it_make_the_group() -> None:
    plan = plan_scoring(of(128, 512, 64, 768), model("llama-3.1-405b"), work())
    assert plan.group is not None
    assert [member.name for member in plan.group.members] == ["mac-1", "mac-3"]
    assert {out.name for out in plan.left_out} == {"mac-0", "mac-2"}
    assert all("without it" in out.reason for out in plan.left_out)


def test_a_model_that_a_node_holds_is_sharded_only_when_asked() -> None:
    assert plan_scoring([M4, M3], small_model(), work("auto")).approach == "separate"
    for asked in ("pipeline", "tensor"):
        plan = plan_scoring([M4, M3], small_model(), work(asked))
        assert plan.group is not None
        assert plan.group.parallel == asked
        assert [member.name for member in plan.group.members] == ["m4max", "m3ultra"]
        assert "as asked with --shard" in "\n".join(plan.why)
    assert plan_scoring([M4, M3], small_model(), work("pipeline")).cost_per_second > 0


@pytest.mark.parametrize(
    ("sharding", "nodes", "says"),
    [
        ("none", (512, 768), "--shard none"),
        ("pipeline", (768,), "a group has at least 2 nodes"),
        ("tensor", (512, 768, 768), "num_key_value_heads 8 is not divisible by 3 ranks"),
        ("tensor", (512, 768), "does not fit"),  # equal halves
        ("pipeline", (64, 96), "short"),
    ],
)
def test_what_is_in_the_way_of_a_group_is_said(sharding: Sharding, nodes: tuple[int, ...], says: str) -> None:
    plan = plan_scoring(of(*nodes), model("llama-3.1-405b"), work(sharding))
    assert plan.approach == "refused"
    assert says in plan.refusal
    with pytest.raises(UsageError):
        plan.raise_if_refused()


@pytest.mark.parametrize(
    ("backend", "says"), [("jaccl", "jaccl (RDMA over Thunderbolt 5)"), ("any", "ring (TCP)"), ("mpi", "ring (TCP)")]
)
def test_a_group_says_what_joins_it(backend: str, says: str) -> None:
    assert says in "\n".join(plan_scoring(of(512, 768), model("llama-3.1-405b"), work(backend=backend)).why)


def test_no_nodes_is_refused_with_the_reasons_kept() -> None:
    plan = plan_scoring([], small_model(), WORK, left_out=[LeftOut(name="m4max", reason="not listening")])
    assert plan.approach == "refused"
    assert plan.left_out[0].reason == "not listening"


def test_batches_are_measured_else_prior_and_never_beyond_memory() -> None:
    plan = plan_scoring(
        [M4, M3], small_model(), WORK, {"m4max": measured(100, batch_tokens=4096, best_batch={"256": 16})}
    )
    by_name = {node.name: node for node in plan.nodes}
    assert (by_name["m4max"].batch_tokens, by_name["m4max"].best_batch) == (4096, {"256": 16})
    assert by_name["m3ultra"].batch_tokens == 2048  # 4 rows of 200 are less than the longest row
    assert "4 rows of 200 tokens" in by_name["m3ultra"].batch_source
    asked = WorkFacts(kinds=("loglik",), rows=1, cost=1.0, batch_tokens=1 << 20, longest_row_tokens=256)
    limited = plan_scoring([mac("mini", "Apple M4", 128)], model("qwen3-30b-a3b"), asked).nodes[0]
    assert limited.batch_tokens < 1 << 20
    assert limited.batch_source == "limited by memory; asked for was 1048576"


def test_no_model_plans_by_overhead_alone() -> None:
    plan = plan_scoring([cpu("a"), cpu("b")], no_model(), WorkFacts(kinds=("noop",), rows=1000, cost=1e5))
    assert plan.shares() == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}


def test_an_input_without_rows_takes_no_time() -> None:
    plan = plan_scoring([cpu("a")], small_model(), WorkFacts(kinds=("loglik",), rows=0, cost=0.0))
    assert (plan.expected_seconds, plan.rows_per_second) == (0.0, 0.0)


def test_heat_is_mentioned() -> None:
    plan = plan_scoring([mac("hot", "Apple M4", 32, thermal="heavy")], small_model(), WORK)
    assert any("thermal pressure 'heavy'" in line for line in plan.why)


def test_a_plan_survives_its_json() -> None:
    for plan in (
        plan_scoring([M4, M3], small_model(), WORK, {"m4max": measured(10, best_batch={"64": 8})}),
        plan_scoring([M4, M3], model("llama-3.1-405b"), WORK),
        plan_scoring(of(512, 768), model("llama-3.1-405b"), WORK),
    ):
        again = plan_from_json(orjson.loads(orjson.dumps(plan.to_json())))
        assert again == plan
        assert isinstance(again, Plan)


def test_a_damaged_plan_says_where() -> None:
    stored = plan_scoring([M4], small_model(), WORK).to_json()
    with pytest.raises(RealignError, match="version"):
        plan_from_json({**stored, "version": 7})
    with pytest.raises(RealignError, match="rows"):
        plan_from_json({**stored, "rows": "many"})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (14.2, "14 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


speeds = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=16)


@given(speeds)
def test_shares_sum_to_one_and_follow_speed(values: list[float]) -> None:
    nodes = [cpu(f"n{index}") for index in range(len(values))]
    calibrations = {node.name: measured(value) for node, value in zip(nodes, values, strict=True)}
    plan = plan_scoring(nodes, small_model(), WORK, calibrations)
    shares = list(plan.shares().values())
    assert sum(shares) == pytest.approx(1.0)
    for (one, slow), (other, fast) in zip(
        sorted(zip(shares, values, strict=True), key=lambda pair: pair[1]),
        sorted(zip(shares, values, strict=True), key=lambda pair: pair[1])[1:],
        strict=False,
    ):
        assert slow <= fast
        assert one <= other
    assert plan.expected_seconds is not None
    assert plan.fastest_alone_seconds is not None
    assert plan.equal_split_seconds is not None
    assert plan.expected_seconds <= plan.fastest_alone_seconds * (1 + 1e-9)
    assert plan.expected_seconds <= plan.equal_split_seconds * (1 + 1e-9)


@given(speeds, st.integers(0, 15), st.floats(1.0, 1000.0))
def test_a_faster_node_gets_more(values: list[float], which: int, factor: float) -> None:
    which %= len(values)
    nodes = [cpu(f"n{index}") for index in range(len(values))]
    before = {node.name: measured(value) for node, value in zip(nodes, values, strict=True)}
    after = {**before, nodes[which].name: measured(values[which] * factor)}
    slow = plan_scoring(nodes, small_model(), WORK, before).shares()
    fast = plan_scoring(nodes, small_model(), WORK, after).shares()
    assert fast[nodes[which].name] >= slow[nodes[which].name] - 1e-12


@given(st.lists(st.one_of(st.none(), st.floats(1.0, 1e6)), min_size=1, max_size=8))
def test_measured_and_prior_mix(values: list[float | None]) -> None:
    nodes = [cpu(f"n{index}", cores=1 + index) for index in range(len(values))]
    known = {node.name: measured(value) for node, value in zip(nodes, values, strict=True) if value is not None}
    plan = plan_scoring(nodes, small_model(), WORK, known)
    assert sum(plan.shares().values()) == pytest.approx(1.0)
    assert {node.name for node in plan.nodes if node.source == "measured"} == set(known)


def test_work_that_needs_the_whole_model_is_never_sharded() -> None:
    """Answers by a model that no node holds: refused by name, though a group would hold it; and if a group is asked."""
    large = model("llama-3.1-70b")
    nodes = [mac("one", "Apple M4 Max", 96), mac("two", "Apple M4 Max", 96), mac("three", "Apple M4 Max", 96)]
    assert plan_scoring(nodes, large, WORK).group is not None
    whole = replace(WORK, kinds=("generate",), whole_model_only="generate needs the whole model on a node")
    refused = plan_scoring(nodes, large, whole)
    assert refused.approach == "refused"
    assert "is not sharded: generate needs the whole model on a node" in (refused.refusal or "")
    asked = plan_scoring(nodes, small_model(), replace(whole, sharding="tensor"))
    assert "cannot be sharded as asked: generate needs the whole model" in (asked.refusal or "")


def test_a_reference_model_needs_room_beside_the_model() -> None:
    beside = replace(WORK, kinds=("kl",), beside_bytes=127 * GIB)
    plan = plan_scoring([M4, M3], small_model(), beside)
    assert [left.name for left in plan.left_out] == ["m4max"]
    assert "less 130.8 GiB of adapters and reference" in plan.left_out[0].reason
    assert plan.shares() == {"m3ultra": 1.0}
