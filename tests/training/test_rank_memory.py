"""What each rank of a model in parts holds at most, as rank processes measured it: less than the whole on one rank.

Printed beside it is the plan's arithmetic, which is checked for whole models only (test_train_memory.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from realign_cluster.domain.memory import model_facts
from realign_cluster.domain.pipeline_schedule import in_flight
from realign_cluster.domain.rank_report import Ended, StepDone
from realign_cluster.domain.train_memory import MicroBatchShape, RankPart, train_need
from realign_cluster.domain.training import FineTune, TrainSettings
from realign_cluster.domain.world import WorldPlan
from tests.fixtures import models
from tests.fixtures.models import COMMON, make_model
from tests.training.rank_driver import Crew, prepared_job, single

NODES = ("alpha", "beta")
LAYERS = ((0, 3), (3, 8))
WORLDS = {
    "tensor": WorldPlan(parallel="tensor", nodes=NODES, shares=(0.5, 0.5)),
    "pipeline": WorldPlan(parallel="pipeline", nodes=NODES, shares=(0.4, 0.6), layers=LAYERS),
    "sharded": WorldPlan(parallel="sharded", nodes=NODES, shares=(0.5, 0.5)),
}
CONFIG = COMMON | {
    "model_type": "llama",
    "tie_word_embeddings": False,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 8,
}
SETTINGS = {"steps": 3, "global_batch": 8, "micro_batch_tokens": 1024, "snapshot_every": 1, "adapter": {"layers": -1}}
SEQUENCE = 256  # padded tokens of every row
TEXT = "the ledger knows what was done before and nothing is lost when a node stops"

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.CONFIGS, "larger", CONFIG)
        return make_model(tmp_path_factory.mktemp("model"), "larger")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    words = TEXT.split()
    with path.open("w") as file:
        for row in range(16):
            completion = " ".join(words[(row + at) % len(words)] for at in range(150))
            file.write(json.dumps({"prompt": f"what is said in row {row}", "completion": completion}) + "\n")
    return path


def peaks(folder: Path, rows: Path, model: Path, world: WorldPlan, kind: FineTune) -> list[tuple[int, int, int]]:
    """Of each rank: the most bytes that MLX ever held, from loading to the end; padded tokens and targets a step."""
    job = prepared_job(folder, rows, model=model, fine_tune=kind, **SETTINGS)
    with Crew(folder, job, world, model=model) as crew:
        crew.go()
        ends: list[Ended] = crew.finish()
        done = [rank.all(StepDone)[-1] for rank in crew.ranks]
        return [
            (end.peak_bytes, step.own_padded, round(step.metrics["tokens"] * step.own_tokens / step.tokens))
            for end, step in zip(ends, done, strict=True)
        ]


def flying(rank: int) -> int:
    return in_flight(
        rank, stages=len(LAYERS), micro_batches=SETTINGS["global_batch"] * SEQUENCE // SETTINGS["micro_batch_tokens"]
    )


def parts_of(world: WorldPlan) -> list[RankPart]:
    if world.parallel == "pipeline":
        return [
            RankPart(parallel="pipeline", ranks=world.size, blocks=blocks, in_flight=flying(rank))
            for rank, blocks in enumerate(world.layers)
        ]
    return [RankPart(parallel=world.parallel, ranks=world.size)] * world.size


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("parallel", WORLDS)
def test_a_rank_holds_less_than_the_whole(
    tmp_path: Path, rows: Path, model: Path, parallel: str, kind: FineTune
) -> None:
    [(whole, _, _)] = peaks(tmp_path / "whole", rows, model, single(), kind)
    world = WORLDS[parallel]
    facts = model_facts(CONFIG | {"torch_dtype": "float32"}, 0, name="made")
    settings = TrainSettings(fine_tune=kind, **SETTINGS)
    found = peaks(tmp_path / "parts", rows, model, world, kind)
    for (peak, padded, targets), part in zip(found, parts_of(world), strict=True):
        batches = max(1, round(padded / SETTINGS["micro_batch_tokens"]))
        batch = MicroBatchShape(
            tokens=padded // batches, row_tokens=SEQUENCE, targets=targets // batches, several=batches > 1
        )
        need = train_need(facts, settings, batch, part, backend="cpu")
        planned = need.total - need.process
        print(f"{parallel}, {kind}: {peak >> 10} KiB of {whole >> 10}, planned {planned / peak:.3f}: {need.text()}")
        assert peak < whole
