"""Which form a training row has, what is wrong with it, and the one way in which each form is written.

Forms and field names are mlx-lm's and TRL's: chat {"messages"}, completions {"prompt", "completion"}, text {"text"},
preference {"prompt", "chosen", "rejected"}. Works on parsed JSON; must not know files, tokenizers or templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any, Final, Literal

from realign_cluster.domain.job import TEXT, TEXT_OR_MESSAGES
from realign_cluster.domain.rows import MISSING, BadField, implicit_prompt, kind_of, problem_with
from realign_cluster.domain.training import PREFERENCE_METHODS, Method

Form = Literal["chat", "completions", "text", "preference"]
Row = Mapping[str, Any]
Message = dict[str, str]
Conversation = str | list[Message]

FIELDS: Final[Mapping[Form, str]] = {
    "chat": '{"messages"}',
    "completions": '{"prompt", "completion"}',
    "text": '{"text"}',
    "preference": '{"prompt", "chosen", "rejected"}',
}
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
SPOKEN_ROLES: Final = frozenset({"user", "assistant"})  # whose messages must say something
SHOWN_FIELDS: Final = 12


class WrongForm(ValueError):
    """A row that has a form, but not one that the method learns from."""

    def __init__(self, method: Method, form: Form) -> None:
        wanted = " or ".join(f"{name} {FIELDS[name]}" for name in forms_of(method))
        super().__init__(f"{method} learns from {wanted} rows, this is a {form} row {FIELDS[form]}")
        self.method = method
        self.form = form


def forms_of(method: Method) -> tuple[Form, ...]:
    """The forms that a method learns from."""
    return ("preference",) if method in PREFERENCE_METHODS else ("chat", "completions", "text")


def form_of(row: Row, method: Method) -> Form:
    """The form of `row`, by the fields that are there and not null.

    Where several would fit, the method decides, then mlx-lm's order: completions, chat, text. "response" counts as
    "completion" where nothing else does. Raises WrongForm, or BadField for a row that has no form.
    """
    there = {name for name, value in row.items() if value is not None}
    pair = "chosen" in there or "rejected" in there
    single = _single_form(there, pair)
    found: Form | None = "preference" if pair and (method in PREFERENCE_METHODS or single is None) else single
    if found is None:
        shown = [*list(row)[:SHOWN_FIELDS], *(("...",) if len(row) > SHOWN_FIELDS else ())]
        has = f"has the fields {', '.join(shown)}" if shown else "has no fields"
        raise BadField("", f"{has}; expected {' or '.join(FIELDS[form] for form in forms_of(method))}")
    if found not in forms_of(method):
        raise WrongForm(method, found)
    return found


def _single_form(there: set[str], pair: bool) -> Form | None:
    if {"prompt", "completion"} <= there:
        return "completions"
    if "messages" in there:
        return "chat"
    if "text" in there:
        return "text"
    if {"prompt", "response"} <= there or (not pair and there & {"prompt", "completion"}):
        return "completions"
    return None


def canonical_row(row: Row, form: Form) -> dict[str, Any]:
    """`row` with the fields of `form` only, written in the one way that equal rows share.

    A conversation that is one message of the expected speaker becomes its text; keys of messages that are null go; a
    prompt that chosen and rejected only imply becomes a field. Raises BadField, naming the first thing that is wrong.
    """
    if row.get("tools"):
        raise BadField("tools", "definitions of tools cannot be trained with, leave the field out")
    match form:
        case "chat":
            return {"messages": _chat(row.get("messages", MISSING))}
        case "completions":
            prompt = _conversation("prompt", row.get("prompt", MISSING))
            return {"prompt": _short(prompt, "user"), "completion": _short(_completion(row), "assistant")}
        case "text":
            value = row.get("text", MISSING)
            if (problem := problem_with(value, TEXT)) is not None:
                raise BadField("text", problem)
            _check_says_something("text", value)
            return {"text": value}
        case "preference":
            return _preference(row)


def canonical_prompt(row: Row) -> dict[str, Any]:
    """{"prompt"} of a row of any form but text: what the model is to answer, whatever answers stand beside it. Raises
    BadField.
    """
    if row.get("prompt") is None and row.get("chosen") is not None:
        return {"prompt": _preference(row)["prompt"]}
    field = "messages" if row.get("prompt") is None and row.get("messages") is not None else "prompt"
    value = _conversation(field, row.get(field, MISSING))
    if field == "messages" and isinstance(value, list):
        value = list(takewhile(lambda message: message["role"] != "assistant", value))
    if isinstance(value, list) and (not value or value[-1]["role"] == "assistant"):
        raise BadField(field, "has nothing to answer, expected a message before one of 'assistant'")
    return {"prompt": _short(value, "user")}


def _chat(value: Any) -> list[Message]:
    if isinstance(value, str):
        raise BadField("messages", 'is a text, expected a list of {"role", "content"}')
    messages = _conversation("messages", value)
    assert isinstance(messages, list)
    if all(message["role"] != "assistant" for message in messages):
        raise BadField("messages", "has no message of 'assistant', so there is nothing to learn")
    return messages


def _completion(row: Row) -> Conversation:
    name = "completion" if row.get("completion") is not None or "response" not in row else "response"
    if name == "completion" and row.get("response") is not None:
        raise BadField("response", "stands beside 'completion', leave one of them out")
    return _answer(name, _conversation(name, row.get(name, MISSING)))


def _preference(row: Row) -> dict[str, Any]:
    chosen = _conversation("chosen", row.get("chosen", MISSING))
    rejected = _conversation("rejected", row.get("rejected", MISSING))
    if chosen == rejected:
        raise BadField("rejected", "is the same as 'chosen', expected another answer")
    prompt = row.get("prompt")
    # as in TRL, whole conversations imply the prompt, also beside a prompt column that repeats it as a text
    if not isinstance(prompt, list) and _is_whole(chosen) and _is_whole(rejected):
        try:
            prompt, chosen, rejected = implicit_prompt(chosen, rejected)
        except ValueError as error:
            raise BadField("chosen", str(error)) from error
    elif prompt is None:
        raise BadField("prompt", "missing, and chosen and rejected are not conversations that begin with one")
    return {
        "prompt": _short(_conversation("prompt", prompt), "user"),
        "chosen": _short(_answer("chosen", chosen), "assistant"),
        "rejected": _short(_answer("rejected", rejected), "assistant"),
    }


def _is_whole(conversation: Conversation) -> bool:
    return isinstance(conversation, list) and conversation[0]["role"] != "assistant"


def _conversation(field: str, value: Any) -> Conversation:
    """A text, or messages of known roles that say something, without keys that are null."""
    if (problem := problem_with(value, TEXT_OR_MESSAGES)) is not None:
        raise BadField(field, problem)
    if isinstance(value, str):
        _check_says_something(field, value)
        return value
    return [_message(field, at, message) for at, message in enumerate(value)]


def _message(field: str, at: int, message: Mapping[str, Any]) -> Message:
    role = message["role"]
    if role not in ROLES:
        raise BadField(field, f"message {at} has the role {role!r}, expected one of {', '.join(ROLES)}")
    if role in SPOKEN_ROLES and not message["content"].strip():
        raise BadField(field, f"message {at} of {role!r} is empty, expected a text")
    kept = {key: value for key, value in message.items() if value is not None}
    for key, value in kept.items():  # a template may read them, so they are neither lost nor guessed at
        if not isinstance(value, str):
            raise BadField(field, f"message {at} has {kind_of(value)} as {key!r}, messages may hold texts only")
    return kept


def _check_says_something(field: str, text: str) -> None:
    if not text.strip():
        raise BadField(field, "is empty, expected a text")


def _answer(field: str, value: Conversation) -> Conversation:
    for place, at in (("begins", 0), ("ends", -1)):
        if isinstance(value, list) and (role := value[at]["role"]) != "assistant":
            raise BadField(field, f"{place} with a message of {role!r}, expected one of 'assistant'")
    return value


def _short(value: Conversation, role: str) -> Conversation:
    if isinstance(value, list) and len(value) == 1 and value[0].keys() == {"role", "content"}:
        return value[0]["content"] if value[0]["role"] == role else value
    return value
