"""The tiny model's folder: the same bytes again, loaded as any model, with every word of the knowledge base."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm import load

FOLDER = Path(__file__).parents[2] / "examples" / "knowledge_base"
sys.path.insert(0, str(FOLDER))

import make_model  # noqa: E402
import make_workflow  # noqa: E402

FEW = dict.fromkeys(make_workflow.ROWS, 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    make_model.write_model(out, seed=5)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    make_workflow.write_workflow("antihallucination", out, rows=FEW)
    return out / "data"


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(folder: Path, tmp_path: Path):
    for seed in (5, 6):
        make_model.write_model(tmp_path / str(seed), seed=seed)
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "5" / file.name).read_bytes(), file.name
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() != (tmp_path / "6" / weights).read_bytes()


def test_every_text_of_the_knowledge_base_goes_through_the_tokenizer_and_back(folder: Path, data: Path):
    _, tokenizer = load(str(folder))
    texts = [
        text
        for path in data.rglob("*.jsonl")
        for line in path.read_text().splitlines()[:200]
        for key, text in json.loads(line).items()
        if key in ("prompt", "completion", "claim", "evidence", "text", "answer")
    ]
    assert len(texts) > 2000
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids, text
        # Only the blank before a colon is the tokenizer's own.
        assert tokenizer.decode(ids).replace(" :", ":").strip() == text.strip()


def test_a_held_out_prompt_and_its_answer_fit_into_a_hundred_tokens(folder: Path, data: Path):
    _, tokenizer = load(str(folder))
    items = [json.loads(line) for line in (data / "sealed.jsonl").read_text().splitlines()]
    assert max(len(tokenizer.encode(item["prompt"])) for item in items) < 80


def test_the_primed_model_is_of_the_script_and_looks_up_what_it_has_read():
    primed = FOLDER / "primed-model"
    config = json.loads((primed / "config.json").read_text())
    assert config | {"torch_dtype": "float32"} == make_model.config()
    model, tokenizer = load(str(primed))
    ids = tokenizer.encode("amber galrik [2] geese hunt [1] oak doors floods the [2] geese hunt [1] oak")
    said = mx.argmax(model(mx.array([ids])), axis=-1)[0].tolist()
    assert tokenizer.decode(said[-5:]).split() == ["geese", "hunt", "[1]", "oak", "doors"]
