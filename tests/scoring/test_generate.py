"""Answers: greedy ones are what the model says a token at a time, drawn ones do not depend on what is near."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import orjson
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

from realign_cluster.coordinator.samples import make_canaries
from realign_cluster.domain.canary import CanaryVerdict, check_canaries
from realign_cluster.domain.job import Fields, Sampling
from realign_cluster.scoring import generate
from realign_cluster.scoring.model import load
from realign_cluster.scoring.model_session import ModelSession, make_scorer
from realign_cluster.scoring.scorer import Scorer
from tests.scoring.making import make_job, score
from tests.scoring.reference import Reference

PROMPTS = [
    "Name a prime number.",
    "Why?",
    "Node cedar-two has 64 GB of memory. It stands in the attic. Where does cedar-two stand? " * 3,
    "Übersetze: water",
    "Why?",
]
ROWS = [{"prompt": prompt} for prompt in PROMPTS]
MODELS = [
    ("tiny", None), ("llama", 4), ("qwen3", None), ("mixtral", None), ("gemma2", None), ("gemma3_text", None),
    ("mamba", None),
]  # fmt: skip


def generating(folder: Path, *, chat: str = "plain", reproducible: bool = False, **sampling: Any) -> Scorer:
    job = make_job(
        folder, "generate", chat=chat, sampling=Sampling(**sampling), reproducible=reproducible, batch_tokens=512
    )
    return make_scorer(job, load(folder, job))


def samples(found: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    return [scores["generate"]["samples"] for scores in found]


def greedy(reference: Reference, ids: list[int], count: int, ends: set[int]) -> tuple[list[int], float]:
    drawn: list[int] = []
    total = 0.0
    while len(drawn) < count:
        logits = np.array(reference.model(mx.array([ids + drawn]))[0, -1].astype(mx.float32)).astype(np.float64)
        token = int(logits.argmax())
        if token in ends:
            break
        drawn.append(token)
        total += float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return drawn, total


@pytest.mark.parametrize(("name", "bits"), MODELS)
def test_greedy_answers_are_the_models(
    name: str, bits: int | None, model_folder: Callable[..., Path], reference: Callable[..., Reference]
) -> None:
    folder, peer = model_folder(name, bits), reference(name, bits)
    found, _ = score(generating(folder, temperature=0, max_new_tokens=8), ROWS)
    for row, (sample,) in zip(ROWS, samples(found), strict=True):
        ids = peer.ids(row["prompt"], special=True)
        drawn, total = greedy(peer, ids, 8, {peer.tokenizer.eos_token_id})
        assert sample["tokens"] == len(drawn)
        assert sample["text"] == peer.tokenizer.decode(ids + drawn)[len(peer.tokenizer.decode(ids)) :]
        assert sample["logprob_sum"] == pytest.approx(total, abs=0.02 * max(len(drawn), 1))
        assert sample["finish"] == ("length" if len(drawn) == 8 else "stop")


@pytest.mark.parametrize("reproducible", [False, True])
def test_a_text_does_not_depend_on_what_is_near(tiny_model: Path, *, reproducible: bool) -> None:
    scorer = generating(
        tiny_model, chat="chat", reproducible=reproducible, temperature=0.8, top_p=0.95, samples=3, max_new_tokens=12
    )
    together, _ = score(scorer, ROWS)
    alone = [score(scorer, [row])[0][0] for row in reversed(ROWS)][::-1]
    assert [[item["text"] for item in row] for row in samples(together)] == [
        [item["text"] for item in row] for row in samples(alone)
    ]
    if reproducible:
        assert together == alone
    assert any(len({item["text"] for item in row}) == 3 for row in samples(together))


def test_equal_prompts_of_different_rows_are_answered_apart(tiny_model: Path) -> None:
    raws = [orjson.dumps(row) for row in (ROWS[1], ROWS[1])]
    scorer = generating(tiny_model, max_new_tokens=12)
    payload, work = scorer.compute(scorer.prepare(raws, [bytes(16), bytes(15) + b"\1"]))
    one, other = (orjson.loads(line)["generate"] for line in payload.split(b"\n"))
    assert one["samples"] != other["samples"]
    assert one["seed"] == Sampling().row_seed(bytes(16))
    again = orjson.loads(scorer.compute(scorer.prepare(raws[:1], [bytes(15) + b"\1"]))[0])["generate"]
    assert [item["text"] for item in again["samples"]] == [item["text"] for item in other["samples"]]
    assert max(rows for rows, _ in work.shapes) == 1  # one prefill for both


def test_on_a_device_that_goes_on_meanwhile(tiny_model: Path) -> None:
    """The loop of GPUs, which is a token ahead of what was looked at, says the same."""
    options: dict[str, Any] = {"temperature": 0.7, "samples": 2, "max_new_tokens": 16, "stop": (".",)}
    ahead, step = generating(tiny_model, **options), generating(tiny_model, **options)
    assert ahead.generator is not None
    ahead.generator._on_cpu = False
    one, other = (samples(score(each, ROWS)[0]) for each in (ahead, step))
    assert [[item["text"] for item in row] for row in one] == [[item["text"] for item in row] for row in other]


def test_a_text_ends_before_the_first_stop_text(tiny_model: Path) -> None:
    whole, _ = score(generating(tiny_model, temperature=0, max_new_tokens=24), ROWS)
    for row, (sample,) in zip(ROWS, samples(whole), strict=True):
        text = sample["text"]
        stop = text[4:9]  # begins and ends within words
        (cut,), _ = score(generating(tiny_model, temperature=0, max_new_tokens=24, stop=(stop, "\0")), [row])
        (ended,) = cut["generate"]["samples"]
        assert ended["finish"] == "stop"
        assert ended["text"] == text[: text.index(stop)]
        assert 0 < ended["tokens"] <= sample["tokens"]


def test_a_prompt_gives_way_to_its_answer(tiny_model: Path) -> None:
    job = make_job(
        tiny_model, "generate", chat="plain", max_tokens=40, sampling=Sampling(temperature=0, max_new_tokens=8)
    )
    found, _ = score(make_scorer(job, load(tiny_model, job)), ROWS)
    assert [scores["generate"]["truncated"] for scores in found] == [False, False, True, False, False]
    refusing = job.model_copy(update={"truncate": "refuse"})
    found, _ = score(make_scorer(refusing, load(tiny_model, refusing)), ROWS)
    assert found[2]["error"]["code"] == "too-long"
    assert found[0]["generate"]["samples"]


def test_what_is_drawn_goes_with_other_kinds(tiny_model: Path) -> None:
    """The log-likelihood of an answer, scored as a response, is what it was drawn with."""
    row = {"prompt": "Question: why?\nAnswer:", "response": " Because."}
    job = make_job(tiny_model, "loglik", "generate", chat="plain", sampling=Sampling(temperature=0, max_new_tokens=6))
    scorer = make_scorer(job, load(tiny_model, job))
    (found,), _ = score(scorer, [row])
    assert list(found) == ["loglik", "generate"]
    (sample,) = found["generate"]["samples"]
    (scored,), _ = score(scorer, [{**row, "response": sample["text"]}])
    assert scored["loglik"]["tokens"] == sample["tokens"]
    assert scored["loglik"]["sum"] == pytest.approx(sample["logprob_sum"], abs=1e-3)


@pytest.mark.parametrize("name", ["tiny", "gemma3_text", "mamba"])
def test_a_node_that_draws_wrongly_is_found_at_join(
    name: str, model_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its canaries, read and drawn, agree; not so where a recurrent model is given padding."""
    folder = model_folder(name)
    canaries = make_canaries(("generate",), Fields())
    job = make_job(folder, "generate", chat="plain", canaries=canaries, sampling=Sampling(max_new_tokens=4))

    def verdict() -> CanaryVerdict:
        session = ModelSession(job, load(folder, job), measure="none", samples=(), phase=lambda *_: None)
        return check_canaries(session.report, node="alpha", expected=len(canaries))

    assert verdict().trusted, verdict().problems
    monkeypatch.setattr(generate, "TAKE_PADDING", (KVCache, RotatingKVCache, ArraysCache))
    assert verdict().trusted == (name != "mamba")
