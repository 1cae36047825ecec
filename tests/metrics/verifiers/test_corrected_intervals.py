"""Intervals corrected for a judge's errors hold what people say of ExpertQA's claims as often as they promise."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from realign_cluster.metrics.verifiers.lexical import LexicalVerifier

pytestmark = [pytest.mark.data, pytest.mark.soak]
SCRIPT = Path(__file__).parents[3] / "benchmarks" / "verifier_quality.py"
RESAMPLES = 2000


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verifier_quality_of_a_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their annotations up there
    spec.loader.exec_module(module)
    folder = module.data_folder()
    if not (folder / "expertqa_rand_val.jsonl").is_file():
        pytest.skip(f"expertqa_rand_val.jsonl is not in {folder} (REALIGN_DATA names another folder)")
    return module


def test_they_cover_whatever_the_judge_is_worth(bench: ModuleType):
    pairs, complete, answers = bench.expertqa(bench.data_folder())
    scores = np.array([verdict.supported or 0.0 for verdict in LexicalVerifier().score(pairs)])
    human = np.array(complete, dtype=np.float64)
    coin = np.random.default_rng(0).integers(0, 2, len(human)).astype(np.float64)
    judges = [*((scores >= threshold).astype(np.float64) for threshold in bench.THRESHOLDS), coin]
    claims = [np.array([at]) for at in range(len(pairs))]
    whole = [np.flatnonzero(np.array(answers) == number) for number in sorted(set(answers))]
    by_claim = bench.coverage(judges, human, claims, RESAMPLES)
    by_answer = bench.coverage(judges, human, whole, RESAMPLES)
    for judge in range(len(judges)):
        assert by_claim[judge, "judge alone"][0] < 0.5  # what is corrected
        assert by_claim[judge, "prediction-powered, bounded"][0] >= 0.95
        assert by_claim[judge, "prediction-powered by draws"][0] >= 0.93
        assert by_answer[judge, "people alone (the labelled)"][0] < 0.9  # claims of one answer are alike
        assert by_answer[judge, "prediction-powered by draws"][0] >= 0.93
