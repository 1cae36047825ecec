"""What is wrong with the options of generation, adapters and references is said before anything is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from realign_cluster.cli.main import run as realign_command
from tests.fixtures.models import TINY_MODEL, make_adapter

GENERATE = ("--score", "generate")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`said(*options)`: what `realign curate` answers, which exits with 2 and leaves no run folder."""
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path / "home"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Why?", "response": "Because."}) + "\n")

    def curate(*options: str) -> str:
        arguments = ["curate", str(rows), "--out", str(tmp_path / "run"), "--model", str(TINY_MODEL), *options]
        code = realign_command([*arguments, "--hostfile", str(tmp_path / "no-hosts.json")])
        errors = capsys.readouterr().err
        assert code == 2, errors
        assert "fix:" in errors
        assert not (tmp_path / "run").exists()
        return errors

    return curate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--temperature", "-0.5"), "--temperature is -0.5, at least 0 is allowed"),
        (("--temperature", "nan"), "--temperature is nan"),
        (("--top-p", "0"), "--top-p is 0, above 0 and at most 1"),
        (("--top-p", "1.01"), "--top-p is 1.01, above 0 and at most 1"),
        (("--top-k", "-1"), "--top-k is -1, at least 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0, at least 1"),
        (("--samples", "0"), "--samples is 0, at least 1"),
        (("--seed", "-1"), "--seed is -1, at least 0"),
        (("--stop", ""), "--stop is an empty text"),
        (("--max-new-tokens", "2048"), "--max-new-tokens 2048 leaves no room for a prompt within --max-tokens 2048"),
        (("--adapter", "nowhere"), "--adapter: there is no adapter folder nowhere"),
        (("--reference-model", "nowhere"), "are for the kind kl only"),
    ],
)
def test_out_of_range(said, options: tuple[str, ...], message: str) -> None:
    assert message in said(*GENERATE, *options)


def test_options_of_another_kind(said) -> None:
    assert "--seed and --samples are for the kind generate only" in said("--score", "loglik", "--seed", "1")
    assert "compares a model with a reference, and both would be the same" in said("--score", "kl")
    errors = said("--score", "kl", "--reference-adapter", "nowhere")
    assert "--reference-adapter: there is no adapter folder nowhere" in errors


def test_folders_that_are_no_adapters(said, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter", TINY_MODEL)
    config, weights = folder / "adapter_config.json", folder / "adapters.safetensors"
    asked = (*GENERATE, "--adapter", str(folder))
    kept = config.read_text()
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[]", "does not hold an object"),
        (json.dumps({"fine_tune_type": "ia3"}), "has fine_tune_type 'ia3'"),
        (json.dumps({"r": 8, "lora_alpha": 16}), "lacks lora_parameters.rank"),
        (json.dumps({"lora_parameters": {"rank": 1, "scale": 1.0, "dropout": 0.0}}), "lacks num_layers"),
    ):
        config.write_text(text)
        assert message in said(*asked)
    config.write_text(kept)
    weights.write_bytes(b"not weights")
    assert "adapters.safetensors is not a safetensors file" in said(*asked)
    weights.unlink()
    assert f"{folder} has no adapters.safetensors" in said(*asked)
