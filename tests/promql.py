"""What a PromQL expression asks for: metrics, the labels it matches, the labels it groups by.

No parser of the whole language: it splits an expression into tokens as Prometheus' lexer does, so
that nothing in strings, durations, comments or label lists is taken for a metric, and reads off the
selectors. What it does not know, it refuses. Whether an expression is valid besides, Prometheus
itself must say (`promtool check rules`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""
    (?P<space>\s+|\#[^\n]*)
  | (?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)
  | (?P<range>\[[^\]]*\])
  | (?P<number>0[xX][0-9a-fA-F]+|(?:\d+(?:ms|[smhdwy]))+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)
  | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^<>=(),{}@])
    """,
    re.VERBOSE,
)
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
OPERATORS = {"and", "or", "unless", "bool", "offset", "atan2"}
NUMBERS = {"inf", "nan"}
# Those in use; an unknown one may be a metric that somebody left a bracket behind.
FUNCTIONS = {
    "avg", "avg_over_time", "changes", "count", "histogram_quantile", "increase", "irate", "max",
    "min", "rate", "sum", "topk",
}  # fmt: skip


@dataclass
class Selector:
    """One metric that is asked for."""

    metric: str
    matchers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By label: the operator and the text."""


@dataclass
class Query:
    """What is read off an expression."""

    selectors: list[Selector] = field(default_factory=list)
    groupings: list[set[str]] = field(default_factory=list)
    """Label lists of ``by`` and others, in the order in which they stand."""


def tokens(expression: str) -> list[tuple[str, str]]:
    found = []
    at = 0
    while at < len(expression):
        match = TOKEN.match(expression, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"not understood from {expression[at:]!r} on")
        if match.lastgroup != "space":
            found.append((match.lastgroup, match[0]))
        at = match.end()
    return found


def read(expression: str) -> Query:
    """Read an expression.

    Raises:
        ValueError: It is not understood.
    """
    query = Query()
    ahead = tokens(expression)
    opened = 0

    def take(*texts: str) -> str:
        if not ahead or ahead[0][1] not in texts:
            rest = " ".join(text for _, text in ahead) or "the end"
            raise ValueError(f"one of {texts} expected, not {rest}")
        return ahead.pop(0)[1]

    def name() -> str:
        if not ahead or ahead[0][0] != "name":
            raise ValueError(f"a label expected, not {ahead[:1]}")
        return ahead.pop(0)[1]

    while ahead:
        kind, text = ahead.pop(0)
        after = ahead[0][1] if ahead else ""
        if kind == "name" and text in GROUPING:
            labels: set[str] = set()
            if after == "(":
                take("(")
                while ahead and ahead[0][1] != ")":
                    labels.add(name())
                    if ahead and ahead[0][1] != ")":
                        take(",")
                take(")")
            elif not text.startswith("group_"):
                raise ValueError(f"{text} without labels")
            query.groupings.append(labels)
        elif kind == "name" and (after == "(" or (after in GROUPING and text in FUNCTIONS)):
            if text not in FUNCTIONS and text not in OPERATORS:
                raise ValueError(f"{text} is no function that is known here")
        elif kind == "name" and text.lower() in OPERATORS | NUMBERS:
            continue
        elif kind == "name":
            query.selectors.append(Selector(text))
            if after == "{":
                take("{")
                while ahead and ahead[0][1] != "}":
                    label = name()
                    operator = take("=", "!=", "=~", "!~")
                    if not ahead or ahead[0][0] != "string":
                        raise ValueError(f"{label} is compared with {ahead[:1]}")
                    query.selectors[-1].matchers[label] = operator, ahead.pop(0)[1][1:-1]
                    if ahead and ahead[0][1] != "}":
                        take(",")
                take("}")
        elif text == "{":
            raise ValueError("a selector without the name of a metric")
        elif text in "()":
            opened += 1 if text == "(" else -1
            if opened < 0:
                break
    if opened:
        raise ValueError("brackets that don't match")
    return query
