"""As much of JSON Schema 2020-12 as the published schemas use. A keyword that is not known here fails a test."""

from __future__ import annotations

import re
from typing import Any

_ANNOTATIONS = {"$schema", "$id", "title", "description", "format"}


def fits(schema: dict[str, Any], value: Any) -> bool:
    """Whether a JSON value is what the schema asks for."""
    return all(_holds(keyword, schema, value) for keyword in schema if keyword not in _ANNOTATIONS)


def _holds(keyword: str, schema: dict[str, Any], value: Any) -> bool:
    limit = schema[keyword]
    match keyword:
        case "type":
            return _is(limit, value)
        case "enum":
            return any(value == word and type(value) is type(word) for word in limit)
        case "anyOf":
            return any(fits(one, value) for one in limit)
        case "minLength":
            return not isinstance(value, str) or len(value) >= limit
        case "maxLength":
            return not isinstance(value, str) or len(value) <= limit
        case "pattern":
            return not isinstance(value, str) or re.search(limit, value) is not None
        case "minimum":
            return not _is("number", value) or value >= limit
        case "maximum":
            return not _is("number", value) or value <= limit
        case "items":
            return not isinstance(value, list) or all(fits(limit, member) for member in value)
        case "maxItems":
            return not isinstance(value, list) or len(value) <= limit
        case "required":
            return not isinstance(value, dict) or all(name in value for name in limit)
        case "properties":
            return not isinstance(value, dict) or all(fits(limit[name], value[name]) for name in limit if name in value)
        case "additionalProperties":
            return limit is True
    raise AssertionError(f"the keyword {keyword!r} is not known here")


def _is(kind: str, value: Any) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds: dict[str, Any] = {
        "string": str, "object": dict, "array": list, "null": type(None), "number": (int, float), "boolean": bool,
    }  # fmt: skip
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, kinds[kind])
