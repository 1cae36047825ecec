"""The --keep-if language: which scored rows stay. Parsed against a whitelist and turned into closures; nothing is
evaluated as Python.

    scores.ifd.value < 1 and row.label == "yes"
    0.2 < scores.judge.probabilities["yes"] <= 1 and len(row.response) > 20 and row.lang in ["en", "de"]

Comparisons (also chained), `and or not in`, arithmetic (+ - * / // %), `len()`, parentheses, numbers, texts, true and
false, lists of literals. Names are `row.FIELD` and `scores.KIND.FIELD`, further levels by `.name`, `["any key"]`,
`[0]` or `.0`. A missing or null operand makes the outcome undefined, and so does a division by zero. Knows the shapes
of the scores; must not know where rows come from.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.rows import kind_of
from realign_cluster.domain.suggest import did_you_mean

UNDEFINED: Final = "undefined"  # drop reason: an operand was null or missing
KEEP_IF: Final = "keep_if"  # drop reason: the expression was false

MAX_LENGTH: Final = 4096
MAX_NODES: Final = 500
MAX_DEPTH: Final = 60

_MEAN = dict.fromkeys(("sum", "mean", "tokens"))
# kind -> field -> fields below it (None: a plain value; {}: any name). A kind that is not here may have any fields.
SCORE_FIELDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "loglik": dict.fromkeys(("sum", "mean", "tokens", "truncated", "undefined")),
    "ifd": dict.fromkeys(("value", "nll_conditioned", "nll_alone", "tokens", "truncated", "undefined")),
    "ifd-ppl": dict.fromkeys(("value", "nll_conditioned", "nll_alone", "tokens", "truncated", "undefined")),
    "preference": {
        "chosen": _MEAN,
        "rejected": _MEAN,
        **dict.fromkeys(("margin_sum", "margin_mean", "truncated", "undefined")),
    },
    "judge": {"probabilities": {}, **dict.fromkeys(("label", "truncated", "undefined"))},
    "kl": dict.fromkeys(("sum", "mean", "tokens", "truncated", "undefined")),
    "generate": {"samples": {}, **dict.fromkeys(("seed", "truncated", "undefined"))},
}

_PATH_OR_TEXT: Final = re.compile(
    r"""  "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | (?<![\w.])[A-Za-z_]\w*(?:\.\w+)+  """, re.X
)

Evaluate = Callable[[Any, Any], Any]  # (row, scores) -> value


class TypeMismatch(ValueError):
    """Two values of a row that cannot be compared or computed with, as in a text < a number."""


class _Undefined(Exception):
    pass


@dataclass(frozen=True, slots=True)
class KeepIf:
    """A compiled expression. `needs_row` is False when it reads scores only, so that rows need not be parsed."""

    text: str
    needs_row: bool
    _evaluate: Evaluate

    def decide(self, row: Mapping[str, Any] | None, scores: Mapping[str, Any]) -> str | None:
        """None to keep the row, else why it is dropped: KEEP_IF or UNDEFINED.

        Raises TypeMismatch where the row's values do not fit the expression.
        """
        try:
            outcome = self._evaluate(row, scores)
        except _Undefined:
            return UNDEFINED
        return None if _truth(outcome) else KEEP_IF


def compile_keep_if(text: str, known_kinds: Collection[str]) -> KeepIf:
    """Compiles `text` for rows scored by `known_kinds`. Raises UsageError with the column and what would be right."""
    asked = " ".join(text.splitlines())
    text = _PATH_OR_TEXT.sub(_positions_in_brackets, asked)
    if len(text) > MAX_LENGTH:
        raise UsageError(f"--keep-if is {len(text)} characters long, at most {MAX_LENGTH} are allowed")
    try:
        with warnings.catch_warnings():  # Python's advice on its own syntax is not for this language
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        column = (error.offset or len(text.strip()) + 1) + len(text) - len(text.lstrip())
        raise UsageError(
            f"--keep-if, column {column}: {error.msg}\n  {text}\n  {' ' * (column - 1)}^",
            'write for example: scores.ifd.value < 1 and row.label == "yes"',
        ) from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise UsageError("--keep-if is nested too deeply or holds a character that cannot be read") from error
    if sum(1 for _ in ast.walk(tree)) > MAX_NODES:
        raise UsageError(
            f"--keep-if has more than {MAX_NODES} parts", "split the work over several runs, or filter the output"
        )
    compiler = _Compiler(text, tuple(known_kinds))
    evaluate = compiler.value(tree.body, 0)
    return KeepIf(asked, compiler.needs_row, evaluate)


def _positions_in_brackets(found: re.Match[str]) -> str:
    """samples.0.finish, as field options write it, is samples[0].finish to Python's parser; texts stay as they are."""
    whole = found[0]
    return whole if whole[0] in "\"'" else re.sub(r"\.(\d+)(?!\w)", r"[\1]", whole)


_COMPARE: Final[dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_ARITHMETIC: Final[dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
}
_LITERAL_NAMES: Final = {"true": True, "false": False}


class _Compiler:
    def __init__(self, text: str, kinds: tuple[str, ...]) -> None:
        self.text = text
        self.kinds = kinds
        self.needs_row = False
        self._indent = len(text) - len(text.lstrip())

    def error(self, node: ast.AST, message: str, fix: str = "") -> UsageError:
        before = self.text.strip().encode()[: getattr(node, "col_offset", 0)]  # the parser counts bytes
        column = len(before.decode("utf-8", "replace")) + self._indent + 1
        return UsageError(
            f"--keep-if, column {column}: {message}\n  {self.text}\n  {' ' * (column - 1)}^", fix or _ALLOWED
        )

    def value(self, node: ast.expr, depth: int) -> Evaluate:
        """A closure for `node` that raises _Undefined instead of giving null."""
        if depth > MAX_DEPTH:
            raise self.error(node, f"nested more than {MAX_DEPTH} levels deep")
        match node:
            case ast.Constant():
                return _constant(self.literal(node))
            case ast.List() | ast.Tuple():
                return _constant([self.literal(item) for item in node.elts])
            case ast.Name(id=name) if name in _LITERAL_NAMES:
                return _constant(_LITERAL_NAMES[name])
            case ast.Name() | ast.Attribute() | ast.Subscript():
                return self.path(node)
            case ast.BoolOp(op=op, values=values):
                parts = tuple(self.value(value, depth + 1) for value in values)
                return _all(parts) if isinstance(op, ast.And) else _any(parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return _not(self.value(operand, depth + 1))
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                return _signed(isinstance(sign, ast.USub), self.value(operand, depth + 1))
            case ast.BinOp(left=left, op=binary, right=right) if type(binary) in _ARITHMETIC:
                symbol, function = _ARITHMETIC[type(binary)]
                return _arithmetic(symbol, function, self.value(left, depth + 1), self.value(right, depth + 1))
            case ast.Compare():
                return self.compare(node, depth)
            case ast.Call(func=ast.Name(id="len"), args=[argument], keywords=[]):
                return _length(self.value(argument, depth + 1))
            case ast.Call():
                raise self.error(node, "calls are not allowed, except len() of one value")
            case ast.BinOp(op=ast.Pow()):
                raise self.error(node, "** is not part of the language")
        raise self.error(node, f"{type(node).__name__} is not part of the language", _ALLOWED)

    def literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id in _LITERAL_NAMES:
            return _LITERAL_NAMES[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            number = self.literal(node.operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number
        if isinstance(node, ast.Constant):
            if node.value is None:
                raise self._null(node)
            if isinstance(node.value, bool | int | float | str):
                if isinstance(node.value, int) and node.value.bit_length() > 64:
                    raise self.error(node, "the number is too large")
                return node.value
        raise self.error(node, "expected a number, a text, true or false", _ALLOWED)

    def _null(self, node: ast.AST) -> UsageError:
        return self.error(
            node,
            f"a comparison with null is never true: a null operand drops the row with reason '{UNDEFINED}'",
            "leave it out",
        )

    def compare(self, node: ast.Compare, depth: int) -> Evaluate:
        operands = [self.value(operand, depth + 1) for operand in (node.left, *node.comparators)]
        tests: list[Callable[[Any, Any], bool]] = []
        for op, right in zip(node.ops, node.comparators, strict=True):
            match op:
                case ast.Eq():
                    tests.append(_equal)
                case ast.NotEq():
                    tests.append(_unequal)
                case ast.In():
                    tests.append(_contained)
                case ast.NotIn():
                    tests.append(_not_contained)
                case _ if type(op) in _COMPARE:
                    tests.append(_ordered(*_COMPARE[type(op)]))
                case _:
                    raise self.error(right, "'is' is not part of the language", "write == or !=")
        if len(tests) == 1:
            return _compared(tests[0], operands[0], operands[1])
        return _chain(tuple(tests), tuple(operands))

    def path(self, node: ast.expr) -> Evaluate:
        steps: list[str | int] = []
        at: ast.expr = node
        while not isinstance(at, ast.Name):
            match at:
                case ast.Attribute(value=inner, attr=name):
                    steps.append(name)
                    at = inner
                case ast.Subscript(value=inner, slice=ast.Constant(value=str() | int() as key)) if not isinstance(
                    key, bool
                ):
                    steps.append(key)
                    at = inner
                case ast.Subscript(
                    value=inner, slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as key))
                ):
                    steps.append(-key)
                    at = inner
                case ast.Subscript():
                    raise self.error(at, 'a subscript is a key or a position: row["key"], row.list[0]')
                case _:
                    raise self.error(at, "only row and scores have fields", _ALLOWED)
        steps.reverse()
        if at.id == "row":
            if not steps:
                raise self.error(at, "row needs a field", 'write row.FIELD or row["FIELD"]')
            self.needs_row = True
            return _row_path(tuple(steps))
        if at.id == "scores":
            self.check_score(at, steps)
            return _score_path(tuple(steps))
        if at.id in ("null", "None"):
            raise self._null(at)
        dashed = [kind for kind in self.kinds if "-" in kind and at.id in kind.split("-")]
        fix = f'write scores["{dashed[0]}"] for that kind' if dashed else "write row.FIELD or scores.KIND.FIELD"
        raise self.error(at, f"unknown name '{at.id}'{did_you_mean(at.id, ('row', 'scores', 'len'))}", fix)

    def check_score(self, node: ast.expr, steps: list[str | int]) -> None:
        if not steps:
            raise self.error(node, "scores needs a kind", f"known here: {', '.join(self.kinds)}")
        kind = str(steps[0])
        if kind not in self.kinds:
            raise self.error(
                node,
                f"no score kind '{kind}' in this run{did_you_mean(kind, self.kinds)}",
                f"known here: {', '.join(self.kinds)}; add it with --score",
            )
        below: Any = SCORE_FIELDS.get(kind, {})
        for depth, step in enumerate(steps[1:], 1):
            path = ".".join(map(str, steps[:depth]))
            if below is None:
                raise self.error(node, f"scores.{path} is a plain value and has no field '{step}'")
            if not below:
                return
            if step not in below:
                raise self.error(
                    node,
                    f"scores.{path} has no field '{step}'{did_you_mean(str(step), below)}",
                    f"it has: {', '.join(below)}",
                )
            below = below[step]
        if below and f"{kind}-" not in self.text:  # scores.ifd-ppl: its right half says what is wrong
            path = ".".join(map(str, steps))
            fields = ", ".join(f"scores.{path}.{name}" for name in below)
            raise self.error(node, f"scores.{path} is an object, not a value", f"name one of its fields: {fields}")


_ALLOWED: Final = (
    "allowed are comparisons, and, or, not, in, + - * / // %, len(), parentheses, row.FIELD and scores.KIND.FIELD"
)


def _constant(value: Any) -> Evaluate:
    return lambda row, scores: value


def _step(value: Any, step: str | int) -> Any:
    """One level down; raises _Undefined where there is nothing, or null."""
    if isinstance(value, dict):
        value = value.get(step if isinstance(step, str) else str(step))
    elif isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value):
        value = value[step]
    else:
        raise _Undefined
    if value is None:
        raise _Undefined
    return value


def _score_path(steps: tuple[str | int, ...]) -> Evaluate:
    def evaluate(row: Any, scores: Any) -> Any:
        value = scores
        for step in steps:
            value = _step(value, step)
        return value

    return evaluate


def _row_path(steps: tuple[str | int, ...]) -> Evaluate:
    # the exact key first, else the path, as field options do
    dotted = ".".join(map(str, steps)) if len(steps) > 1 else None

    def evaluate(row: Any, scores: Any) -> Any:
        if dotted is not None and dotted in row:
            return _step(row, dotted)
        value = row
        for step in steps:
            value = _step(value, step)
        return value

    return evaluate


def _truth(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise TypeMismatch(f"expected true or false, found {kind_of(value)}: compare it with something")


def _all(parts: tuple[Evaluate, ...]) -> Evaluate:
    return lambda row, scores: all(_truth(part(row, scores)) for part in parts)


def _any(parts: tuple[Evaluate, ...]) -> Evaluate:
    return lambda row, scores: any(_truth(part(row, scores)) for part in parts)


def _not(part: Evaluate) -> Evaluate:
    return lambda row, scores: not _truth(part(row, scores))


def _number(value: Any, symbol: str) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise TypeMismatch(f"'{symbol}' needs numbers, found {kind_of(value)}")


def _signed(negative: bool, operand: Evaluate) -> Evaluate:
    def evaluate(row: Any, scores: Any) -> Any:
        value = _number(operand(row, scores), "-")
        return -value if negative else value

    return evaluate


def _arithmetic(symbol: str, function: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    def evaluate(row: Any, scores: Any) -> Any:
        a, b = _number(left(row, scores), symbol), _number(right(row, scores), symbol)
        try:
            return function(a, b)
        except (ZeroDivisionError, OverflowError) as error:
            raise _Undefined from error

    return evaluate


def _length(argument: Evaluate) -> Evaluate:
    def evaluate(row: Any, scores: Any) -> int:
        value = argument(row, scores)
        if isinstance(value, str | list | dict):
            return len(value)
        raise TypeMismatch(f"len() needs a text, a list or an object, found {kind_of(value)}")

    return evaluate


def _equal(a: Any, b: Any) -> bool:
    # 1 == True in Python; in JSON a number is never true
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _unequal(a: Any, b: Any) -> bool:
    return not _equal(a, b)


def _contained(a: Any, b: Any) -> bool:
    if isinstance(b, list):
        return any(_equal(a, item) for item in b)
    if isinstance(a, str) and isinstance(b, str | dict):
        return a in b
    raise TypeMismatch(f"'in' cannot look for {kind_of(a)} in {kind_of(b)}")


def _not_contained(a: Any, b: Any) -> bool:
    return not _contained(a, b)


def _ordered(symbol: str, function: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(a: Any, b: Any) -> bool:
        if (isinstance(a, str) and isinstance(b, str)) or (_is_number(a) and _is_number(b)):
            return function(a, b)
        raise TypeMismatch(f"'{symbol}' cannot compare {kind_of(a)} with {kind_of(b)}")

    return test


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compared(test: Callable[[Any, Any], bool], left: Evaluate, right: Evaluate) -> Evaluate:
    return lambda row, scores: test(left(row, scores), right(row, scores))


def _chain(tests: tuple[Callable[[Any, Any], bool], ...], operands: tuple[Evaluate, ...]) -> Evaluate:
    def evaluate(row: Any, scores: Any) -> bool:
        left = operands[0](row, scores)
        for test, operand in zip(tests, operands[1:], strict=True):
            right = operand(row, scores)
            if not test(left, right):
                return False
            left = right
        return True

    return evaluate
