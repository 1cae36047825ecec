"""What is there at the same time in a backward pass, by the way a model is spread. MLX's own peak: tests/training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from realign_cluster.domain.train_phases import BUCKET_BYTES, Held, Phase, phases_of

MIB = 1 << 20


def held(**changes: Any) -> Held:
    whole = ("whole_block", "whole_end", "block_gradients", "end_gradients", "largest", "called")
    nothing = dict.fromkeys((*whole, "copies", "adapted"), 0)
    sizes = {"kept": 40 * MIB, "block": 10 * MIB, "hidden": MIB, "logits": 0, "gradients": 5 * MIB}
    counts = {"tokens": 512, "blocks": 4, "in_flight": 2, "held_bytes": 4}
    flags = {"several": False, "logits_cast": False, "logits_capped": False, "first": True}
    return Held(**(nothing | sizes | counts | flags | changes))


def most(parallel: Any, asked: Held, *, fine_tune: Any = "full", checkpointed: bool = False) -> Phase:
    return max(phases_of(parallel, asked, fine_tune, checkpointed=checkpointed), key=lambda phase: phase.size)


def test_a_stage_holds_every_micro_batch_in_flight_and_what_one_block_takes_beside() -> None:
    assert most("pipeline", held()).size == (2 * 40 + 2 + 15) * MIB
    assert most("pipeline", held(first=False)).size == (2 * 40 + 2 + 2 + 15) * MIB  # what it has received as well
    # sums of the micro-batches before are there only if there were some when most are in flight
    assert most("pipeline", held(several=True)).size == (2 * 40 + 2 + 15 + 5) * MIB


def test_large_gradients_of_a_stage_are_there_twice_once_its_activations_are_gone() -> None:
    assert most("pipeline", held(gradients=100 * MIB)).size == (40 + 2 + 5 + 2 * 100) * MIB


def test_logits_of_the_last_stage_and_its_blocks_are_not_there_together() -> None:
    few, many = held(first=False, logits=4 * MIB), held(first=False, logits=40 * MIB)
    assert most("pipeline", few).size == (2 * 40 + 4 + 4 + 15) * MIB
    assert most("pipeline", many).size == (2 * 40 + 4 + 40 + 60) * MIB
    assert most("pipeline", held(logits=40 * MIB, logits_cast=True)).size > most("pipeline", many).size


def test_a_stage_with_nothing_to_train_only_goes_forward() -> None:
    frozen = held(kept=0, blocks=0, gradients=0)
    assert most("pipeline", frozen).size == (2 + 12) * MIB
    assert most("pipeline", frozen, checkpointed=True).size < (2 + 12) * MIB + 1


def test_a_cut_block_takes_more_beside_than_a_whole_one() -> None:
    whole, cut = most("single", held(in_flight=1)), most("tensor", held(in_flight=1))
    assert (whole.size, cut.size) == ((40 + 10) * MIB, (40 + 15) * MIB)


def test_gradients_of_a_whole_model_come_as_its_activations_go() -> None:
    large = held(in_flight=1, gradients=100 * MIB, logits=20 * MIB)
    assert most("single", large).size == (10 + 2 * 100) * MIB
    assert most("single", replace(large, several=True)).size == (10 + 2 * 100) * MIB
    small = held(in_flight=1, gradients=20 * MIB, logits=20 * MIB)
    assert most("single", small).size == (40 + 10 + 60) * MIB
    assert most("single", replace(small, several=True)).size == (40 + 20 + 10 + 60) * MIB


def test_a_shard_holds_one_whole_block_or_end_at_a_time() -> None:
    block = held(in_flight=1, whole_block=8 * MIB, block_gradients=4 * MIB)
    assert most("sharded", block).size == (40 + 2 + 5 + 8 + 4 + 23) * MIB
    assert most("sharded", block, fine_tune="lora").size == (40 + 2 + 5 + 8 + 4 + 27) * MIB
    head = held(in_flight=1, whole_block=8 * MIB, whole_end=30 * MIB, logits=10 * MIB)
    assert most("sharded", head).size == (40 + 2 + 30 + 3 * 10) * MIB  # sums are not there yet
    assert most("sharded", replace(head, several=True)).size == (40 + 2 + 5 + 30 + 3 * 10) * MIB
    assert most("sharded", replace(head, logits_cast=True)).size == (40 + 2 + 30 + 45) * MIB
    assert most("sharded", replace(head, logits_capped=True)).size == (40 + 2 + 30 + 5 * 10) * MIB


def test_what_a_block_keeps_as_copies_is_there_once() -> None:
    block = held(in_flight=1, whole_block=8 * MIB, copies=5 * MIB)
    assert most("sharded", block, fine_tune="dora").size == (40 + 2 + 5 + 8) * MIB + round(5 * 2.7 * MIB) + 5 * MIB
    assert most("pipeline", held(copies=5 * MIB)).size == (2 * 40 + 2) * MIB + round(5 * 1.5 * MIB)


def test_adapted_weights_are_there_beside_the_blocks() -> None:
    for parallel in ("single", "tensor", "pipeline", "sharded"):
        plain, adapted = (most(parallel, held(adapted=size, in_flight=1), fine_tune="dora") for size in (0, 3 * MIB))
        assert adapted.size - plain.size == 3 * MIB


def test_gradients_that_are_summed_over_ranks_are_there_several_times_a_bucket_at_a_time() -> None:
    small = held(in_flight=1, block=0, block_gradients=8 * MIB)
    assert most("sharded", small).size == (40 + 2 + 5 + 8 + 4 * 8) * MIB
    many = held(in_flight=1, block=0, block_gradients=800 * MIB)
    assert most("sharded", many).size == (40 + 2 + 5 + 800) * MIB + 4 * BUCKET_BYTES
    one = held(in_flight=1, block=0, end_gradients=800 * MIB, largest=800 * MIB)
    assert most("sharded", one).size == (40 + 2 + 800 + 2000) * MIB
