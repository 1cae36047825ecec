"""From token ids back to text: exactly what follows the prompt, and where a stop text begins in it.

Ids are decoded together with the end of their prompt, because decoders treat a beginning apart: they strip its space,
or join a word's piece to nothing. Works with any tokenizer that transformers loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

CONTEXT_TOKENS = 16  # of the prompt: more than a word, and than what is between two of them


class Decodes(Protocol):
    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...


class TextDecoder:
    def __init__(self, tokenizer: Decodes, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        # A token holds a byte of text at least, or nothing of it: then a stop text was seen before it came.
        self._window = max((len(text.encode()) for text in self._stop), default=0) + CONTEXT_TOKENS

    def stopping_at(self, stop: Sequence[str]) -> TextDecoder:
        return TextDecoder(self._tokenizer, stop)

    def text(self, prompt: Sequence[int], ids: Sequence[int]) -> str:
        """What `ids` say after `prompt`."""
        if not ids:
            return ""
        before = self._decode(prompt[-CONTEXT_TOKENS:])
        whole = self._decode([*prompt[-CONTEXT_TOKENS:], *ids])
        return whole[len(before) :] if whole.startswith(before) else self._decode(ids)

    def text_before_stop(self, prompt: Sequence[int], ids: Sequence[int]) -> str | None:
        """The text up to the first stop text in it; None while there is none. To be asked after every token."""
        if not self._stop:
            return None
        before = [*prompt[-CONTEXT_TOKENS:], *ids[: -self._window]]
        if not self._earliest(self.text(before, ids[-self._window :])):
            return None
        text = self.text(prompt, ids)
        found = self._earliest(text)
        return text[: found[0]] if found else None

    def _earliest(self, text: str) -> list[int]:
        return sorted(at for stop in self._stop if (at := text.find(stop)) >= 0)[:1]

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text
