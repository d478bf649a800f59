"""The least that an HTTP server can do: one ASGI application that answers every request with the same few bytes."""

BODY = b'{"message":"hello"}'
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())],
}


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    assert scope["type"] == "http"
    await send(START)
    await send({"type": "http.response.body", "body": BODY})
