"""The examples of docs/training_metrics.md do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training_metrics.documented import ROOT, run_examples


def test_the_examples_of_training_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REALIGN_HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    count, differed = run_examples("training_metrics.md")
    assert not differed, differed
    assert count > 25
