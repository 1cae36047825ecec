"""What is learned of a row: the tokens that mlx-lm's datasets give, every answer of a conversation, nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer
from mlx_lm.tuner.datasets import ChatDataset, CompletionsDataset, TextDataset
from transformers import AutoTokenizer

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import TrainJob
from realign_cluster.scoring.encode import TRUNCATED_AWAY
from realign_cluster.scoring.errors import RowRefused
from realign_cluster.training.row_encoder import EncodedRow, RowEncoder, RowTooLong
from tests.fixtures.models import TINY_MODEL

SPEC = ModelSpec(name="tiny", hash="none")
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a lease?"},
    {"role": "assistant", "content": "A promise."},
    {"role": "user", "content": "For how long?"},
    {"role": "assistant", "content": "Three seconds, then it is over."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TINY_MODEL)


def job(**options: Any) -> TrainJob:
    return TrainJob(model=SPEC, data=SPEC, steps=1, global_batch=1, **options)


def encode(tokenizer: Any, form: Any, row: dict[str, Any], **options: Any) -> EncodedRow:
    return RowEncoder(tokenizer, job(**options), form).encode_row(row)


def learned(tokenizer: Any, encoded: EncodedRow, sequence: int = 0) -> list[str]:
    scored = encoded.sequences[sequence]
    return [str(tokenizer.decode(scored.ids[start:end])) for start, end in scored.spans]


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("chat", {"messages": TURNS[:3]}),
        ("chat", {"messages": TURNS[1:3]}),
        ("chat", {"messages": [TURNS[1], {"role": "assistant", "content": "  spaces at \n both ends "}]}),
        ("completions", {"prompt": "What is a lease?", "completion": "A promise."}),
        ("completions", {"prompt": "ends with a space ", "completion": "日本 🙂<|end|>"}),
        ("text", {"text": "Leases are promises.\n"}),
        ("text", {"text": "It ends itself.<|end|>"}),
    ],
)
def test_tokens_and_what_is_learned_agree_with_mlx_lm(tokenizer: Any, form: Any, row: Any, mask: bool) -> None:
    theirs = {
        "chat": lambda: ChatDataset([row], tokenizer, mask_prompt=mask),
        "completions": lambda: CompletionsDataset([row], tokenizer, "prompt", "completion", mask),
        "text": lambda: TextDataset([row], tokenizer),
    }[form]()
    ids, offset = theirs.process(row)
    (scored,) = encode(tokenizer, form, row, mask_prompt=mask).sequences
    assert list(scored.ids) == ids
    assert scored.spans == ((max(offset, 1), len(ids)),)  # mlx-lm cannot learn the first token either


def test_every_answer_is_learned_with_what_ends_it(tokenizer: Any) -> None:
    encoded = encode(tokenizer, "chat", {"messages": TURNS})
    assert learned(tokenizer, encoded) == ["A promise.<|end|>\n", "Three seconds, then it is over.<|end|>\n"]
    ids, offset = ChatDataset([], tokenizer, mask_prompt=True).process({"messages": TURNS})
    (scored,) = encoded.sequences
    assert (list(scored.ids), scored.spans[-1]) == (ids, (offset, len(ids)))
    assert tokenizer.decode(scored.ids[: encoded.prompt_tokens]).endswith("What is a lease?<|end|>\n<|assistant|>\n")


def test_what_others_say_last_is_not_learned(tokenizer: Any) -> None:
    encoded = encode(tokenizer, "chat", {"messages": TURNS[:4]})
    assert learned(tokenizer, encoded) == ["A promise.<|end|>\n"]
    assert str(tokenizer.decode(encoded.sequences[0].ids)).endswith("For how long?<|end|>\n")


def test_answers_in_a_prompt_are_context(tokenizer: Any) -> None:
    encoded = encode(tokenizer, "completions", {"prompt": TURNS[:4], "completion": TURNS[4]["content"]})
    assert learned(tokenizer, encoded) == ["Three seconds, then it is over.<|end|>\n"]
    assert encoded.sequences[0].ids == encode(tokenizer, "chat", {"messages": TURNS}).sequences[0].ids


def test_a_pair_shares_its_prompt_and_masks_it_always(tokenizer: Any) -> None:
    row = {"prompt": TURNS[:2], "chosen": "A promise.", "rejected": "No idea."}
    encoded = encode(tokenizer, "preference", row, method="dpo", mask_prompt=False)
    assert learned(tokenizer, encoded, 0) == ["A promise.<|end|>\n"]
    assert learned(tokenizer, encoded, 1) == ["No idea.<|end|>\n"]
    chosen, rejected = encoded.sequences
    assert chosen.ids[: encoded.prompt_tokens] == rejected.ids[: encoded.prompt_tokens]
    assert chosen.spans[0][0] == rejected.spans[0][0] == encoded.prompt_tokens


def test_without_a_template_the_end_token_ends_an_answer(tokenizer: Any) -> None:
    row = {"prompt": "The answer is ", "completion": "blue."}
    encoded = encode(tokenizer, "completions", row, chat="plain")
    assert tokenizer.decode(encoded.sequences[0].ids) == "<|begin|>The answer is blue.<|end|>"
    assert learned(tokenizer, encoded) == [" blue.<|end|>"]  # a token across the border is learned
    pair = encode(
        tokenizer, "preference", {"prompt": "a:", "chosen": " b", "rejected": " c"}, method="dpo", chat="plain"
    )
    assert [learned(tokenizer, pair, at) for at in (0, 1)] == [[" b<|end|>"], [" c<|end|>"]]


def test_rows_of_messages_need_a_template(tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="need a chat template, and the job says plain"):
        RowEncoder(tokenizer, job(chat="plain"), "chat")
    bare = AutoTokenizer.from_pretrained(TINY_MODEL)
    bare.chat_template = None
    with pytest.raises(UsageError, match="need a chat template, and the tokenizer of tiny has none"):
        RowEncoder(bare, job(), "chat")


LAST_ONE_THINKS = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['role'] == 'assistant' and loop.last %}THOUGHT\n\n{% endif %}"
    "{{ message['content'] | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def test_a_template_that_writes_the_last_answer_in_another_way() -> None:
    """As Qwen3's does, with an empty thought. mlx-lm learns that with the last answer, and so does this."""
    thinking = AutoTokenizer.from_pretrained(TINY_MODEL)
    thinking.chat_template = LAST_ONE_THINKS
    encoded = encode(thinking, "chat", {"messages": [*TURNS[:2], TURNS[2] | {"content": " A promise.\n"}, *TURNS[3:]]})
    assert learned(thinking, encoded) == ["A promise.<|end|>\n", "THOUGHT\n\nThree seconds, then it is over.<|end|>\n"]


def test_an_answer_whose_end_cannot_be_told_refuses_the_row() -> None:
    forgetful = AutoTokenizer.from_pretrained(TINY_MODEL)
    forgetful.chat_template = LAST_ONE_THINKS.replace(
        "{{ message['content'] | trim }}",
        "{{ message['content'] if loop.last or message['role'] != 'assistant' else '...' }}",
    )
    with pytest.raises(RowRefused, match="message 2 in another way once the conversation goes on"):
        encode(forgetful, "chat", {"messages": TURNS})


def test_what_the_template_refuses_is_said(tokenizer: Any) -> None:
    strict = AutoTokenizer.from_pretrained(TINY_MODEL)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(RowRefused, match="roles must alternate"):
        encode(strict, "chat", {"messages": TURNS})


LONG = " ".join(f"word{at}" for at in range(60))


@pytest.mark.parametrize("mask", [True, False])
def test_rows_are_cut_on_the_side_that_the_job_names(tokenizer: Any, mask: bool) -> None:
    row = {"prompt": LONG, "completion": "The end."}
    whole = encode(tokenizer, "completions", row, mask_prompt=mask).sequences[0]
    left = encode(tokenizer, "completions", row, mask_prompt=mask, max_tokens=30, truncate="left")
    assert left.sequences[0].ids == whole.ids[-30:]
    assert left.sequences[0].truncated
    assert not whole.truncated
    assert left.sequences[0].spans == (((30 - len(whole.ids) + whole.spans[0][0], 30),) if mask else ((1, 30),))
    right = encode(tokenizer, "completions", row, mask_prompt=mask, max_tokens=30, truncate="right")
    assert right.sequences[0].ids == whole.ids[:30]
    assert right.sequences[0].spans == (() if mask else ((1, 30),))
    assert right.prompt_tokens == 30
    if mask:
        assert right.sequences[0].reason == TRUNCATED_AWAY


@pytest.mark.parametrize(
    ("form", "row", "method"),
    [
        ("completions", {"prompt": "Say words.", "completion": LONG}, "sft"),
        ("preference", {"prompt": "Say words.", "chosen": "No.", "rejected": LONG}, "dpo"),
    ],
)
def test_a_row_that_is_too_long_says_by_how_much(tokenizer: Any, form: Any, row: Any, method: Any) -> None:
    tokens = max(len(each.ids) for each in encode(tokenizer, form, row, method=method).sequences)
    with pytest.raises(RowTooLong) as long:
        encode(tokenizer, form, row, method=method, max_tokens=tokens - 1, truncate="refuse")
    assert long.value.tokens == tokens
    encode(tokenizer, form, row, method=method, max_tokens=tokens, truncate="refuse")
