"""What scores should be, worked out another way: whole rows through mlx-lm's model one at a time, log-softmax in
float64 NumPy, token ids straight from transformers. Shares no code with realign_cluster.scoring.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.utils import load_model
from transformers import AutoTokenizer

Floats = npt.NDArray[np.float64]


class Reference:
    def __init__(self, folder: Path) -> None:
        self.model, _ = load_model(folder)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def token_logprobs(self, ids: Sequence[int]) -> Floats:
        """log p(ids[i] | ids[:i]) for i = 1..n-1, as (n - 1,) float64."""
        logits = np.array(self.model(mx.array([list(ids)]))[0].astype(mx.float32)).astype(np.float64)
        highest = logits.max(axis=-1, keepdims=True)
        logprobs = logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
        result: Floats = logprobs[np.arange(len(ids) - 1), list(ids[1:])]
        return result

    def text(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        assert isinstance(rendered, str)
        return rendered

    def ids(self, text: str, *, special: bool) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=special))

    def completion(self, prompt: str, response: str, *, chat: bool, limit: int | None = None) -> Floats:
        """Log-probabilities of the response's tokens after the prompt; `limit` keeps the last ids only."""
        if chat:
            before = self.text([{"role": "user", "content": prompt}], generate=True)
            ids, start = self.ids(before + response, special=False), len(self.ids(before, special=False))
        else:
            ids, before_ids = self.ids(prompt + response, special=True), self.ids(prompt, special=True)
            start = 0  # a token that straddles the border is the response's
            while start < len(before_ids) and before_ids[start] == ids[start]:
                start += 1
        if limit is not None and len(ids) > limit:
            start -= len(ids) - limit
            ids = ids[-limit:]
        return self.token_logprobs(ids)[max(start, 1) - 1 :]

    def alone(self, response: str, *, chat: bool) -> Floats:
        if chat:
            header = "<|begin|><|assistant|>\n"  # of the tiny model's template
            ids, start = self.ids(header + response, special=False), len(self.ids(header, special=False))
        else:
            ids, start = self.ids(response, special=True), 1
        return self.token_logprobs(ids)[start - 1 :]

    def label_probabilities(self, prompt: str, labels: Sequence[str], *, chat: bool) -> dict[str, float]:
        sums = np.array([self.completion(prompt, label, chat=chat).sum() for label in labels])
        weights = np.exp(sums - sums.max())
        return dict(zip(labels, (weights / weights.sum()).tolist(), strict=True))
