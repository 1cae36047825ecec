"""From a training row to token ids and the spans that are learned: as mlx-lm's datasets make them, but by token id.

An answer is learned with what the template ends it with, or with the end token where there is no template. Spans come
from token ids, never from character counts. Must not know files, batches or MLX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.training import TrainJob
from realign_cluster.domain.training_rows import Form
from realign_cluster.scoring.encode import (
    Conversation,
    Message,
    Scored,
    Span,
    TextEncoder,
    Tokenizer,
    as_messages,
    as_text,
    common_prefix,
)
from realign_cluster.scoring.errors import RowRefused


class RowTooLong(Exception):
    """A sequence of `tokens`, more than the job allows, where the job does not cut."""

    def __init__(self, tokens: int) -> None:
        super().__init__(f"{tokens:,} tokens")
        self.tokens = tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedRow:
    """One sequence or, of a pair, chosen and rejected. `prompt_tokens`: how many ids of the first one come before
    anything is answered.
    """

    sequences: tuple[Scored, ...]
    prompt_tokens: int


class RowEncoder(TextEncoder):
    """Encodes canonical rows of one form for one job.

    Raises UsageError for a form that the tokenizer cannot write.
    """

    def __init__(self, tokenizer: Tokenizer, job: TrainJob, form: Form) -> None:
        super().__init__(tokenizer, chat=job.chat, max_tokens=job.max_tokens, truncate=job.truncate)
        if form == "chat" and not self.chat:
            why = "the job says plain" if job.chat == "plain" else f"the tokenizer of {job.model.name} has none"
            raise UsageError(
                f"rows of messages need a chat template, and {why}",
                "a model with a chat template, or data of prompt and completion, or of text",
            )
        end = getattr(tokenizer, "eos_token_id", None)
        self._end = [end] if isinstance(end, int) else []
        self._form = form
        self._mask_prompt = job.mask_prompt or job.preference

    def encode_row(self, row: Mapping[str, Any]) -> EncodedRow:
        """Raises RowTooLong, or RowRefused where the chat template does not take the row."""
        match self._form:
            case "chat":
                sequences = [self._answers(row["messages"], 0)]
            case "completions":
                sequences = [self._answer(row["prompt"], row["completion"])]
            case "preference":
                sequences = [self._answer(row["prompt"], row[side]) for side in ("chosen", "rejected")]
            case "text":
                sequences = [self._ended([*self._start, *self._encode(row["text"])], 1)]
        if self.truncate == "refuse" and (longest := max(len(ids) for ids, _ in sequences)) > self.max_tokens:
            raise RowTooLong(longest)
        fitted = [self.fit(ids, spans) for ids, spans in sequences]
        first = fitted[0]
        prompt = first.spans[0][0] if first.spans else len(first.ids)
        if not self._mask_prompt:  # every token that has one before it
            fitted = [replace(each, spans=((1, len(each.ids)),) if len(each.ids) > 1 else ()) for each in fitted]
        return EncodedRow(sequences=tuple(fitted), prompt_tokens=prompt)

    def _answer(self, prompt: Conversation, answer: Conversation) -> tuple[list[int], list[Span]]:
        if self.chat:
            before = as_messages(prompt, "user")
            return self._answers([*before, *as_messages(answer, "assistant")], len(before))
        text, whole = as_text(prompt), as_text(prompt) + as_text(answer)
        ids = [*self._start, *self._encode(whole)]
        return self._ended(ids, common_prefix([*self._start, *self._encode(text)], ids))

    def _ended(self, ids: list[int], start: int) -> tuple[list[int], list[Span]]:
        if ids[-1:] != self._end:
            ids += self._end
        return ids, [(start, len(ids))]

    def _answers(self, messages: list[Message], first: int) -> tuple[list[int], list[Span]]:
        """A whole conversation; learned are the assistant's messages from number `first` on."""
        text = self._render(messages, answer=False)
        ids = self._encode(text)
        spans = []
        for at in range(first, len(messages)):
            if messages[at]["role"] != "assistant":
                continue
            header = self._render(messages[:at], answer=True)
            last = at == len(messages) - 1
            end = len(ids) if last else common_prefix(self._encode(self._until(messages, at, header, text)), ids)
            spans.append((common_prefix(self._encode(header), ids), end))
        return ids, spans

    def _until(self, messages: list[Message], at: int, header: str, text: str) -> str:
        """The beginning of `text` that ends with message `at` and what the template puts after it."""
        closed = self._render(messages[: at + 1], answer=False)
        if text.startswith(closed):
            return closed
        # some templates write the last answer in another way than earlier ones, with an empty thought before it
        content = messages[at]["content"].strip()
        written = f"{header}{content}{closed.rpartition(content)[2]}"
        if text.startswith(written):
            return written
        raise RowRefused(
            "template",
            f"the chat template writes message {at} in another way once the conversation goes on:"
            " where that answer ends cannot be told",
        )
