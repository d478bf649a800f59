"""A small HTTP client with as little of its own as possible, in a process of its own.

    python client.py PORT PATH CONNECTIONS COUNT WARM_UP [HEADER: VALUE]...

Sends COUNT requests in all over CONNECTIONS kept connections, one at a time on each, and prints JSON: latencies in
seconds, and the seconds that all of them took. One connection: a blocking socket. More: epoll.
"""

import json
import select
import socket
import sys
import time

BODY = b'{"x": 1}'


def request(port: int, path: str, headers: list[str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json", *headers, ""]
    head = "\r\n".join(lines)
    return f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def length(head: bytes) -> int:
    """Check the status line; return how many bytes the whole reply has, 0 while its head is not complete."""
    end = head.find(b"\r\n\r\n")
    if end < 0:
        return 0
    if not head.startswith(b"HTTP/1.1 20"):
        raise SystemExit(f"client: {head[:400]!r}")
    fields = head[:end].lower()
    at = fields.index(b"content-length:") + 15
    return end + 4 + int(fields[at:].split(b"\r\n", 1)[0])


def one(sock: socket.socket, data: bytes, count: int) -> list[float]:
    clock, send, recv = time.perf_counter, sock.sendall, sock.recv
    taken = []
    for _ in range(count):
        begun = clock()
        send(data)
        reply = recv(65536)
        taken.append(clock() - begun)
        while len(reply) != length(reply):
            more = recv(65536)
            if not more:
                raise SystemExit("client: connection closed")
            reply += more
            taken[-1] = clock() - begun
    return taken


def many(socks: list[socket.socket], data: bytes, count: int) -> list[float]:
    clock = time.perf_counter
    poll = select.epoll()
    by_fd = {sock.fileno(): sock for sock in socks}
    partial = dict.fromkeys(by_fd, b"")
    begun: dict[int, float] = {}
    taken: list[float] = []
    for fd, sock in by_fd.items():
        sock.setblocking(False)
        poll.register(fd, select.EPOLLIN)
        if len(begun) < count:
            begun[fd] = clock()
            sock.send(data)
    sent = len(begun)
    while len(taken) < count:
        ready = poll.poll(60)
        if not ready:
            raise SystemExit("client: no reply in 60 s")
        for fd, _ in ready:
            sock = by_fd[fd]
            more = sock.recv(65536)
            if not more:
                raise SystemExit("client: connection closed")
            reply = partial[fd] + more
            if len(reply) != length(reply):
                partial[fd] = reply
                continue
            now = clock()
            taken.append(now - begun[fd])
            partial[fd] = b""
            if sent < count:
                sent += 1
                begun[fd] = now
                sock.send(data)
    poll.close()
    return taken


def main() -> None:
    port, path, connections, count, warm_up = int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    data = request(port, path, sys.argv[6:])
    socks = [connect(port) for _ in range(connections)]

    def run(number: int) -> list[float]:
        return one(socks[0], data, number) if connections == 1 else many(socks, data, number)

    if warm_up:
        run(warm_up)
    begun = time.perf_counter()
    taken = run(count)
    print(json.dumps({"seconds": time.perf_counter() - begun, "latencies": taken}))


if __name__ == "__main__":
    main()
