"""Spans and truncation, on the tiny model's tokenizer. No model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from realign_cluster.domain.job import Chat, Truncate
from realign_cluster.scoring.encode import EMPTY_RESPONSE, NO_CONTEXT, TRUNCATED_AWAY, TextEncoder
from realign_cluster.scoring.errors import RowRefused


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def encoder(tokenizer: Any, chat: Chat = "auto", max_tokens: int = 2048, truncate: Truncate = "left") -> TextEncoder:
    return TextEncoder(tokenizer, chat=chat, max_tokens=max_tokens, truncate=truncate)


def scored_text(tokenizer: Any, scored: Any) -> str:
    ids = [token for start, end in scored.spans for token in scored.ids[start:end]]
    return str(tokenizer.decode(ids))


def test_chat_where_there_is_a_template(tokenizer: Any) -> None:
    scored = encoder(tokenizer).completion("What is a lease?", "A promise.")
    assert tokenizer.decode(scored.ids) == "<|begin|><|user|>\nWhat is a lease?<|end|>\n<|assistant|>\nA promise."
    assert scored_text(tokenizer, scored) == "A promise."  # no header, no end token


def test_plain_joins_as_they_stand(tokenizer: Any) -> None:
    scored = encoder(tokenizer, "plain").completion("What is a lease?", "A promise.")
    assert tokenizer.decode(scored.ids) == "<|begin|>What is a lease?A promise."
    assert scored_text(tokenizer, scored) == "A promise."


def test_auto_is_plain_without_a_template(tokenizer: Any) -> None:
    bare = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    bare.chat_template = None
    assert not encoder(bare).chat
    assert encoder(tokenizer).chat


def test_a_token_across_the_border_is_scored(tokenizer: Any) -> None:
    scored = encoder(tokenizer, "plain").completion("The answer is ", "blue.")
    assert scored_text(tokenizer, scored) == " blue."


def test_messages(tokenizer: Any) -> None:
    prompt = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who are you?"},
    ]
    as_text = encoder(tokenizer).completion(prompt, "A tiny model.")
    as_messages = encoder(tokenizer).completion(prompt, [{"role": "assistant", "content": "A tiny model."}])
    assert as_text == as_messages
    assert scored_text(tokenizer, as_text) == "A tiny model."


def test_answers_of_several_turns_leave_out_what_others_say(tokenizer: Any) -> None:
    turns = [
        {"role": "assistant", "content": "Ask me."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because."},
    ]
    scored = encoder(tokenizer).completion("Begin.", turns)
    assert len(scored.spans) == 2
    assert scored_text(tokenizer, scored) == "Ask me.Because."


def test_an_answer_that_is_not_the_assistants_is_refused(tokenizer: Any) -> None:
    with pytest.raises(RowRefused) as refused:
        encoder(tokenizer).completion("Begin.", [{"role": "user", "content": "Why?"}])
    assert refused.value.code == "template"


def test_a_template_that_fails_refuses_the_row(tokenizer: Any) -> None:
    strict = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowRefused, match="roles must alternate"):
        encoder(strict, "chat").completion("a", "b")


@pytest.mark.parametrize("begin", ["", "\n", " \n{% if true %}{% endif %}\n\n"])
def test_a_template_that_writes_the_date_gives_the_same_text_every_day(tokenizer: Any, begin: str) -> None:
    """Llama's and Mistral's do: a row would get other scores tomorrow, and on a node in another time zone."""
    dated = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    day = "{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y, %-d.%m.') %}{%- endif %}"
    dated.chat_template = f"{begin}{day} {{{{ day }}}} {{{{ messages[0]['content'] }}}}"
    text = encoder(dated, "chat").prompt_text("Why?")
    dated.chat_template = (
        f"{begin}{{%- set day = '26 Jul 2024, 26.07.' %}} {{{{ day }}}} {{{{ messages[0]['content'] }}}}"
    )
    assert text == encoder(dated, "chat").prompt_text("Why?")
    assert text.strip() == "26 Jul 2024, 26.07. Why?"


@pytest.mark.parametrize("chat", ["chat", "plain"])
def test_an_empty_response_scores_nothing(tokenizer: Any, chat: Chat) -> None:
    scored = encoder(tokenizer, chat).completion("Say nothing.", "")
    assert (scored.spans, scored.reason, scored.truncated) == ((), EMPTY_RESPONSE, False)


def test_a_token_without_context_is_not_scored(tokenizer: Any) -> None:
    encode = encoder(WithoutStart(tokenizer), "plain")
    assert encode.completion("", "A").reason == NO_CONTEXT
    scored = encode.completion("", "A promise.")
    assert scored.spans == ((1, len(scored.ids)),)


class WithoutStart:
    """A tokenizer that puts nothing before a text, as gpt2's and qwen's do."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def apply_chat_template(self, messages: Any, tokenize: bool, add_generation_prompt: bool) -> Any:
        raise AssertionError("plain text has no template")


LONG = " ".join(f"word{at}" for at in range(60))


def test_truncate_left_keeps_the_end(tokenizer: Any) -> None:
    whole = encoder(tokenizer).completion(LONG, "The end.")
    cut = encoder(tokenizer, max_tokens=30).completion(LONG, "The end.")
    assert cut.ids == whole.ids[-30:]
    assert cut.truncated
    assert scored_text(tokenizer, cut) == "The end."


def test_truncate_left_within_the_response(tokenizer: Any) -> None:
    cut = encoder(tokenizer, max_tokens=30).completion("Say words.", LONG)
    assert cut.spans == ((1, 30),)  # the first kept token has nothing before it


def test_truncate_right_keeps_the_beginning(tokenizer: Any) -> None:
    whole = encoder(tokenizer).completion("Say words.", LONG)
    cut = encoder(tokenizer, max_tokens=30, truncate="right").completion("Say words.", LONG)
    assert cut.ids == whole.ids[:30]
    assert cut.spans == ((whole.spans[0][0], 30),)
    gone = encoder(tokenizer, max_tokens=30, truncate="right").completion(LONG, "The end.")
    assert (gone.spans, gone.reason) == ((), TRUNCATED_AWAY)


def test_truncate_refuse(tokenizer: Any) -> None:
    with pytest.raises(RowRefused, match="more than the limit of 30") as refused:
        encoder(tokenizer, max_tokens=30, truncate="refuse").completion(LONG, "The end.")
    assert refused.value.code == "too-long"


@pytest.mark.parametrize("chat", ["chat", "plain"])
@pytest.mark.parametrize("truncate", ["left", "right"])
def test_alone_scores_the_tokens_that_the_pair_scores(tokenizer: Any, chat: Chat, truncate: Truncate) -> None:
    for limit in (2048, 60):
        encode = encoder(tokenizer, chat, limit, truncate)
        conditioned = encode.completion("Say many words now.", LONG)
        alone = encode.alone("Say many words now.", LONG, conditioned)
        assert alone.tokens == conditioned.tokens
        assert scored_text(tokenizer, alone) == scored_text(tokenizer, conditioned)


def test_alone_keeps_the_header_as_context(tokenizer: Any) -> None:
    encode = encoder(tokenizer)
    alone = encode.alone("Why?", "Because.", encode.completion("Why?", "Because."))
    assert tokenizer.decode(alone.ids) == "<|begin|><|assistant|>\nBecause."
    assert scored_text(tokenizer, alone) == "Because."
