"""Asks the gateway what it lists: the last word on whether a model can be used."""

import asyncio
import http.client
import json
from typing import Final

TIMEOUT_S: Final = 5.0


async def served_names(host: str, port: int) -> frozenset[str]:
    """The names in `/v1/models`. OSError while the endpoint does not answer."""
    return await asyncio.to_thread(_served_names, host, port)


def _served_names(host: str, port: int) -> frozenset[str]:
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v1/models")
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"/v1/models answered {answer.status}")
        return frozenset(str(model["id"]) for model in json.load(answer)["data"])
    except (http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise OSError(f"/v1/models: {error}") from error
    finally:
        connection.close()
