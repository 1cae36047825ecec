from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from tokenizers import Tokenizer

from realign_cluster.coordinator.tokens import tokens_per_byte
from realign_cluster.domain.job import Fields
from tests.fixtures.models import TINY_MODEL

ROWS = [orjson.dumps({"prompt": "Why?", "response": "Because it is so. " * count}) for count in (1, 40)]


def test_the_tokenizer_s_own_padding_and_truncation_do_not_count(tmp_path: Path) -> None:
    right = tokens_per_byte(TINY_MODEL, ROWS, ("loglik",), Fields())
    tokenizer = Tokenizer.from_file(str(TINY_MODEL / "tokenizer.json"))
    tokenizer.enable_padding(length=500)
    tokenizer.enable_truncation(16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert 0.1 < right < 1.0
    assert tokens_per_byte(tmp_path, ROWS, ("loglik",), Fields()) == pytest.approx(right)
