"""Parameters of requests: numbers in an address, and JSON bodies."""

import json
import math
from typing import Any

from starlette.requests import Request

from ecgbyte_cli.web.middleware import Refused


def query_number(
    request: Request, name: str, default: float, least: float = -math.inf, most: float = math.inf
) -> float:
    """Return a number from a request's address, clipped to its range."""
    try:
        value = float(request.query_params.get(name, default))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refused(400, f"`{name}` must be a number")
    return min(max(value, least), most)


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "Content-Type: application/json")
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body is not a JSON object")
    return body


def body_integer(body: dict[str, Any], name: str) -> int:
    """Return a whole number from a JSON body."""
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(400, f"`{name}` must be a whole number")
    return value
