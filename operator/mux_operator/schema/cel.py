"""CEL rules evaluated without an API server, as far as our own rules go.

cel-python evaluates the language; `quantity()` and its comparison are the API server's and are
added here. Programs are compiled once per rule.
"""

from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

from mux_core.errors import InvariantError
from mux_core.units import parse_quantity
from mux_operator.schema.fields import Rule


def holds(rule: Rule, value: Any, *, old: Any = None) -> bool:
    """Whether `value` keeps the local form of `rule`; a transition rule needs `old`."""
    from celpy.adapter import json_to_cel
    from celpy.evaluation import CELEvalError

    activation = {"self": json_to_cel(value)}
    if rule.transition:
        activation["oldSelf"] = json_to_cel(old)
    try:
        return bool(_program(rule.local or rule.rule)(activation))
    except CELEvalError as error:
        raise InvariantError(f"CEL rule {rule.rule!r} on {value!r}: {error}") from error


@cache
def _program(expression: str) -> Callable[[dict[str, Any]], Any]:
    from celpy import Environment

    environment = Environment()
    runner = environment.program(environment.compile(expression), functions=_functions())
    return runner.evaluate


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    from celpy import celtypes

    class Quantity(celtypes.StringType):
        """A quantity as a CEL value; ordered by amount."""

        @property
        def amount(self) -> Decimal:
            return parse_quantity(str(self), subject="quantity")

    def greater(left: Quantity, right: Quantity) -> Any:
        return celtypes.BoolType(left.amount > right.amount)

    return {"quantity": Quantity, "isGreaterThan": greater}
