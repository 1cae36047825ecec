"""Which way a model is trained on which nodes, from facts alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.memory import GIB, ModelFacts, model_facts
from realign_cluster.domain.plan import LeftOut
from realign_cluster.domain.plan_facts import NodeFacts, StaleCalibration
from realign_cluster.domain.prior import DeviceFacts
from realign_cluster.domain.report import Calibration
from realign_cluster.domain.train_links import Network, NoNetwork, asked_backend, network
from realign_cluster.domain.train_plan import TrainPlan, train_plan_from_json
from realign_cluster.domain.train_planner import plan_training
from realign_cluster.domain.train_work import LinkFacts, TrainWork
from realign_cluster.domain.training import AdapterSettings, TrainSettings
from realign_cluster.domain.world import WorldPlan

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"
FOUR_BITS = {"quantization": {"group_size": 64, "bits": 4}}
ONE_BILLION = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}


def config(name: str, **extra: object) -> dict[str, Any]:
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), **extra}


def facts(config: dict[str, Any], name: str = "model") -> ModelFacts:
    return model_facts(config, 0, name=name)


def mac(name: str, chip: str, gibibytes: int, **extra: object) -> NodeFacts:
    device = DeviceFacts(chip=chip, backend="metal")
    return NodeFacts(name=name, device=device, memory_bytes=gibibytes * GIB, **extra)  # type: ignore[arg-type]


def cpu(name: str, cores: int = 2) -> NodeFacts:
    device = DeviceFacts(chip="cpu", backend="cpu", cpu_cores=cores, blas="openblas")
    return NodeFacts(name=name, device=device, memory_bytes=16 * GIB, available_bytes=12 * GIB)


def work(tokens: float = 600, longest: int = 2048, **settings: Any) -> TrainWork:
    asked = TrainSettings(**({"steps": 100, "global_batch": 32} | settings))
    return TrainWork(settings=asked, rows=10_000, sequence_tokens=tokens, longest_tokens=longest, target_fraction=0.5)


def measured(cost_per_second: float) -> Calibration:
    return Calibration(
        measured_at="2026-11-20T10:00:00+00:00",
        mode="full",
        cost_per_second=cost_per_second,
        rows_per_second=1.0,
        spread=0.02,
        seconds=30.0,
    )


M4 = mac("m4max", "Apple M4 Max", 128)
M3 = mac("m3ultra", "Apple M3 Ultra", 512)
BOTH = [M4, M3]
SHORT = work(100, 256)
SMALL = ONE_BILLION | {"num_hidden_layers": 2, "vocab_size": 32000}
RDMA = [LinkFacts(one="m4max", other="m3ultra", rdma=True)]


def plan(nodes: list[NodeFacts], config: dict[str, Any], asked: TrainWork, **more: Any) -> TrainPlan:
    return plan_training(nodes, facts(config), asked, config=config, **more)


def step_of(plan: TrainPlan, parallel: str, *nodes: str) -> float:
    """Seconds of another way, which must be open."""
    (found,) = [way for way in plan.alternatives if way.parallel == parallel and set(way.nodes) == set(nodes)]
    assert found.step_seconds is not None, found.text
    return found.step_seconds


# --- what is worth changing ---


def test_a_cpu_that_would_compute_in_16_bits_is_named() -> None:
    (said,) = plan([cpu("alpha"), cpu("beta")], SMALL, SHORT, parallel="data").cautions
    assert said.startswith("alpha, beta would compute in bfloat16, as the model is")
    assert "--dtype float32" in said
    (quantised,) = plan([cpu("alpha")], SMALL | FOUR_BITS, SHORT).cautions
    assert quantised.startswith("alpha would compute in 16 bits")


@pytest.mark.parametrize(
    ("node", "dtype", "named"), [(cpu("alpha"), "bfloat16", {}), (M4, "auto", {}),
                                 (cpu("alpha"), "float32", {}), (cpu("alpha"), "auto", {"torch_dtype": "float32"})]
)  # fmt: skip
def test_nothing_is_said_where_it_is_wanted_or_fast(node: NodeFacts, dtype: str, named: dict[str, Any]) -> None:
    found = plan([node], SMALL | named, work(100, 256, dtype=dtype))
    assert found.approach == "single"
    assert found.cautions == ()


# --- which way ---


def test_adapters_are_trained_by_replicas_with_shares_by_speed() -> None:
    found = plan(BOTH, ONE_BILLION, work())
    assert found.approach == "data"
    assert found.shares() == {"m4max": pytest.approx(0.835, abs=0.005), "m3ultra": pytest.approx(0.165, abs=0.005)}
    assert found.world() == WorldPlan(
        parallel="data", backend="ring", nodes=("m4max", "m3ultra"), shares=tuple(found.shares().values())
    )
    assert found.step_seconds is not None
    assert found.step_seconds < step_of(found, "single", "m4max") < step_of(found, "single", "m3ultra")
    assert found.communication_seconds == pytest.approx(2 * 1 / 2 * 5_636_096 * 4 / 0.88e9 + 300e-6)
    assert found.expected_seconds == pytest.approx(100 * found.step_seconds)


def test_a_fast_node_alone_beats_two_with_a_slow_link_when_gradients_are_large() -> None:
    slow = plan(BOTH, ONE_BILLION, work(fine_tune="full"))
    assert (slow.approach, slow.world().nodes) == ("single", ("m4max",))
    assert slow.step_seconds is not None
    assert step_of(slow, "data", "m4max", "m3ultra") > slow.step_seconds
    assert any("replicas over m4max, m3ultra" in line and "of exchange" in line for line in slow.why)
    assert [out.name for out in slow.left_out] == ["m3ultra"]
    # with RDMA, or with more rows between two sums, the second machine pays
    assert plan(BOTH, ONE_BILLION, work(fine_tune="full"), links=RDMA).approach == "data"
    assert plan(BOTH, ONE_BILLION, work(fine_tune="full", global_batch=512)).approach == "data"


def test_what_is_simpler_is_taken_for_what_it_is() -> None:
    """A little faster does not pay for more that can fail; the plan does not call it the shortest then."""
    links = [LinkFacts(one="m3ultra", other="m4max", bytes_per_second=3.6e9, round_trip_seconds=1e-4)]
    found = plan(BOTH, ONE_BILLION, work(fine_tune="full", global_batch=32), links=links)
    assert found.approach == "single"
    assert found.step_seconds is not None
    faster = step_of(found, "data", "m4max", "m3ultra") / found.step_seconds
    assert 0.97 < faster < 1
    said = f"simpler than replicas over m4max, m3ultra, which would be only {1 - faster:.1%} faster"
    assert any(said in line for line in found.why)
    assert not any("the shortest step" in line for line in found.why)


def test_a_measured_link_decides_and_is_named() -> None:
    links = [LinkFacts(one="m3ultra", other="m4max", bytes_per_second=4e9, round_trip_seconds=1e-4)]
    fast = plan(BOTH, ONE_BILLION, work(fine_tune="full", global_batch=64), links=links)
    assert fast.approach == "data"
    assert "of 4.00 GB/s measured" in fast.communication_text
    slow = [LinkFacts(one="m3ultra", other="m4max", bytes_per_second=1e6, round_trip_seconds=0.1)]
    assert plan(BOTH, ONE_BILLION, work(), links=slow).approach == "single"


def test_measurements_go_before_the_users_figures() -> None:
    asked = work(fine_tune="full")
    prior = plan(BOTH, ONE_BILLION, asked)
    turned = plan(BOTH, ONE_BILLION, asked, training={"m4max": measured(1000.0), "m3ultra": measured(9000.0)})
    assert prior.world().nodes == ("m4max",)
    assert turned.world().nodes == ("m3ultra",)
    assert turned.nodes[0].source == "measured"
    assert turned.compute_seconds == pytest.approx(3 * asked.step_cost / 9000.0)  # a step is worth three forward passes
    assert turned.nodes[0].tokens_per_second == pytest.approx(9000 * 19_200 / asked.step_cost / 3)
    assert any("measurements go first: m3ultra, m4max" in line for line in turned.why)
    both = plan(BOTH, ONE_BILLION, asked, forward={"m4max": measured(1.0)}, training={"m4max": measured(1000.0)})
    assert both.nodes[0].cost_per_second == pytest.approx(1000.0)
    stale = {"m4max": StaleCalibration(calibration=measured(5.0), reason="it is 41 days old")}
    old = plan([M4], ONE_BILLION, asked, stale=stale)
    assert (old.nodes[0].source, "41 days old" in old.nodes[0].source_text) == ("stale", True)


def test_70b_goes_to_the_large_machine_as_the_matrix_has_it() -> None:
    found = plan([M4, M3], config("llama-3.1-70b"), work(), parallel="single")
    assert found.world().nodes == ("m3ultra",)
    assert any("the user's matrix: above 70B: M3 Ultra" in line for line in found.why)
    assert any("m4max alone: m4max: weights 135.4 GiB" in line and "short" in line for line in found.why)
    small = plan([M4, M3], config("qwen3-30b-a3b", **FOUR_BITS), work(), parallel="single")
    assert small.world().nodes == ("m4max",)


# --- models in parts ---


def test_405b_in_16_bits_is_refused_with_the_arithmetic_and_the_way_out() -> None:
    found = plan(BOTH, config("llama-3.1-405b"), work())
    assert found.approach == "refused"
    assert found.nodes == ()
    for part in (
        "405.9 billion parameters x 16 bits = 811.7 GB",
        "128 + 512 GiB of memory hold 456.0 GiB",
        "too little",
    ):
        assert part in found.refusal
    assert "4-bit weights, 228.3 GB" in found.fix
    assert "fits, pipeline over m4max, m3ultra (" in found.fix
    assert "more like m3ultra" in found.fix
    with pytest.raises(UsageError, match=r"811\.7 GB"):
        found.raise_if_refused()


def test_405b_in_4_bits_is_an_uneven_pipeline_with_layers_by_memory() -> None:
    found = plan(BOTH, config("llama-3.1-405b", **FOUR_BITS), work())
    assert found.approach == "pipeline"
    world = found.world()
    assert world.nodes == ("m4max", "m3ultra")
    (start, cut), (again, end) = world.layers
    assert (start, again, end) == (0, cut, 126)
    assert 40 <= cut <= 55  # what 96 GiB hold of 1.7 GiB a block; by speed the M4 Max would get most
    small, large = found.nodes
    assert small.memory_needed_bytes <= small.memory_limit_bytes
    assert small.memory_limit_bytes - small.memory_needed_bytes < 2 * small.memory_needed_bytes / cut  # it is full
    assert large.memory_needed_bytes <= large.memory_limit_bytes
    assert any(f"({cut} + {126 - cut} blocks" in line for line in found.why)
    assert world.layout == f"pipeline-{cut}-{126 - cut}"
    assert found.step_seconds is not None
    assert found.step_seconds < step_of(found, "single", "m3ultra")


def test_layers_follow_speed_where_memory_does_not_bind() -> None:
    found = plan(
        BOTH,
        config("llama-3.1-70b", **FOUR_BITS),
        work(adapter=AdapterSettings(layers=-1), grad_checkpoint=True, global_batch=64),
        parallel="pipeline",
        forward={"m4max": measured(3000.0), "m3ultra": measured(1000.0)},
    )
    held = {node.name: node.blocks[1] - node.blocks[0] for node in found.nodes if node.blocks is not None}
    assert held["m4max"] + held["m3ultra"] == 80
    assert held["m4max"] == pytest.approx(60, abs=2)
    assert found.compute_seconds < found.step_seconds  # type: ignore[operator]


def test_a_full_fine_tune_that_no_node_holds_goes_over_all_of_them() -> None:
    three = [mac(f"m{index}", "Apple M3 Ultra", 512) for index in range(3)]
    eight = {**ONE_BILLION, "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336}
    asked = work(fine_tune="full", grad_checkpoint=True, dtype="float32")
    assert plan(three[:1], eight, asked).approach == "single"
    big = {**eight, "num_hidden_layers": 100}
    assert plan(three[:1], big, asked).approach == "refused"
    found = plan(three, big, asked)
    assert found.approach in ("pipeline", "sharded", "tensor")
    assert len(found.nodes) == 3 if found.approach != "tensor" else len(found.nodes) == 2


def test_tensor_needs_heads_and_widths_that_divide() -> None:
    three = [mac(f"m{index}", "Apple M3 Ultra", 512) for index in range(3)]
    refused = plan(three, ONE_BILLION, work(), parallel="tensor")
    assert refused.world().size == 2  # 32 heads are not cut into three
    odd = {**ONE_BILLION, "num_attention_heads": 31, "num_key_value_heads": 31, "head_dim": 64}
    found = plan(three, odd, work(), parallel="tensor")
    assert found.approach == "refused"
    assert "num_attention_heads 31 is not divisible by 3 ranks" in found.refusal
    assert "--parallel auto: fits" in found.fix


@pytest.mark.parametrize("parallel", ["data", "tensor", "pipeline", "sharded"])
def test_a_way_that_is_asked_for_is_taken_with_all_nodes(parallel: Any) -> None:
    nodes = [mac(f"m{index}", "Apple M4 Max", 128) for index in range(4)]
    found = plan(nodes, ONE_BILLION, work(), parallel=parallel)
    assert found.approach == parallel
    assert len(found.nodes) == 4
    assert sum(node.share for node in found.nodes) == pytest.approx(1.0)
    assert any("as asked" in line for line in found.why)
    assert found.world().parts == (1 if parallel == "data" else 4)


# --- backends ---


def test_the_backend_is_rdma_where_the_hostfile_has_a_full_mesh() -> None:
    assert plan(BOTH, ONE_BILLION, work(), links=RDMA).backend == "jaccl"
    assert plan(BOTH, ONE_BILLION, work()).backend == "ring"
    assert plan(BOTH, ONE_BILLION, work(), links=RDMA, backend="ring").backend == "ring"
    over_mpi = plan(BOTH, ONE_BILLION, work(), links=RDMA, backend="mpi")
    assert over_mpi.backend == "mpi"
    assert any("recovery is promised" in line for line in over_mpi.why)


def test_a_hostfile_may_name_the_backend() -> None:
    assert [asked_backend("auto", named) for named in ("ring", "jaccl", "mpi")] == ["ring", "jaccl", "mpi"]
    assert [asked_backend("auto", named) for named in ("any", "", "nccl", "jaccl-ring")] == ["auto"] * 4
    assert asked_backend("mpi", "ring") == "mpi"


def test_jaccl_without_a_mesh_is_refused_with_the_fix() -> None:
    found = plan(BOTH, ONE_BILLION, work(), backend="jaccl", parallel="data")
    assert found.approach == "refused"
    assert "the hostfile names no device for m4max - m3ultra" in found.refusal
    assert "--backend ring" in found.fix
    alone = plan(BOTH, ONE_BILLION, work(), backend="jaccl")
    assert alone.approach == "single"
    assert "the hostfile names no device for m4max - m3ultra" in alone.left_out[0].reason
    nine = [mac(f"m{index}", "Apple M4 Max", 128) for index in range(9)]
    mesh = [LinkFacts(one=a.name, other=b.name, rdma=True) for a in nine for b in nine if a.name < b.name]
    assert isinstance(network(nine[:8], mesh, "auto"), Network)
    assert network(nine[:8], mesh, "auto").backend == "jaccl"  # type: ignore[union-attr]
    assert network(nine, mesh, "auto").backend == "ring"  # type: ignore[union-attr]
    too_many = network(nine, mesh, "jaccl")
    assert isinstance(too_many, NoNetwork)
    assert "at most 8" in too_many.reason


def test_the_ring_on_two_cpu_ranks_is_as_slow_as_it_was_measured() -> None:
    nodes = [cpu("one"), cpu("two")]
    found = network(nodes, [LinkFacts(one="one", other="two", loopback=True)], "auto")
    assert isinstance(found, Network)
    assert found.sum_seconds(16 << 20) == pytest.approx(0.029, rel=0.05)  # 29 ms for 16 MB


# --- bad input and few nodes ---


def test_a_global_batch_smaller_than_the_ranks_is_refused() -> None:
    found = plan(BOTH, ONE_BILLION, work(global_batch=1), parallel="data")
    assert found.approach == "refused"
    assert "a global batch of 1 rows is smaller than 2 ranks" in found.refusal
    assert "--global-batch 8" in found.fix
    assert "--parallel auto: fits, m4max alone" in found.fix
    assert plan(BOTH, ONE_BILLION, work(global_batch=1)).approach == "single"
    starved = plan(BOTH, ONE_BILLION, work(global_batch=3), parallel="data")
    assert "of 3 rows a step none would be left for m3ultra" in starved.refusal


def test_quantised_weights_are_not_fine_tuned_in_full() -> None:
    found = plan(BOTH, config("qwen3-30b-a3b", **FOUR_BITS), work(fine_tune="full"))
    assert found.approach == "refused"
    assert "no gradients" in found.refusal
    assert "--fine-tune lora" in found.fix


def test_no_nodes_are_refused_with_the_reasons_kept() -> None:
    found = plan([], ONE_BILLION, work(), left_out=[LeftOut(name="m4max", reason="not listening")])
    assert (found.approach, found.left_out[0].reason) == ("refused", "not listening")


def test_what_would_make_it_fit_is_planned_through() -> None:
    small = [mac("mini", "Apple M4", 16)]
    found = plan(small, ONE_BILLION, work(micro_batch_tokens=8192, adapter=AdapterSettings(layers=-1)))
    assert found.approach == "refused"
    assert "--micro-batch-tokens 2048: fits, mini alone" in found.fix or "--grad-checkpoint" in found.fix
    offered = found.fix.split("; or ")[0].split(":")[0]
    update: dict[str, Any] = {"micro_batch_tokens": 8192}
    if "--micro-batch-tokens 2048" in offered:
        update["micro_batch_tokens"] = 2048
    if "--grad-checkpoint" in offered:
        update["grad_checkpoint"] = True
    assert plan(small, ONE_BILLION, work(adapter=AdapterSettings(layers=-1), **update)).approach == "single"


def test_a_plan_for_those_that_are_left_is_the_same_function() -> None:
    asked = work(global_batch=64)
    nodes = [mac(f"m{index}", "Apple M4 Max", 128) for index in range(3)]
    three = plan(nodes, ONE_BILLION, asked, parallel="data")
    two = plan(nodes[:2], ONE_BILLION, asked, parallel="data")
    one = plan(nodes[:1], ONE_BILLION, asked, parallel="data")
    assert [found.world().size for found in (three, two, one)] == [3, 2, 1]
    assert one.approach == "single"
    assert {found.world().layout for found in (three, two, one)} == {"whole"}
    assert plan(nodes[:1], ONE_BILLION, asked, parallel="tensor").approach == "refused"


# --- preference methods ---


def test_pairs_cost_both_completions_and_the_reference_once() -> None:
    sft, dpo = work(), work(method="dpo")
    assert dpo.step_cost == 2 * sft.step_cost
    assert dpo.micro_batch(32).tokens == 4096  # one pair of the longest, though it is as much as was asked
    assert work(method="dpo", longest=4096).micro_batch(32).tokens == 8192
    one, pairs = plan([M4], ONE_BILLION, sft), plan([M4], ONE_BILLION, dpo)
    assert one.reference_seconds == 0
    forward = pairs.rows * dpo.row_cost / pairs.nodes[0].cost_per_second
    assert pairs.reference_seconds == pytest.approx(forward)
    assert pairs.expected_seconds == pytest.approx(100 * pairs.step_seconds + forward)  # type: ignore[operator]
    assert plan([M4], ONE_BILLION, work(method="orpo")).reference_seconds == 0


@pytest.mark.parametrize(
    ("truncate", "said"),
    [("refuse", "the run would not begin: a larger --max-tokens, or --truncate"), ("left", "cut on the left")],
)
def test_rows_that_are_too_long_are_said_before_a_run(truncate: str, said: str) -> None:
    found = plan(BOTH, ONE_BILLION, replace(work(truncate=truncate), too_long=3))
    assert any(
        line.startswith("3 sequences") and "longer than 2,048 tokens" in line and said in line for line in found.why
    )
    assert not any("longer than" in line for line in plan(BOTH, ONE_BILLION, work(truncate=truncate)).why)


def test_micro_batches_hold_the_longest_row_and_no_more_than_there_is() -> None:
    asked = work(longest=3000, micro_batch_tokens=1024)
    assert asked.padded_longest == 3008
    assert asked.micro_batch(32).tokens == 3008
    few = work(longest=100, micro_batch_tokens=4096, tokens=90)
    assert (few.micro_batch(2).tokens, few.micro_batch(2).several) == (256, False)
    assert few.micro_batch(512).several


# --- the plan itself ---


def test_packed_rows_make_attention_as_wide_as_their_line() -> None:
    """What it keeps grows with the square of that: a plan by the rows alone would fall far short."""
    short = {"tokens": 60, "longest": 100, "micro_batch_tokens": 4096}
    alone, packed = work(**short).micro_batch(32), work(packing=True, **short).micro_batch(32)
    assert (alone.tokens, alone.row_tokens) == (4096, 128)
    assert (packed.tokens, packed.row_tokens) == (4096, 2048)  # as much as --max-tokens allows
    assert work(packing=True, max_tokens=512, **short).micro_batch(32).row_tokens == 512
    assert work(packing=True, **short).micro_batch(3).row_tokens == 320  # all that a rank has
    assert work(packing=True, **{**short, "micro_batch_tokens": 64}).micro_batch(32).row_tokens == 128
    needs = [plan([M4], ONE_BILLION, work(packing=packing, **short)).nodes[0].memory_needed_bytes for packing in (0, 1)]
    assert needs[1] > needs[0] + 5 * GIB


def test_packed_rows_take_the_time_of_attention_over_their_line() -> None:
    short = {"tokens": 64, "longest": 100, "micro_batch_tokens": 4096}
    alone, packed = work(**short), work(packing=True, **short)
    assert alone.row_cost == 64 + 64 * 64 / 16384
    assert packed.row_cost == 64 + 64 * 2048 / 16384  # 32 rows of 64 tokens fill one line of 2048
    assert work(packing=True, max_tokens=512, **short).row_cost == 64 + 64 * 512 / 16384
    assert work(packing=True, global_batch=2, **short).row_cost == 64 + 64 * 128 / 16384  # all there is
    assert work(packing=True, global_batch=1, **{**short, "longest": 64}).row_cost == alone.row_cost
    seconds = [plan([M4], ONE_BILLION, each).step_seconds for each in (alone, packed)]
    assert seconds[1] / seconds[0] == pytest.approx(packed.row_cost / alone.row_cost, rel=0.02)  # type: ignore[operator]


def test_a_plan_survives_its_json() -> None:
    for found in (
        plan(BOTH, ONE_BILLION, work()),
        plan(BOTH, config("llama-3.1-405b", **FOUR_BITS), work()),
        plan(BOTH, config("llama-3.1-405b"), work()),
    ):
        again = train_plan_from_json(orjson.loads(orjson.dumps(found.to_json())))
        assert again == found
        if found.approach != "refused":
            assert again.world() == found.world()
    stored = plan([M4], ONE_BILLION, work()).to_json()
    with pytest.raises(RealignError, match="version"):
        train_plan_from_json({**stored, "version": 9})
    with pytest.raises(RealignError, match="rows"):
        train_plan_from_json({**stored, "rows": "many"})


def test_heat_estimates_and_missing_measurements_are_said() -> None:
    asked = TrainWork(
        settings=TrainSettings(steps=1, global_batch=4),
        rows=10,
        sequence_tokens=50,
        longest_tokens=64,
        estimated_from="the first rows",
    )
    why = "\n".join(plan([mac("hot", "Apple M4", 64, thermal="heavy")], ONE_BILLION, asked).why)
    for part in ("thermal pressure 'heavy'", "estimated from the first rows", "not measured with this model: hot"):
        assert part in why


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(1.0, 1e6), st.integers(16, 512)), min_size=1, max_size=6),
    st.sampled_from(["lora", "dora", "full"]),
    st.integers(1, 64),
    st.sampled_from(["auto", "data", "pipeline"]),
)
def test_plans_are_sound(machines: list[tuple[float, int]], fine_tune: Any, global_batch: int, parallel: Any) -> None:
    nodes = [mac(f"m{index}", "Apple M4 Max", memory) for index, (_, memory) in enumerate(machines)]
    speeds = {node.name: measured(speed) for node, (speed, _) in zip(nodes, machines, strict=True)}
    asked = work(fine_tune=fine_tune, global_batch=global_batch)
    found = plan(nodes, ONE_BILLION, asked, forward=speeds, parallel=parallel)
    if found.approach == "refused":
        assert found.refusal
        assert found.fix
        return
    world = found.world()
    assert sum(world.shares) == pytest.approx(1.0)
    assert len(set(world.nodes)) == world.size
    assert all(node.memory_needed_bytes <= node.memory_limit_bytes for node in found.nodes)
    if world.parallel == "pipeline":
        assert [start for start, _ in world.layers] == [0, *(end for _, end in world.layers)][:-1]
        assert world.layers[-1][1] == 16
    if parallel == "auto":
        # nothing that was weighed is shorter by more than what its being more complicated counts for
        others = [way.step_seconds for way in found.alternatives if way.step_seconds is not None]
        assert all(found.step_seconds <= other * 1.1 for other in others)  # type: ignore[operator]
