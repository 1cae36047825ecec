"""How many tokens a byte of this input is, by this model's own tokenizer: what unit costs are estimated with.

Reads tokenizer.json with the tokenizers library: no model, no MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from realign_cluster.coordinator.samples import text_bytes
from realign_cluster.domain.batching import NOOP_TOKENS_PER_BYTE
from realign_cluster.domain.job import Fields, roles_needed
from realign_cluster.domain.rows import MISSING, lookup

ENGLISH_TOKENS_PER_BYTE = 0.25  # where there is no tokenizer.json to ask, as with sentencepiece-only folders
MOST_BYTES = 1 << 20


def tokens_per_byte(folder: Path | None, rows: Sequence[bytes], kinds: Sequence[str], fields: Fields) -> float:
    """Tokens per UTF-8 byte over the fields that will be scored in `rows` (the input's first ones)."""
    texts = [text for raw in rows for text in _texts(raw, kinds, fields)]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if folder is None:
        return NOOP_TOKENS_PER_BYTE
    path = folder / "tokenizer.json"
    if not path.is_file() or not size:
        return ENGLISH_TOKENS_PER_BYTE
    from tokenizers import Tokenizer  # a native library that nothing else of the coordinator needs

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()  # some files ask for either; the worker takes every text as it is
    tokenizer.no_truncation()
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts, add_special_tokens=False))
    return tokens / size if tokens else ENGLISH_TOKENS_PER_BYTE


def _texts(raw: bytes, kinds: Sequence[str], fields: Fields) -> list[str]:
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return []
    if not isinstance(row, dict):
        return []
    found: list[str] = []
    for role in roles_needed(kinds):
        value = lookup(row, getattr(fields, role))
        if value is not MISSING and text_bytes(value) <= MOST_BYTES:
            found += _flat(value)
    return found


def _flat(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in _flat(item.get("content", "") if isinstance(item, dict) else item)]
    return []
