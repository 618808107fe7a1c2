"""The API of our kinds: field names, defaults, rules, CRDs; the one place that knows them.

`python -m mux_operator.schema --write` writes the CRDs. `validate` judges a manifest without an
API server, `parse_llm` and `parse_pool` make typed specs of valid ones.
"""

from mux_operator.schema.kinds import API_VERSION, GROUP, KINDS, LLM, PLAN, POOL, VERSION
from mux_operator.schema.parse import parse_llm, parse_pool, parse_source
from mux_operator.schema.validate import validate, with_defaults

__all__ = [
    "API_VERSION",
    "GROUP",
    "KINDS",
    "LLM",
    "PLAN",
    "POOL",
    "VERSION",
    "parse_llm",
    "parse_pool",
    "parse_source",
    "validate",
    "with_defaults",
]
