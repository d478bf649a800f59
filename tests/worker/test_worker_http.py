"""The HTTP edge against bytes that no honest client sends, and against honest ones that it must not hurt."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from edge_server import EdgeServer, read_all, read_reply
from hypothesis import given, settings
from hypothesis import strategies as st

from olsock_worker.responses import JSON
from olsock_worker.settings import Http, load

pytestmark = pytest.mark.unit

HOST = b"Host: a\r\n"
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /x HTTP/1.1\r\n" + HOST


def limits(**values: object) -> Http:
    """The defaults but for these, checked as the worker checks them."""
    return load(None, {"http": values}).http


@pytest.fixture(scope="module")
def server() -> Iterator[EdgeServer]:
    held_to = limits(
        header_bytes=4096, header_count=20, body=1000, header_timeout=1.0, body_timeout=1.0, idle_timeout=1.5
    )
    with EdgeServer(held_to).running() as running:
        yield running


# (bytes, status). Each is followed by a second request, which must reach no handler: one's body is another's request.
REFUSED = {
    "both lengths": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "both lengths, other order": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "two lengths, equal": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "two lengths, different": (POST + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\nabc", 400),
    "a list of lengths": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "signed length": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "negative length": (POST + b"Content-Length: -3\r\n\r\nabc", 400),
    "hexadecimal length": (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
    "empty length": (POST + b"Content-Length: \r\n\r\nabc", 400),
    "length with a space inside": (POST + b"Content-Length: 1 2\r\n\r\nabc", 400),
    "length beyond 64 bits": (POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc", 400),
    "coding xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "coding chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "coding gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "coding with a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "coding quoted": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "coding twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "coding twice, different": (
        POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    "coding in HTTP/1.0": (b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "folded header": (POST + b"X: 1\r\n 2\r\n\r\n", 400),
    "folded first header": (b"GET /x HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "folded coding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "bare line feeds": (b"GET /x HTTP/1.1\nHost: a\n\n", 400),
    "one bare line feed": (b"GET /x HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400),
    "bare line feed at the end": (b"GET /x HTTP/1.1\r\nHost: a\r\n\n", 400),
    "bare carriage return": (b"GET /x HTTP/1.1\r\nHost: a\rX: 1\r\n\r\n", 400),
    "null in a value": (b"GET /x HTTP/1.1\r\nHost: a\x00b\r\n\r\n", 400),
    "control in a value": (b"GET /x HTTP/1.1\r\nHost: a\r\nX: a\x01\r\n\r\n", 400),
    "null in a name": (b"GET /x HTTP/1.1\r\nHost: a\r\nX\x00: a\r\n\r\n", 400),
    "empty name": (b"GET /x HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", 400),
    "no colon": (b"GET /x HTTP/1.1\r\nHost\r\n\r\n", 400),
    "no host": (b"GET /x HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "bad chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", 400),
    "negative chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", 400),
    "prefixed chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size beyond 64 bits": (
        POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        400,
    ),
    "chunk longer than its size": (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
    "chunk size ended by a line feed": (POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", 400),
    "chunk ended by a line feed": (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n", 400),
    "no method": (b" /x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "absurd method": (b"ABSURD /x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "lower case method": (b"get /x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "high bytes in the target": (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /x\r\n\r\n", 505),
    "HTTP/0.9 by name": (b"GET /x HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "HTTP/1.2": (b"GET /x HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "HTTP/2.0": (b"GET /x HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "long target": (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "long header": (POST + b"X: " + b"x" * 5000 + b"\r\n\r\n", 431),
    "many headers": (POST + b"".join(b"X%d: 1\r\n" % n for n in range(30)) + b"\r\n", 431),
    "many equal headers": (POST + b"X: 1\r\n" * 300 + b"\r\n", 431),
    "large body by length": (POST + b"Content-Length: 1001\r\n\r\n", 413),
    "large body in chunks": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"64\r\n" + b"x" * 100 + b"\r\n" + b"3e8\r\n" + b"x" * 1000,
        413,
    ),
    "coding empty": (POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
    "coding with a parameter": (POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400),
    "coding chunked twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "coding with a null": (POST + b"Transfer-Encoding: chunked\x00\r\n\r\n0\r\n\r\n", 400),
    "tab before the colon": (POST + b"Content-Length\t: 3\r\n\r\nabc", 400),
    "space before the first header": (b"GET /x HTTP/1.1\r\n X: 1\r\nHost: a\r\n\r\n", 400),
    "space before the size of a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n 3\r\nabc\r\n0\r\n\r\n", 400),
    "space after the size of a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n", 400),
    "empty chunk size": (POST + b"Transfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n", 400),
    "chunk shorter than its size": (POST + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabc\r\n0\r\n\r\n", 400),
    "extension ended by a line feed": (POST + b"Transfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n0\r\n\r\n", 400),
    "extension with a line feed inside": (
        POST + b'Transfer-Encoding: chunked\r\n\r\n3;a="\n"\r\nabc\r\n0\r\n\r\n',
        400,
    ),
    "last chunk ended by a line feed": (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\n\r\n", 400),
    "folded trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n 2\r\n\r\n", 400),
    "trailer ended by a line feed": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: 1\n\r\n", 400),
    "trailer with a null": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: \x00\r\n\r\n", 400),
    "host with a user": (b"GET /x HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
    "host with a path": (b"GET /x HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "host with a space": (b"GET /x HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "host with a port that is none": (b"GET /x HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    "host with an open bracket": (b"GET /x HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    "host of HTTP/1.0": (b"GET /x HTTP/1.0\r\nHost: a@b\r\n\r\n", 400),
    "host in the target with a user": (b"GET http://a@b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no host in the target": (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "scheme that is none of ours": (b"GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target without a slash": (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a fragment": (b"GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a control": (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target with a tab": (b"GET /x\ty HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no target": (b"GET HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "version in lower case": (b"GET /x http/1.1\r\nHost: a\r\n\r\n", 400),
    "version with two digits": (b"GET /x HTTP/1.10\r\nHost: a\r\n\r\n", 400),
    "space after the version": (b"GET /x HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "vertical tab in the request line": (b"GET\x0b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "long method": (b"G" * 70_000 + b" /x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "long name": (POST + b"X" * 70_000 + b": 1\r\n\r\n", 431),
    "trailer without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 9_000_000, 431),
    "name of a trailer without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"x" * 9_000_000, 431),
    "extension without end": (POST + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"x" * 9_000_000, 431),
    "many long extensions": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1;" + b"x" * 2000 + b"\r\ny\r\n") * 900,
        431,
    ),
    "upgrade with a body": (POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc", 400),
    "connect": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "unknown expectation": (POST + b"Expect: miracles\r\nContent-Length: 3\r\n\r\nabc", 417),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_closed(server: EdgeServer, case: str) -> None:
    data, status = REFUSED[case]
    before = len(server.calls)
    got = server.exchange(data + NEXT)
    assert got.startswith(b"HTTP/1.1 %d " % status), got[:200]
    assert got.count(b"HTTP/1.1 ") == 1 and b"connection: close\r\n" in got
    assert b"x-request-id: " in got and b'"error"' in got
    assert [call.target for call in server.calls[before:]] == []


@pytest.mark.parametrize("case", REFUSED)
def test_refused_byte_by_byte(server: EdgeServer, case: str) -> None:
    """However the network cuts the bytes."""
    data, status = REFUSED[case]
    before = len(server.calls)
    with server.connect() as sock:
        try:
            for start in range(0, len(data), max(1, len(data) // 60)):
                sock.sendall(data[start : start + max(1, len(data) // 60)])
        except ConnectionError:
            pass
        got = read_all(sock)
    if not got and len(data) > 1 << 20:  # more than is read on for after a refusal resets it away
        assert server.refused[-1] == status
        return
    assert got.startswith(b"HTTP/1.1 %d " % status) or (status in (414, 431) and got.startswith(b"HTTP/1.1 431 "))
    assert [call.target for call in server.calls[before:]] == []


ACCEPTED = {
    "plain": (POST + b"Content-Length: 3\r\n\r\nabc", b"POST /x abc"),
    "chunked": (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"POST /x abcde"),
    "chunked in capitals": (POST + b"transfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"POST /x abc"),
    "extension and trailer": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nHost: evil\r\n\r\n",
        b"POST /x abc",
    ),
    "many trailers": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 300 + b"\r\n",
        b"POST /x abc",
    ),
    "one byte a chunk": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n",
        b"POST /x " + b"x" * 1000,
    ),
    "extension in quotes": (
        POST + b'Transfer-Encoding: chunked\r\n\r\n3;a="b;c"\r\nabc\r\n0;z\r\n\r\n',
        b"POST /x abc",
    ),
    "space around values": (b"POST /x HTTP/1.1\r\nHost: \t a \t\r\nContent-Length:3\t\r\n\r\nabc", b"POST /x abc"),
    "absolute form": (b"GET http://a/x?y HTTP/1.1\r\nHost: other\r\n\r\n", b"GET /x?y "),
    "absolute form without a path": (b"GET HTTP://a?y HTTP/1.1\r\nHost: other\r\n\r\n", b"GET /?y "),
    "absolute form, HTTP/1.0": (b"GET http://a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"GET / "),
    "what looks like one": (b"GET /run/e://b/x HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /run/e://b/x "),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS * "),
    "percent-encoding": (b"GET /%2e%2E/%00%2f?%0d%0a HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /%2e%2E/%00%2f?%0d%0a "),
    "empty line before": (b"\r\n" + POST + b"Content-Length: 0\r\n\r\n", b"POST /x "),
    "body of just the limit": (POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000, b"POST /x " + b"x" * 1000),
    "upgrade without a body": (
        b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET /x ",
    ),
    "delete with a body": (b"DELETE /x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n1", b"DELETE /x 1"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(server: EdgeServer, case: str) -> None:
    """The control of the table above."""
    data, body = ACCEPTED[case]
    with server.connect() as sock:
        sock.sendall(data)
        got = read_reply(sock)
    assert got.startswith(b"HTTP/1.1 200 OK\r\n") and got.endswith(b"\r\n\r\n" + body)
    assert server.calls[-1].headers.get("host") == "a"  # a trailer is no header


@pytest.mark.parametrize("host", ["", "a.example", "a:80", "a:", "127.0.0.1", "[::1]:8080", "a_b", "x%20y", "A.B."])
def test_hosts_that_are_some(server: EdgeServer, host: str) -> None:
    """The control of those that are refused."""
    with server.connect() as sock:
        sock.sendall(b"GET /x HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode())
        assert read_reply(sock).startswith(b"HTTP/1.1 200 ")
    assert server.calls[-1].headers["host"] == host


def test_pipelined_requests_that_are_cut_anywhere() -> None:
    """What ends inside of one head and begins inside of another is not the length of either."""
    one = b"GET /x HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 3000 + b"\r\n\r\n"
    with EdgeServer(limits(header_bytes=4096)).running() as server, server.connect() as sock:
        sock.sendall(one[:50])
        time.sleep(0.2)
        sock.sendall(one[50:] + one * 20 + one[:50])
        time.sleep(0.2)
        sock.sendall(one[50:-4] + b"\r\nConnection: close\r\n\r\n")
        assert read_all(sock, 2.0).count(b"HTTP/1.1 200 ") == 22


def test_keep_alive_and_close(server: EdgeServer) -> None:
    with server.connect() as sock:
        for _ in range(3):
            sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"connection:" not in read_reply(sock)
        sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"connection: close\r\n" in read_reply(sock)
        assert sock.recv(1) == b""


def test_http_1_0(server: EdgeServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"connection: keep-alive\r\n" in read_reply(sock)
        sock.sendall(b"GET /x HTTP/1.0\r\n\r\n")
        assert b"connection: close\r\n" in read_reply(sock)
        assert sock.recv(1) == b""


def test_head(server: EdgeServer) -> None:
    got = server.exchange(b"HEAD /x HTTP/1.1\r\nHost: a\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\n")
    assert got.count(b"HTTP/1.1 200") == 2 and got.endswith(b"GET /y ") and b"HEAD /x" not in got


def test_pipelined_requests_are_answered_in_order(server: EdgeServer) -> None:
    data = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(50))
    got = server.exchange(data)
    assert [int(part.split(b"GET /")[1].split()[0]) for part in got.split(b"HTTP/1.1 200")[1:]] == list(range(50))


def test_pipelined_requests_wait_for_their_turn(server: EdgeServer) -> None:
    before = len(server.calls)
    with server.connect() as sock:
        sock.sendall(
            b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\nGET /after HTTP/1.1\r\nHost: a\r\n\r\nPOST /bad HTTP/1.1\r\n\r\n"
        )
        deadline = time.monotonic() + 5.0
        while not server.waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [call.target for call in server.calls[before:]] == [b"/wait"]
        call = server.waiting.pop()
        server.do(lambda: call.reply(200, JSON, b"first"))
        got = read_all(sock)
    first, second, third = got.split(b"HTTP/1.1 ")[1:]
    assert first.endswith(b"first") and second.endswith(b"GET /after ") and third.startswith(b"400 ")


def test_no_more_pipelined_requests_than_the_limit() -> None:
    with EdgeServer(limits(pipeline=4)).running() as server:
        got = server.exchange(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" * 1)
        assert got == b""
        with server.connect() as sock:
            sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
            time.sleep(0.3)
            call = server.waiting.pop()
            server.do(lambda: call.reply(200, JSON, b"first"))
            got = read_all(sock)
        assert got.count(b"HTTP/1.1 200") == 5 and got.count(b"connection: close") == 1


def test_expect_100_continue(server: EdgeServer) -> None:
    with server.connect() as sock:
        sock.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert sock.recv(1024) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert read_reply(sock).endswith(b"POST /x abc")
    with server.connect() as sock:  # too large: the body is not asked for
        sock.sendall(POST + b"Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n")
        assert sock.recv(1024).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", None), (b"GET / HT", 408), (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na", 408)],
)
def test_requests_that_do_not_arrive(server: EdgeServer, sent: bytes, status: int | None) -> None:
    began = time.monotonic()
    with server.connect() as sock:
        sock.sendall(sent)
        got = sock.recv(4096)
        assert got == b"" if status is None else got.startswith(b"HTTP/1.1 %d " % status)
        while sock.recv(4096):
            pass
    assert 0.7 < time.monotonic() - began < 5.0


def test_a_byte_now_and_then_does_not_extend_the_deadline(server: EdgeServer) -> None:
    began = time.monotonic()
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        try:
            while time.monotonic() - began < 6.0:
                sock.sendall(b"x")
                time.sleep(0.1)
        except ConnectionError:
            pass
    assert time.monotonic() - began < 5.0


def test_idle_connections_are_closed(server: EdgeServer) -> None:
    with server.connect() as sock:
        sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        read_reply(sock)
        assert sock.recv(1) == b""  # after idle_timeout


def test_a_client_that_does_not_read_is_cut_off() -> None:
    held_to = limits(write_timeout=1.0)
    with EdgeServer(held_to, lambda call: call.reply(200, JSON, b"x" * (32 << 20))).running() as server:
        with server.connect() as sock:
            sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            deadline = time.monotonic() + 10.0
            while len(server.edge) != 0 or not server.calls:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with server.connect() as sock:  # the control: who reads gets all of it
            sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert len(read_reply(sock)) > 32 << 20


def test_connections_are_bounded() -> None:
    with EdgeServer(limits(connections=5)).running() as server:
        held = [server.connect() for _ in range(5)]
        for sock in held:
            sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert read_reply(sock).startswith(b"HTTP/1.1 200")
        got = server.exchange(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 503 ") and b"retry-after: " in got
        held.pop().close()
        time.sleep(0.1)
        assert server.exchange(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 200")
        for sock in held:
            sock.close()


def test_bodies_held_at_one_time_are_bounded() -> None:
    with EdgeServer(limits(body=1000, bodies=1500)).running() as server:
        first = server.connect()
        first.sendall(b"POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
        while not server.waiting:
            time.sleep(0.01)
        full = server.exchange(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
        assert full.startswith(b"HTTP/1.1 503 ")
        call = server.waiting.pop()
        server.do(lambda: call.reply(200, JSON, b"1"))
        assert read_reply(first).startswith(b"HTTP/1.1 200")
        first.close()
        assert server.exchange(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000).startswith(b"HTTP/1.1 200")


def test_a_header_without_end_takes_no_memory() -> None:
    with EdgeServer(limits(header_timeout=30.0)).running() as server:
        process = psutil.Process()
        before = process.memory_info().rss
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
            sent = 0
            try:
                while sent < 64 << 20:
                    sent += sock.send(b"x" * 65536)
            except ConnectionError:
                pass
        assert process.memory_info().rss - before < 16 << 20


def test_a_body_in_many_small_chunks_takes_no_more_memory_than_it_is_long() -> None:
    with EdgeServer(limits(body_timeout=60.0)).running() as server:
        process = psutil.Process()
        before = process.memory_info().rss
        with server.connect(30.0) as sock:
            sock.sendall(b"POST /wait HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                sock.sendall(b"2\r\nxy\r\n" * 10_000)
            end = time.monotonic() + 30.0
            while server.edge._held < 2_000_000 and time.monotonic() < end:
                time.sleep(0.01)
            assert process.memory_info().rss - before < 16 << 20
            sock.sendall(b"0\r\n\r\n")
            while not server.waiting:
                time.sleep(0.01)
            call = server.waiting.pop()
            assert call.body == b"xy" * 1_000_000
            server.do(lambda: call.reply(200, JSON, b"1"))
            assert read_reply(sock).startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves_is_known(server: EdgeServer) -> None:
    gone = threading.Event()
    with server.connect() as sock:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
        while not server.waiting:
            time.sleep(0.01)
        server.waiting[-1].on_abandon = lambda _call: gone.set()
    assert gone.wait(5.0)
    call = server.waiting.pop()
    server.do(lambda: call.reply(200, JSON, b"nobody"))  # harmless


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([b"\r\n", b": ", b"GET / HTTP/1.1", b"Host: a", b"\r\n\r\n"]),
        max_size=8,
    )
)
def test_any_bytes(server: EdgeServer, parts: list[bytes]) -> None:
    """Whatever comes: every reply is well formed, and the server goes on."""
    with server.connect() as sock:
        try:
            sock.sendall(b"".join(parts))
            sock.shutdown(socket.SHUT_WR)
        except ConnectionError:
            pass
        got = read_all(sock, 2.0)
    while got:
        head, _, rest = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 ") and b"x-request-id: " in head
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        got = rest[length:] if not head.startswith(b"HTTP/1.1 100") else rest
    assert server.exchange(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")
