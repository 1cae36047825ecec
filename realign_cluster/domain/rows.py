"""What a row holds: looks fields up by role and says what is wrong with a value. Used before scoring and by the worker.

Works on parsed JSON. Must not know files, tokenizers or score kinds beyond the roles that domain.job names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from realign_cluster.domain.job import OPTIONAL_FIELDS, TEXT, TEXT_OR_LIST, TEXT_OR_MESSAGES, Fields, roles_needed

RESERVED_COLUMNS: Final = ("row_id", "scores")  # written by every run, so no input may have them


class Missing:
    """The type of MISSING: a field that is not there, unlike one that holds null."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False


MISSING: Final = Missing()


class BadField(ValueError):
    """A field that cannot play its role: `field` is its path as the user gave it, `message` what is wrong with it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """The value at `path`: the exact key first, else a dotted path through objects and lists (`a.b.0.c`); MISSING if
    neither.
    """
    found = row.get(path, MISSING)
    if found is not MISSING or "." not in path:
        return found
    value: Any = row
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part, MISSING)
            if value is MISSING:
                return MISSING
        elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in a user's words: "a number", "a list", "null"..."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


def problem_with(value: Any, may_hold: str) -> str | None:
    """Why `value` cannot play a role that may hold `may_hold` (TEXT, TEXT_OR_MESSAGES, TEXT_OR_LIST), or None if it
    can.
    """
    if isinstance(value, Missing):
        return "missing"
    if isinstance(value, str):
        return None
    if may_hold == TEXT_OR_MESSAGES and isinstance(value, list):
        return _problem_with_messages(value)
    if may_hold == TEXT_OR_LIST and isinstance(value, list):
        for at, item in enumerate(value):
            if not isinstance(item, str):
                return f"item {at} of the list is {kind_of(item)}, expected a text"
        return None
    expected = {
        TEXT: "a text",
        TEXT_OR_MESSAGES: 'a text or a list of {"role", "content"}',
        TEXT_OR_LIST: "a text or a list of texts",
    }[may_hold]
    return f"is {kind_of(value)}, expected {expected}"


def _problem_with_messages(messages: list[Any]) -> str | None:
    if not messages:
        return "is an empty list of messages"
    for at, message in enumerate(messages):
        if not isinstance(message, dict):
            return f'message {at} is {kind_of(message)}, expected {{"role", "content"}}'
        for key in ("role", "content"):
            held = message.get(key, MISSING)
            if not isinstance(held, str):
                what = "has no" if held is MISSING else f"has {kind_of(held)} as"
                return f"message {at} {what} {key!r}, expected a text"
    return None


def implicit_prompt(chosen: Any, rejected: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """TRL's implicit-prompt conversations: (shared first messages, what is left of chosen, what is left of rejected).

    Both are lists of messages that begin alike and differ in the end. Raises ValueError, with what is wrong, otherwise.
    """
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise ValueError("no prompt, and chosen and rejected are not conversations that begin with one")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise ValueError("no prompt, and the conversations chosen and rejected share no first message")
    if shared in (len(chosen), len(rejected)):
        raise ValueError("no prompt, and one of the conversations chosen and rejected is the beginning of the other")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def text_bytes(value: Any) -> int:
    """UTF-8 bytes of the text in a text, a list of texts or a list of messages."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list):
        return sum(text_bytes(item["content"] if isinstance(item, dict) else item) + 1 for item in value)
    return 0


def _joined(value: list[Any]) -> str:
    return "\n".join(value) if value and isinstance(value[0], str) else repr(value)


class RowCheck:
    """Checks rows against the roles that `kinds` need and measures their text; made once, called for each row.

    Calling it with a parsed row returns (text bytes over all roles, what its sequences share as a prefix or None).
    The shared prefix is the prompt's or the evidence's text where it is at least half of the row's text: rows that
    have it in common are worth keeping together. Raises BadField, naming the first field that is missing or wrongly
    typed.
    """

    __slots__ = ("_optional", "_plan", "_shared_at")

    def __init__(self, kinds: Iterable[str], fields: Fields) -> None:
        kinds = tuple(kinds)
        roles = roles_needed(kinds)
        self._plan = [(role, str(getattr(fields, role)), may_hold) for role, may_hold in roles.items()]
        # optional only if no other kind asked for needs it
        self._optional = {
            role
            for role in roles
            if any(role in OPTIONAL_FIELDS.get(kind, frozenset()) for kind in kinds)
            and all(role in OPTIONAL_FIELDS.get(kind, frozenset()) for kind in kinds if role in roles_needed((kind,)))
        }
        shared = [at for at, (role, _, _) in enumerate(self._plan) if role in ("prompt", "evidence")]
        self._shared_at = shared[0] if shared else -1

    @property
    def reads_text(self) -> bool:
        """False when no kind needs any field: rows are then measured by their raw bytes."""
        return bool(self._plan)

    def __call__(self, row: dict[str, Any]) -> tuple[int, str | None]:
        total = shared = 0
        prefix: str | None = None
        for at, (role, path, may_hold) in enumerate(self._plan):
            value = row.get(path, MISSING)
            if type(value) is str:
                size = len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
            else:
                value = lookup(row, path)
                problem = problem_with(value, may_hold)
                if problem is not None:
                    if (value is MISSING or value is None) and role in self._optional:
                        self._check_implicit(row, path)
                        continue
                    raise BadField(path, problem)
                size = text_bytes(value)
            total += size
            if at == self._shared_at:
                shared, prefix = size, value if type(value) is str else _joined(value)
        return total, prefix if 2 * shared >= total and shared else None

    def _check_implicit(self, row: dict[str, Any], prompt_path: str) -> None:
        paths = {role: path for role, path, _ in self._plan}
        chosen, rejected = lookup(row, paths["chosen"]), lookup(row, paths["rejected"])
        for path, value in ((paths["chosen"], chosen), (paths["rejected"], rejected)):
            problem = problem_with(value, TEXT_OR_MESSAGES)
            if problem is not None:
                raise BadField(path, problem)
        try:
            implicit_prompt(chosen, rejected)
        except ValueError as error:
            raise BadField(prompt_path, str(error)) from error
