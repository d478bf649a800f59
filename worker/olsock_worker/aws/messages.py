"""One request of the API, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import msgspec

from olsock_worker import responses
from olsock_worker.aws.errors import ApiError, invalid
from olsock_worker.responses import JSON

if TYPE_CHECKING:
    from olsock_worker.calls import Call

_Item = TypeVar("_Item")
_PAGE = 50  # what a list holds at most, as AWS's do


class Answer(msgspec.Struct, frozen=True):
    """What goes back: an object becomes JSON, None an empty body."""

    status: int
    body: object = None


def page(
    name: str, found: Sequence[_Item], most: int, shape: Callable[[_Item], object], key: Callable[[_Item], str]
) -> Answer:
    """Return a page of a list: `found` has one more than `most` if others follow, which go on after the `key` of the last."""
    body: dict[str, object] = {name: [shape(each) for each in found[:most]]}
    if len(found) > most:
        body["NextMarker"] = key(found[most - 1])
    return Answer(200, body)


class Request:
    """A request that reached an operation, with the part of its path that names what it is about."""

    def __init__(self, call: Call, query: dict[str, list[str]], names: tuple[str, ...]) -> None:
        self.call, self.names = call, names
        self._query = query

    def query(self, name: str) -> str | None:
        """Return a parameter of the query."""
        return self._query.get(name, [None])[0]

    def every(self, name: str) -> list[str]:
        """Return all values of a parameter of the query."""
        return [value for value in self._query.get(name, []) if value is not None]

    def page(self) -> tuple[str, int]:
        """Return where a list is to go on, and how long it may be."""
        text = self.query("MaxItems") or str(_PAGE)
        if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= 10_000):
            raise invalid(f"MaxItems {text[:50]!r}: expected 1 to 10000")
        return self.query("Marker") or "", min(int(text[:9]), _PAGE)

    def answer(self, answer: Answer) -> None:
        """Send an answer."""
        body = b"" if answer.body is None else msgspec.json.encode(answer.body)
        self.call.reply(answer.status, JSON, body, responses.header_lines((self._id,)))

    def fail(self, error: ApiError) -> None:
        """Send an error."""
        headers = [self._id, ("x-amzn-errortype", error.type)]
        if error.status == 429:
            headers.append(responses.RETRY_AFTER)
        self.call.reply(error.status, JSON, error.body(), responses.header_lines(tuple(headers)))

    @property
    def _id(self) -> tuple[str, str]:
        return ("x-amzn-requestid", self.call.id)
