"""What a rank needs to train, from facts alone. Against MLX's own peak: tests/training/test_train_memory.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.memory import GIB, ModelFacts, gib, model_facts
from realign_cluster.domain.train_memory import WHOLE, MicroBatchShape, RankPart, TrainNeed, train_need
from realign_cluster.domain.train_shapes import trained, weight_bits
from realign_cluster.domain.training import AdapterSettings, OptimizerSettings, TrainSettings

CONFIGS = Path(__file__).parent.parent / "fixtures" / "configs"
BATCH = MicroBatchShape(tokens=4096, row_tokens=1024, targets=2048)


def model(name: str, **extra: object) -> ModelFacts:
    return model_facts({**json.loads((CONFIGS / f"{name}.json").read_text()), **extra}, 0, name=name)


def settings(**more: Any) -> TrainSettings:
    return TrainSettings(**({"steps": 1, "global_batch": 8, "adapter": AdapterSettings(layers=-1)} | more))


def need(facts: ModelFacts, part: RankPart = WHOLE, batch: MicroBatchShape = BATCH, **more: Any) -> TrainNeed:
    return train_need(facts, settings(**more), batch, part)


LLAMA = model("llama-3.1-70b")
FOUR_BITS = {"quantization": {"bits": 4, "group_size": 64}}


def test_adapters_of_70b_are_as_many_as_published() -> None:
    # rank 16 on every linear layer of Llama 3.1 70B: 207,093,760, as PEFT prints it
    found = trained(LLAMA, settings(adapter=AdapterSettings(rank=16, layers=-1)))
    assert found.total == 207_093_760
    named = settings(adapter=AdapterSettings(rank=8, layers=-1, keys=("self_attn.q_proj", "self_attn.v_proj")))
    assert trained(LLAMA, named).total == 80 * 8 * (8192 + 8192 + 8192 + 1024)


def test_only_the_last_blocks_are_adapted_and_keep_activations() -> None:
    few, all_of_them = need(LLAMA, adapter=AdapterSettings(layers=16)), need(LLAMA)
    assert trained(LLAMA, settings(adapter=AdapterSettings(layers=16))).lowest == 64
    assert few.moments * 5 == all_of_them.moments
    assert few.held.activations < all_of_them.held.activations / 4


def test_full_fine_tuning_counts_sixteen_bytes_of_state_a_parameter() -> None:
    found, count = need(LLAMA, fine_tune="full"), LLAMA.parameters.total
    assert found.masters == pytest.approx(4 * count, rel=1e-6)
    assert found.moments == pytest.approx(8 * count, rel=1e-6)
    assert found.held.gradients == pytest.approx(4 * count, rel=1e-6)
    assert found.kept_state == pytest.approx(12 * count, rel=1e-6)
    assert need(LLAMA, fine_tune="full", optimizer=OptimizerSettings(name="sgd")).moments == 0
    # float32 weights are their own masters
    assert need(LLAMA, fine_tune="full", dtype="float32").masters == 0


def test_an_update_makes_new_weights_and_clipped_gradients_and_works_on_the_largest_array() -> None:
    count, largest = LLAMA.parameters.total, 128256 * 8192
    adamw = need(LLAMA, fine_tune="full", dtype="float32")
    assert adamw.update == 4 * (2 * count + 3 * largest)
    unclipped = need(LLAMA, fine_tune="full", dtype="float32", optimizer=OptimizerSettings(clip_norm=None))
    assert adamw.update - unclipped.update == 4 * count
    plain = need(LLAMA, fine_tune="full", dtype="float32", optimizer=OptimizerSettings(name="sgd"))
    assert adamw.update - plain.update == 4 * 2 * largest
    # of 16 bits the model's own weights are new as well
    assert need(LLAMA, fine_tune="full").update - adamw.update == 2 * count


def test_the_last_stages_update_leaves_tied_embeddings_to_the_first() -> None:
    tied = model("llama-3.1-70b", tie_word_embeddings=True)
    part = RankPart(parallel="pipeline", ranks=2, blocks=(40, 80))
    own = need(tied, part, fine_tune="full", dtype="float32").update
    assert own == pytest.approx(4 * (2 * 40 * 855_654_400 + 3 * 8192 * 28672), rel=1e-4)


def test_dora_makes_a_blocks_weights_to_see_how_long_their_rows_are() -> None:
    attention, mlp = 2 * 8192 * 8192 + 2 * 8192 * 1024, 3 * 8192 * 28672
    assert need(LLAMA, fine_tune="dora").held.adapted == 4 * (attention + mlp)
    assert need(LLAMA, RankPart(parallel="tensor", ranks=4), fine_tune="dora").held.adapted == attention + mlp
    assert need(LLAMA).held.adapted == 0


def test_gemma_2_keeps_what_caps_its_scores_and_logits_and_norms_what_parts_give() -> None:
    gemma = model("llama-3.1-70b", model_type="gemma2")
    one_block = need(gemma).held.block - need(LLAMA).held.block
    assert one_block == 4096 * 2 * (64 * 1024 + 2 * 8192)
    assert need(gemma).held.all_logits == need(LLAMA).held.all_logits + need(LLAMA).held.logits
    fused = train_need(gemma, settings(), BATCH, backend="cuda")
    assert fused.held.block == need(gemma).held.block


def test_the_text_adds_up() -> None:
    for found in (need(LLAMA), need(LLAMA, fine_tune="full"), need(LLAMA, grad_checkpoint=True)):
        assert found.total == found.steady + max(found.backward, found.updating)
        assert found.text().endswith(f"= {gib(found.total)}")
        assert f"weights {gib(found.weights)}" in found.text()
    assert "masters" not in need(LLAMA).text()
    tiny = MicroBatchShape(tokens=32, row_tokens=32, targets=1)
    assert "update: gradients" in need(LLAMA, fine_tune="full", batch=tiny).text()


def test_checkpointing_keeps_one_hidden_state_a_block() -> None:
    plain, again = need(LLAMA), need(LLAMA, grad_checkpoint=True)
    assert again.held.activations == 4096 * 80 * 8192 * 2
    assert again.held.block == plain.held.block == plain.held.activations / 80
    assert [phase.size > 3 * again.held.block for phase in again.phases[:2]] == [True, True]
    assert again.total < plain.total / 1.5


def test_attention_scores_are_kept_where_there_is_no_fused_backward_pass() -> None:
    long = MicroBatchShape(tokens=8192, row_tokens=8192, targets=1)
    metal = train_need(LLAMA, settings(), long, backend="metal")
    assert metal == train_need(LLAMA, settings(), long, backend="cpu")
    fused = train_need(LLAMA, settings(), long, backend="cuda")
    scores = 80 * 64 * 8192 * 8192 * 2
    assert metal.held.activations - fused.held.activations == scores


def test_dropout_and_dora_and_small_types_keep_more() -> None:
    plain = need(LLAMA).held.activations
    assert need(LLAMA, adapter=AdapterSettings(layers=-1, dropout=0.1)).held.activations > plain
    assert need(LLAMA, fine_tune="dora").held.activations > plain
    # a 16-bit model keeps the inputs of float32 adapters in float32: more than half of what a float32 one keeps
    assert plain > need(LLAMA, dtype="float32").held.activations / 2


def test_quantised_weights_stay_as_they_are() -> None:
    quantised = model("llama-3.1-70b", **FOUR_BITS)
    assert weight_bits(quantised, settings()) == 4.5
    assert weight_bits(quantised, settings(dtype="float32")) == 5  # their scales are float32 then
    assert need(quantised).weights == pytest.approx(quantised.weights_bytes * 1.03)
    assert need(LLAMA, dtype="float32").weights == pytest.approx(2 * need(LLAMA).weights)


def test_tensor_parallel_cuts_blocks_but_not_the_ends() -> None:
    whole, half = need(LLAMA), need(LLAMA, RankPart(parallel="tensor", ranks=2))
    ends = 2 * 128256 * 8192 * 2 * 1.03
    assert half.weights == pytest.approx((whole.weights - ends) / 2 + ends, rel=1e-4)
    assert whole.held.activations / 2 < half.held.activations < whole.held.activations
    assert half.moments == whole.moments / 2
    assert half.held.logits == whole.held.logits


def test_fully_sharded_holds_its_part_and_one_gathered_block() -> None:
    whole, part = need(LLAMA), need(LLAMA, RankPart(parallel="sharded", ranks=4))
    assert part.weights == pytest.approx(whole.weights / 4, rel=1e-6)
    assert part.moments == pytest.approx(whole.moments / 4, rel=1e-6)
    assert part.held.whole_end > 2 * 128256 * 8192  # the embedding is the largest piece
    assert part.held.activations < whole.held.activations / 5


def test_a_pipelines_stages_add_up_to_the_model() -> None:
    cuts = ((0, 30), (30, 55), (55, 80))
    stages = [need(LLAMA, RankPart(parallel="pipeline", ranks=3, blocks=cut)) for cut in cuts]
    whole = need(LLAMA)
    assert sum(stage.weights for stage in stages) == pytest.approx(whole.weights, rel=1e-6)
    assert sum(stage.moments for stage in stages) == whole.moments
    assert [stage.held.logits > 0 for stage in stages] == [False, False, True]
    flying = need(LLAMA, RankPart(parallel="pipeline", ranks=3, blocks=cuts[0], in_flight=3))
    assert flying.held.activations > 2.8 * stages[0].held.activations
    frozen = need(LLAMA, RankPart(parallel="pipeline", ranks=3, blocks=cuts[0]), adapter=AdapterSettings(layers=16))
    assert (frozen.moments, frozen.held.gradients) == (0, 0)
    assert frozen.held.activations == 0


def test_tied_embeddings_are_at_both_ends_of_a_pipeline() -> None:
    tied = model("llama-3.1-70b", tie_word_embeddings=True)
    whole, matrix = need(tied).weights, 128256 * 8192 * 2 * 1.03
    stages = [
        need(tied, RankPart(parallel="pipeline", ranks=2, blocks=blocks)).weights for blocks in ((0, 40), (40, 80))
    ]
    assert sum(stages) == pytest.approx(whole + matrix, rel=1e-5)
    # the first stage's optimizer has them, the last one only sends their gradient
    first, last = (
        need(tied, RankPart(parallel="pipeline", ranks=2, blocks=blocks), fine_tune="full")
        for blocks in ((0, 40), (40, 80))
    )
    assert first.moments - last.moments == pytest.approx(8 * 128256 * 8192, rel=1e-4)
    assert last.held.gradients == pytest.approx(first.held.gradients, rel=1e-4)


def test_a_mixture_adapts_every_expert_but_keeps_only_those_a_token_met() -> None:
    mixture = model("mixtral-8x7b")
    found = trained(mixture, settings(adapter=AdapterSettings(rank=8, layers=-1)))
    expert = 8 * 8 * 3 * (4096 + 14336)
    attention = 8 * ((4096 + 4096) * 2 + (4096 + 1024) * 2)
    assert found.per_block == expert + attention + 8 * (4096 + 8)
    dense = model_facts(
        {**json.loads((CONFIGS / "mixtral-8x7b.json").read_text()), "num_local_experts": 0}, 0, name="d"
    )
    assert need(mixture).held.activations < 3 * need(dense).held.activations


def test_a_config_of_another_family_is_counted_by_its_bytes() -> None:
    other = model_facts({"model_type": "mamba", "n_layer": 64}, 5 * 10**9, name="other")
    assert need(other).weights == pytest.approx(5.15e9)
    assert need(other).held.activations == 0
    assert need(other, fine_tune="full").moments == pytest.approx(8 * 2.5e9)


@given(
    st.integers(1, 1 << 16),
    st.integers(1, 1 << 16),
    st.sampled_from(["single", "tensor", "sharded"]),
    st.booleans(),
    st.sampled_from(["lora", "dora", "full"]),
)
def test_need_grows_with_tokens_and_falls_with_ranks(
    one: int, other: int, parallel: Any, again: bool, fine_tune: str
) -> None:
    small, large = sorted((one, other))
    part = RankPart(parallel=parallel, ranks=2)

    def total(tokens: int, part: RankPart) -> int:
        batch = MicroBatchShape(tokens=tokens, row_tokens=64, targets=tokens)
        return need(LLAMA, part, batch, grad_checkpoint=again, fine_tune=fine_tune).total

    assert total(small, part) <= total(large, part)
    more = RankPart(parallel=parallel, ranks=4)
    assert total(small, more) <= total(small, part)


def test_checkpointing_and_adapters_never_need_more() -> None:
    for parallel in ("single", "tensor"):
        part = RankPart(parallel=parallel, ranks=2)  # type: ignore[arg-type]
        assert need(LLAMA, part, grad_checkpoint=True).total < need(LLAMA, part).total
        assert need(LLAMA, part).total < need(LLAMA, part, fine_tune="full").total
    assert need(LLAMA).total > 131 * GIB
