"""From texts to token ids with the spans that are scored: chat or plain, special tokens, truncation.

Spans come from token ids, never from character counts: a span begins where the ids of prompt and answer together
first differ from the ids of the prompt. Must not know score kinds, rows or MLX; it works with any tokenizer that
transformers loads.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from realign_cluster.domain.job import Chat, Truncate
from realign_cluster.scoring.errors import RowRefused

Message = dict[str, str]
Conversation = str | list[Message]
Span = tuple[int, int]

EMPTY_RESPONSE: Final = "empty response"
TRUNCATED_AWAY: Final = "nothing of the response is left within max_tokens"
NO_CONTEXT: Final = "nothing before the response to predict it from"
TEMPLATE_DATE: Final = datetime.datetime(2024, 7, 26)  # what Llama's templates write where they are given none


class Tokenizer(Protocol):
    """What is used of transformers' tokenizers (and of mlx-lm's wrapper around them, which knows what ends a text)."""

    @property
    def eos_token_ids(self) -> Iterable[int]: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...
    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]: ...
    def apply_chat_template(
        self, messages: list[Message], tokenize: bool, add_generation_prompt: bool, **options: Any
    ) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One sequence and what is scored of it: for each token i of `spans`, log p(ids[i] | ids[:i]).

    `spans` are half-open, ascending, and begin at 1 or later: a token with nothing before it has no probability.
    `reason` says why nothing is scored, when nothing is.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    truncated: bool = False
    reason: str | None = None

    @property
    def tokens(self) -> int:
        return sum(end - start for start, end in self.spans)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    shared = min(len(left), len(right))
    if left[:shared] == right[:shared]:
        return shared
    low, high = 0, shared  # the first `low` agree, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low


class TextEncoder:
    """Turns the fields of a row into `Scored` sequences for one model and job.

    `chat` "auto" means chat where the tokenizer has a chat template. `max_tokens` bounds a whole sequence, special
    tokens included.
    """

    def __init__(self, tokenizer: Tokenizer, *, chat: Chat, max_tokens: int, truncate: Truncate) -> None:
        self._tokenizer = tokenizer
        self.chat = has_chat_template(tokenizer) if chat == "auto" else chat == "chat"
        self.max_tokens = max_tokens
        self.truncate = truncate
        self._encode = _plain_encoder(tokenizer)
        self._template_options = _template_options(tokenizer)
        self._start = _ids_added_at_the_start(tokenizer)
        self._last: tuple[Conversation, Conversation, Scored] | None = None  # loglik and ifd ask for the same one

    def completion(self, prompt: Conversation, response: Conversation) -> Scored:
        """Prompt and response as one sequence, the response's tokens scored."""
        if self._last is None or self._last[0] is not prompt or self._last[1] is not response:
            encoded = self._chat_completion if self.chat else self._plain_completion
            self._last = (prompt, response, self.fit(*encoded(prompt, response)))
        return self._last[2]

    def alone(self, prompt: Conversation, response: Conversation, conditioned: Scored) -> Scored:
        """The response without its prompt: the response header (chat) or the start token (plain) is context, not
        scored.

        Where `conditioned` was truncated, as many of the same response tokens are scored here.
        """
        if self.chat:
            messages, answers = as_messages(prompt, "user"), as_messages(response, "assistant")
            context = self._encode(self._header(messages))
            text = self._header(messages) + "\n".join(
                answer["content"] for answer in answers if answer["role"] == "assistant"
            )
            ids = self._encode(text)
        else:
            context = list(self._start)
            ids = [*context, *self._encode(as_text(response))]
        start = common_prefix(context, ids)
        if conditioned.truncated and conditioned.tokens:
            if self.truncate == "right":
                ids = ids[: start + conditioned.tokens]
            else:
                ids = ids[-self.max_tokens :]
                start = max(len(ids) - conditioned.tokens, 0)
        return self.fit(ids, [(start, len(ids))])

    def fit(self, ids: list[int], spans: list[Span]) -> Scored:
        """Cut to `max_tokens` on the side that the job names. Raises RowRefused("too-long") if it says refuse."""
        excess = len(ids) - self.max_tokens
        scored = sum(end - start for start, end in spans)
        reason = None if scored else EMPTY_RESPONSE
        if excess > 0:
            if self.truncate == "refuse":
                raise RowRefused("too-long", f"{len(ids)} tokens, more than the limit of {self.max_tokens}")
            if self.truncate == "left":
                ids = ids[excess:]
                spans = [(start - excess, end - excess) for start, end in spans]
            else:
                ids = ids[: self.max_tokens]
        inside = [(max(start, 1), min(end, len(ids))) for start, end in spans]
        kept = tuple((start, end) for start, end in inside if start < end)
        if not kept and reason is None:
            reason = TRUNCATED_AWAY if excess > 0 else NO_CONTEXT
        return Scored(ids=tuple(ids), spans=kept, truncated=excess > 0, reason=reason)

    def prompt(self, prompt: Conversation, new_tokens: int) -> tuple[tuple[int, ...], bool]:
        """(ids that an answer of up to `new_tokens` follows, whether they were cut to leave it room).

        Encoded as `completion` does it. Raises RowRefused("too-long") if the job says refuse.
        """
        if self.chat:
            ids = self._encode(self._render(as_messages(prompt, "user"), answer=True))
        else:
            ids = [*self._start, *self._encode(as_text(prompt))]
        room = self.max_tokens - new_tokens
        if len(ids) <= room:
            return tuple(ids), False
        if self.truncate == "refuse":
            asked = f"{len(ids)} tokens and {new_tokens} new ones"
            raise RowRefused("too-long", f"{asked}, more than the limit of {self.max_tokens}")
        return tuple(ids[-room:] if self.truncate == "left" else ids[:room]), True

    def prompt_text(self, prompt: str) -> str:
        """`prompt` as the text that an answer directly follows."""
        return self._render([{"role": "user", "content": prompt}], answer=True) if self.chat else prompt

    def encode_prompt_text(self, text: str) -> list[int]:
        """Ids of a text from `prompt_text`, or of one that begins with it."""
        return self._encode(text) if self.chat else [*self._start, *self._encode(text)]

    def count(self, value: Conversation | list[str]) -> int:
        """Tokens of a field's text, without special tokens or templates."""
        if isinstance(value, str):
            return len(self._encode(value))
        return sum(self.count(item["content"] if isinstance(item, dict) else item) for item in value)

    def _plain_completion(self, prompt: Conversation, response: Conversation) -> tuple[list[int], list[Span]]:
        before, after = as_text(prompt), as_text(response)
        ids = [*self._start, *self._encode(before + after)]
        if not after:
            return ids, []
        return ids, [(common_prefix([*self._start, *self._encode(before)], ids), len(ids))]

    def _chat_completion(self, prompt: Conversation, response: Conversation) -> tuple[list[int], list[Span]]:
        messages, answers = as_messages(prompt, "user"), as_messages(response, "assistant")
        if answers[-1]["role"] != "assistant":
            raise RowRefused(
                "template", f"the response ends with a message of {answers[-1]['role']!r}, not of the assistant"
            )
        conversation = [*messages, *answers]
        ids = self._encode(self._render(conversation[:-1], answer=True) + answers[-1]["content"])
        spans = []
        for at in range(len(messages), len(conversation)):
            if conversation[at]["role"] != "assistant":
                continue
            header = self._render(conversation[:at], answer=True)
            content = conversation[at]["content"]
            if content:
                end = len(ids) if at == len(conversation) - 1 else common_prefix(self._encode(header + content), ids)
                spans.append((common_prefix(self._encode(header), ids), end))
        return ids, spans

    def _render(self, messages: list[Message], *, answer: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=answer, **self._template_options
            )
        except Exception as error:  # templates are the model's programs and raise what they like
            raise RowRefused("template", f"the chat template refuses this conversation: {error}") from error
        if not isinstance(text, str):
            raise RowRefused("template", "the chat template gives no text")
        return text

    def _header(self, messages: list[Message]) -> str:
        """What the template puts between the conversation and the answer, after the start token if it writes one."""
        with_header, without = self._render(messages, answer=True), self._render(messages, answer=False)
        header = with_header[len(without) :] if with_header.startswith(without) else ""
        start = getattr(self._tokenizer, "bos_token", None)
        return f"{start}{header}" if isinstance(start, str) and start and with_header.startswith(start) else header


def has_chat_template(tokenizer: Tokenizer) -> bool:
    wrapped = getattr(tokenizer, "has_chat_template", None)  # mlx-lm's wrapper also knows templates written in Python
    return bool(wrapped) if wrapped is not None else getattr(tokenizer, "chat_template", None) is not None


def _template_options(tokenizer: Tokenizer) -> dict[str, Any]:
    """For templates that write the date (Llama's, Mistral's): the same with a clock that stands still, as a row's score
    may not depend on the day.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or "strftime_now" not in template:
        return {}
    day = "form" + "".join(
        f' | replace("%{code}", "{TEMPLATE_DATE.strftime(f"%{code}")}")' for code in ("-d", "-m", *"aAbBdHIjmMpSyY")
    )
    # The line break belongs to the block before it: what follows renders as it would without all this.
    return {"chat_template": f"{{%- macro strftime_now(form) -%}}{{{{ {day} }}}}{{%- endmacro %}}\n{template}"}


def as_messages(value: Conversation, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def as_text(value: Conversation) -> str:
    return value if isinstance(value, str) else "\n".join(message["content"] for message in value)


def _ids_added_at_the_start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Special tokens that the tokenizer puts before a text; those it would put after it are left out."""
    bare, full = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def _plain_encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Text to ids without special tokens: through the Rust tokenizer where there is one, ten times faster than
    transformers' call.
    """

    def slow(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return slow

    def fast(text: str) -> list[int]:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
        return ids

    sample = "Zwölf Boxkämpfer: 12 rows,\n\n\ttabs  and  spaces. <s></s> 日本 🙂"
    return fast if fast(sample) == slow(sample) and fast("") == slow("") else slow
