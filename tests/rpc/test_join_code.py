from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.errors import UsageError
from realign_cluster.rpc.join_code import JoinCode, decode_join_code, encode_join_code

CODE = JoinCode(address="10.0.0.2:47000", secret=bytes(range(16)), listener_sha256=hashlib.sha256(b"c").digest())


@given(st.binary(min_size=16, max_size=16), st.text("abc.:-019[]", min_size=1, max_size=60))
def test_a_code_says_what_it_was_made_of(secret: bytes, address: str) -> None:
    code = JoinCode(address=address, secret=secret, listener_sha256=CODE.listener_sha256)
    assert decode_join_code(encode_join_code(code)) == code


def test_line_breaks_of_a_terminal_do_no_harm() -> None:
    text = encode_join_code(CODE)
    assert decode_join_code(f" {text[:40]}\n  {text[40:]}\n") == CODE


@given(st.integers(9, 80), st.sampled_from("ABCxyz019_-"))
def test_any_changed_character_is_noticed(place: int, other: str) -> None:
    text = encode_join_code(CODE)
    changed = text[:place] + other + text[place + 1 :]
    if changed != text:
        with pytest.raises(UsageError, match="join-code"):
            decode_join_code(changed)


@pytest.mark.parametrize("text", ["", "realign1-", "realign1-!!!!", "hello", encode_join_code(CODE)[:-3]])
def test_what_is_no_code_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        decode_join_code(text)
