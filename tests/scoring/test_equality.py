"""Scores equal a plain one-row forward pass through the same model: every model type, batch size and kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realign_cluster.scoring.forward import Shape
from tests.scoring.making import make_scorer, score
from tests.scoring.reference import Reference

ROWS = [
    {"prompt": "Name a prime number.", "response": "Seven is a prime number, and so is eleven."},
    {"prompt": "Why?", "response": "Because."},
    {
        "prompt": "Node cedar-two has 64 GB of memory. It stands in the attic. Where does cedar-two stand? " * 4,
        "response": "Node cedar-two stands in the attic, as was said four times over. " * 6,
    },
    {"prompt": "Übersetze: water", "response": "Wasser, eau, agua, 水 🙂"},
    {"prompt": "List five nodes.", "response": "1. amber. 2. basalt. 3. cedar. 4. delta. 5. ember. " * 3},
]
FLOAT32 = 1e-3  # nats per token, the contract's bounds
SIXTEEN_BIT_OR_FEWER = 0.02
MODELS = ("tiny", "llama", "llama-tied", "qwen2", "qwen3", "mixtral", "qwen2_moe", "gemma2")

MakeFolder = Callable[..., Path]
MakeReference = Callable[..., Reference]


def assert_close(found: dict[str, Any], right: np.ndarray[Any, Any], bound: float) -> None:
    assert found["tokens"] == len(right)
    assert found["sum"] == pytest.approx(right.sum(), abs=bound * len(right))
    assert found["mean"] == pytest.approx(right.mean(), abs=bound)


@pytest.mark.parametrize("chat", ["chat", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_log_likelihood(name: str, chat: str, model_folder: MakeFolder, reference: MakeReference) -> None:
    found, _ = score(make_scorer(model_folder(name), "loglik", chat=chat), ROWS)
    for row, scores in zip(ROWS, found, strict=True):
        right = reference(name).completion(row["prompt"], row["response"], chat=chat == "chat")
        assert_close(scores["loglik"], right, FLOAT32 / 20)


@pytest.mark.parametrize(("name", "bits"), [("llama", 4), ("qwen3", 8), ("qwen2_moe", 4), ("llama", 16), ("qwen2", 16)])
def test_quantised_and_half_precision(name: str, bits: int, model_folder: MakeFolder, reference: MakeReference) -> None:
    folder = model_folder(name, bits)
    found, _ = score(make_scorer(folder, "loglik"), ROWS)
    for row, scores in zip(ROWS, found, strict=True):
        right = reference(name, bits).completion(row["prompt"], row["response"], chat=True)
        assert_close(scores["loglik"], right, SIXTEEN_BIT_OR_FEWER)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_every_batch_size(name: str, model_folder: MakeFolder, reference: MakeReference) -> None:
    scorer = make_scorer(model_folder(name), "loglik")
    rights = [reference(name).completion(row["prompt"], row["response"], chat=True) for row in ROWS]
    longest = max(len(row["prompt"]) + len(row["response"]) for row in ROWS)
    for batch in range(1, len(ROWS) + 1):
        scorer.forward.shape = Shape(batch_tokens=batch * longest, chunk=10_000, logit_rows=1_000)
        found, work = score(scorer, ROWS[:batch])
        assert work.shapes.total() == 1
        for scores, right in zip(found, rights, strict=False):
            assert_close(scores["loglik"], right, FLOAT32 / 20)


def test_a_recurrent_model(model_folder: MakeFolder, reference: MakeReference) -> None:
    """No key-value cache to rewind: prefixes are computed again, and the scores are the same."""
    scorer = make_scorer(model_folder("mamba"), "loglik", "preference", chat="chat")
    rows = [row | {"chosen": row["response"], "rejected": "No idea."} for row in ROWS[:3]]
    found, _ = score(scorer, rows)
    for row, scores in zip(rows, found, strict=True):
        right = reference("mamba").completion(row["prompt"], row["response"], chat=True)
        assert_close(scores["loglik"], right, FLOAT32)
        right = reference("mamba").completion(row["prompt"], "No idea.", chat=True)
        assert_close(scores["preference"]["rejected"], right, FLOAT32)


@pytest.mark.parametrize("chat", ["chat", "plain"])
@pytest.mark.parametrize("name", ["tiny", "qwen2"])
def test_ifd(name: str, chat: str, model_folder: MakeFolder, reference: MakeReference) -> None:
    found, _ = score(make_scorer(model_folder(name), "ifd", "ifd-ppl", "loglik", chat=chat), ROWS)
    for row, scores in zip(ROWS, found, strict=True):
        given = -reference(name).completion(row["prompt"], row["response"], chat=chat == "chat").mean()
        alone = -reference(name).alone(row["response"], chat=chat == "chat").mean()
        assert scores["ifd"]["nll_conditioned"] == pytest.approx(given, abs=1e-4)
        assert scores["ifd"]["nll_conditioned"] == -scores["loglik"]["mean"]
        assert scores["ifd"]["nll_alone"] == pytest.approx(alone, abs=1e-4)
        assert scores["ifd"]["value"] == pytest.approx(given / alone, rel=1e-4)
        assert scores["ifd-ppl"]["value"] == pytest.approx(np.exp(given - alone), rel=1e-3)
        assert scores["ifd"]["truncated"] is False


@pytest.mark.parametrize("name", ["tiny", "qwen3", "mixtral"])
def test_preference(name: str, model_folder: MakeFolder, reference: MakeReference) -> None:
    rows = [
        {"prompt": row["prompt"] * 3, "chosen": row["response"], "rejected": other["response"]}
        for row, other in zip(ROWS, ROWS[1:] + ROWS[:1], strict=True)
    ]
    found, _ = score(make_scorer(model_folder(name), "preference"), rows)
    for row, scores in zip(rows, found, strict=True):
        chosen = reference(name).completion(row["prompt"], row["chosen"], chat=True)
        rejected = reference(name).completion(row["prompt"], row["rejected"], chat=True)
        assert_close(scores["preference"]["chosen"], chosen, FLOAT32 / 20)
        assert_close(scores["preference"]["rejected"], rejected, FLOAT32 / 20)
        margin = chosen.sum() - rejected.sum()
        assert scores["preference"]["margin_sum"] == pytest.approx(margin, abs=1e-2)
        assert scores["preference"]["margin_mean"] == pytest.approx(chosen.mean() - rejected.mean(), abs=1e-4)


EVIDENCE = ["Node fjord-three has 128 GB.", "Its case is grey.", "Bela looks after it.", "It does tokenising."] * 6
CLAIMS = ("Node fjord-three has 128 GB.", "The case is {red}.", "Ada looks after it.", "It does tokenising, they say.")


@pytest.mark.parametrize("chat", ["chat", "plain"])
@pytest.mark.parametrize("labels", [("supported", "not_supported"), ("yes", "no", "yes, partly")])
def test_judge(chat: str, labels: tuple[str, ...], model_folder: MakeFolder, reference: MakeReference) -> None:
    template = "Read this.\n{evidence}\n\nClaim: {claim}\nLabels: {labels}\nAnswer: "
    scorer = make_scorer(model_folder("qwen3"), "judge", chat=chat, template=template, labels=labels)
    found, _ = score(scorer, [{"evidence": EVIDENCE, "claim": claim} for claim in CLAIMS])
    for claim, scores in zip(CLAIMS, found, strict=True):
        prompt = f"Read this.\n{chr(10).join(EVIDENCE)}\n\nClaim: {claim}\nLabels: {', '.join(labels)}\nAnswer: "
        right = reference("qwen3").label_probabilities(prompt, labels, chat=chat == "chat")
        assert scores["judge"]["probabilities"] == pytest.approx(right, abs=1e-3)
        assert sum(scores["judge"]["probabilities"].values()) == pytest.approx(1.0)
        assert scores["judge"]["label"] == max(right, key=right.__getitem__)


def test_a_model_that_cannot_be_split(model_folder: MakeFolder, reference: MakeReference) -> None:
    """Full logits at every position, from the model as it is."""
    scorer = make_scorer(model_folder("qwen3"), "loglik", "preference")
    assert scorer.forward.split.selective
    scorer.forward.split.selective = False
    rows = [row | {"chosen": row["response"], "rejected": "No idea."} for row in ROWS]
    found, _ = score(scorer, rows)
    for row, scores in zip(ROWS, found, strict=True):
        right = reference("qwen3").completion(row["prompt"], row["response"], chat=True)
        assert_close(scores["loglik"], right, FLOAT32 / 20)
        assert_close(scores["preference"]["chosen"], right, FLOAT32 / 20)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_computed_where_they_are_scored(name: str, model_folder: MakeFolder) -> None:
    assert make_scorer(model_folder(name), "loglik").forward.split.selective


def test_the_device_path_agrees_with_the_cpu_path(model_folder: MakeFolder) -> None:
    """Log-sum-exp by MLX, as on a GPU, against NumPy's; several pieces in flight."""
    rows = ROWS * 3
    numpy_path, _ = score(make_scorer(model_folder("llama"), "loglik", "ifd"), rows)
    mlx_path, _ = score(make_scorer(model_folder("llama"), "loglik", "ifd", on_cpu=False), rows)
    for left, right in zip(numpy_path, mlx_path, strict=True):
        assert left["loglik"]["sum"] == pytest.approx(right["loglik"]["sum"], abs=1e-3)
        assert left["ifd"]["value"] == pytest.approx(right["ifd"]["value"], abs=1e-5)
