"""Special tokens that stand in a text as text: of padding, of the end, of a chat's turns. No sentence has them."""

from __future__ import annotations

import re
from typing import Final

SPECIAL_TOKEN: Final = re.compile(
    r"<\|[\w ▁｜|-]{1,40}\|>|</?s>|<(?:pad|eos|bos|unk|mask|(?:start|end)_of_turn|end_of_text)>"
    r"|\[(?:PAD|UNK|CLS|SEP|MASK|EOS|BOS|END)\]"
)


def has_special_token(text: str) -> bool:
    return SPECIAL_TOKEN.search(text) is not None
