"""Parts of the worker that need no process: settings, ol.yaml, histograms, logs, messages between broker and front."""

from __future__ import annotations

import os
import random
import re
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import olsock
from olsock.nursery.choices import Facts
from olsock_worker import broker_protocol, locks, ol_yaml, responses
from olsock_worker.broker_protocol import Done, OomKills, Start, Started, Stop
from olsock_worker.locks import Locks
from olsock_worker.logs import FunctionLog, WorkerLog, escape
from olsock_worker.ol_yaml import FunctionError
from olsock_worker.planner import Planner
from olsock_worker.settings import FunctionDefaults, Settings, SettingsError, load
from olsock_worker.stats import FunctionStats, Histogram

pytestmark = pytest.mark.unit


# -- settings ------------------------------------------------------------------------------------------------


def test_defaults_are_complete_and_sizes_are_bytes() -> None:
    settings = load(None, {})
    assert settings.host == "127.0.0.1" and settings.port == 5000
    assert settings.http.body == 6 << 20 and settings.function.memory == 128 << 20
    assert settings.code == 256 << 20


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('port = 1234\nhost = "::1"\n[function]\ntimeout = 2.5\n[http]\nbody = "1.5M"\n')
    settings = load(str(file), {"port": 99, "host": None})
    assert (settings.port, settings.host, settings.function.timeout) == (99, "::1", 2.5)
    assert settings.http.body == 3 << 19


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot = 1", "prot"),
        ("[http]\nbdy = 1", "bdy"),
        ("[function]\nmem = 1", "mem"),
        ("port = 70000", "port"),
        ('port = "x"', "port"),
        ('[http]\nbody = "6X"', "http.body"),
        ('[function]\nmemory = "lots"', "function.memory"),
        ("grace = -1", "grace"),
        ("drain = 0", "drain"),
        ('keep_alive = "ever"', "keep_alive"),
        ("keep_alive = 0", "keep_alive"),
        ("keep_alive_bin = 0", "keep_alive_bin"),
        ('[function]\nzygote = "maybe"', "zygote"),
        ("port = ", "worker.toml"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=re.escape(named)):
        load(str(file), {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="absent.toml"):
        load(str(tmp_path / "absent.toml"), {})


def test_settings_survive_the_way_to_the_front() -> None:
    settings = load(None, {"packages": ["/a"], "grace": 0.5})
    assert msgspec.json.decode(msgspec.json.encode(settings), type=Settings) == settings


# -- ol.yaml -------------------------------------------------------------------------------------------------

DEFAULTS = load(None, {}).function


def test_nothing_given_is_the_defaults() -> None:
    config = ol_yaml.parse(b"", DEFAULTS)
    assert (config.handler, config.reuse_sandbox, config.memory, config.timeout) == ("f:f", True, 128 << 20, 30.0)
    assert config.methods == frozenset() and config.imports == () and config.zygote == "auto"


def test_everything_given() -> None:
    text = b"""
triggers: {http: [{method: get}, {method: POST}]}
environment: {A: x, B: 1, C: true, D: 1.5}
reuse-sandbox: false
memory: 64M
cpus: 0.5
pids: 7
tmpfs-size: 1M
timeout: 2
concurrency: 3
queue: 0
runtime: python3.12
imports: [numpy, a.b, numpy]
snapshot: true
zygote: false
debug: true
handler: app.main:Handler.run
"""
    config = ol_yaml.parse(text, DEFAULTS)
    assert config.methods == {"GET", "POST"} and config.allow() == "GET, POST"
    assert config.environment == {"A": "x", "B": "1", "C": "true", "D": "1.5"}
    assert (config.reuse_sandbox, config.memory, config.cpus, config.pids) == (False, 64 << 20, 0.5, 7)
    assert (config.tmpfs_size, config.timeout, config.concurrency, config.queue) == (1 << 20, 2.0, 3, 0)
    assert (config.imports, config.zygote, config.debug) == (("numpy", "a.b"), "off", True)
    assert config.handler == "app.main:Handler.run"
    assert config.runtime == "python3.12" and config.snapshot


def test_isolation_by_request_is_a_snapshot_and_no_reuse() -> None:
    config = ol_yaml.parse(b"isolation: request\nreuse-sandbox: true\n", DEFAULTS)
    assert config.snapshot and not config.reuse_sandbox
    config = ol_yaml.parse(b"isolation: instance\n", DEFAULTS)
    assert not config.snapshot and config.reuse_sandbox


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("memmory: 1M", "memmory"),
        ("reuse_sandbox: true", "reuse_sandbox"),
        ("triggers: {cron: []}", "cron"),
        ("triggers: {http: [{verb: GET}]}", "verb"),
        ("triggers: {http: [{method: BREW}]}", "BREW"),
        ("memory: much", "memory"),
        ("memory: -1", "memory"),
        ("timeout: 0", "timeout"),
        ("timeout: soon", "timeout"),
        ("pids: 0", "pids"),
        ("concurrency: 0", "concurrency"),
        ("imports: [os; import x]", "imports"),
        ("imports: [../x]", "imports"),
        ("handler: f", "handler"),
        ("handler: '../f:f'", "handler"),
        ("environment: {'A=B': x}", "environment"),
        ('environment: {A: "a\\0b"}', "environment"),
        ("zygote: maybe", "zygote"),
        ("runtime: pypy3", "runtime"),
        ("runtime: python3.12/../x", "runtime"),
        ("isolation: none", "isolation"),
        ("snapshot: 1", "snapshot"),
        ("memory: 1M\nmemory: 2M", "twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("- 1", "object"),
        ("{", "ol.yaml"),
        ("!!python/object/apply:os.system ['true']", "python"),
        ("x" * 70_000, "longer"),
        ("[" * 5000, "ol.yaml"),
    ],
)
def test_bad_ol_yaml_is_named(text: str, named: str) -> None:
    with pytest.raises(FunctionError, match=re.escape(named)):
        ol_yaml.parse(text.encode(), DEFAULTS)


@given(st.binary(max_size=200) | st.text(alphabet="abc:-[]{}&*!#\n \"'|>%@", max_size=80).map(str.encode))
def test_any_ol_yaml_is_taken_or_refused(text: bytes) -> None:
    try:
        ol_yaml.parse(text, DEFAULTS)
    except FunctionError as error:
        assert "\n" not in str(error)


def test_defaults_of_the_worker_reach_the_function() -> None:
    defaults = FunctionDefaults(memory=1 << 20, timeout=7.0, zygote="off")
    config = ol_yaml.parse(b"pids: 3", defaults)
    assert (config.memory, config.timeout, config.zygote, config.pids) == (1 << 20, 7.0, "off", 3)


# -- stats ---------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 3600, allow_nan=False), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
@example([0.0], 0.5)
def test_quantiles_are_near_the_truth(values: list[float], fraction: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    true = sorted(values)[max(1, round(fraction * len(values))) - 1]
    assert abs(histogram.quantile(fraction) - true) <= true * 0.04 + 2e-6


def test_histograms_do_not_grow_and_take_anything() -> None:
    histogram = Histogram()
    assert histogram.summary()["p99_ms"] == 0.0
    for value in (-1.0, 0.0, 1e-9, 1e6, 1e12):
        histogram.add(value)
    assert histogram.count == 5 and histogram.quantile(1.0) <= 1e12
    assert set(histogram.summary()) == {"count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms"}


def test_function_stats_shape() -> None:
    stats = FunctionStats()
    stats.statuses[200] += 2
    assert set(stats.summary()) == {
        *(
            "requests",
            "cold",
            "starts",
            "calls",
            "statuses",
            "memory_bytes",
            "total",
            "queue",
            "start",
            "run",
            "keep_alive",
        )
    }
    assert stats.summary()["statuses"] == {"200": 2}


# -- logs ----------------------------------------------------------------------------------------------------


@given(st.text(max_size=100))
def test_escaped_text_is_one_harmless_line(text: str) -> None:
    escaped = escape(text)
    assert len(escaped.splitlines()) <= 1
    assert not any((ord(c) < 0x20 and c != "\t") or 0x7F <= ord(c) < 0xA0 for c in escaped)


def test_escaping_loses_nothing() -> None:
    assert escape("a\\x1b") == "a\\\\x1b" and escape("a\x1b") == "a\\x1b"  # the two differ
    assert escape("grün\tja") == "grün\tja"
    assert escape("\u202e\u2028") == "\\u202e\\u2028"


def test_function_log_rotates_and_is_bounded(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    log = FunctionLog(fd, "f", 1000, 3)
    for number in range(200):
        log.write(f"id-{number}", b"x" * 50 + b"\n")
    log.close()
    os.close(fd)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["f.log", "f.log.1", "f.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert "id-199 " in (tmp_path / "f.log").read_text()


def test_function_log_does_not_follow_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "f.log").symlink_to(target)
    fd = os.open(tmp_path, os.O_RDONLY)
    log = FunctionLog(fd, "f", 1000, 3)
    log.write("id", b"text\n")
    log.close()
    os.close(fd)
    assert not target.exists()


# -- replies -------------------------------------------------------------------------------------------------


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
@example("text/plain\r\nx-evil: 1")
@example("text/plain\n")
def test_no_content_type_splits_a_reply(value: str) -> None:
    if responses.content_type_ok(value):
        assert value.isascii() and not any(c in value for c in "\r\n\0")


@pytest.mark.parametrize("value", ["application/json", "text/html; charset=utf-8", "image/svg+xml"])
def test_ordinary_content_types_pass(value: str) -> None:
    assert responses.content_type_ok(value)


# -- locks ---------------------------------------------------------------------------------------------------


def test_locks_are_kept_by_version_and_pruned(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    kept = Locks(fd)
    for number in range(12):
        path = f"f/v{number}"
        kept.write(path, locks.REQUIREMENTS, "six\n")
        kept.write(path, locks.LOCK, f"lock {number}\n")
        os.utime(tmp_path / f"f/v{number}.lock", (number, number))
        os.utime(tmp_path / f"f/v{number}.in", (number, number))
    kept.prune("f/v0")  # the oldest, and the current one
    left = sorted(path.name for path in (tmp_path / "f").iterdir())
    assert len(left) == 16 and "v0.lock" in left and "v11.lock" in left and "v1.lock" not in left
    assert kept.read("f/v11") == "lock 11\n" and kept.read("f/v1") == "" == kept.read("g/v1")
    kept.keep({"g"})
    assert not list(tmp_path.iterdir())
    os.close(fd)


def test_what_is_no_lock_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * (locks.LARGEST + 1))
    os.mkfifo(tmp_path / "pipe")
    for name in ("long", "pipe"):
        fd = os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(ValueError, match="at most"):
            locks.read(fd)
        os.close(fd)


# -- messages ------------------------------------------------------------------------------------------------

START = Start(
    id=1,
    code="echo/0123",
    handler="f:f",
    env={"A": "b"},
    memory=1 << 20,
    tmpfs_size=0,
    pids=1,
    cpus=None,
    imports=("json",),
    zygote="auto",
)


def test_messages_and_descriptors_arrive() -> None:
    ours, theirs = broker_protocol.socketpair()
    with ours, theirs:
        broker_protocol.send(theirs, START)
        assert broker_protocol.receive_request(ours) == START
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(6)]
        broker_protocol.send(ours, Started(1, 2, "python3.11:root", "blank", True), tuple(fds))
        message, received = broker_protocol.receive_reply(theirs)
        assert message == Started(1, 2, "python3.11:root", "blank", True) and len(received) == 6
        broker_protocol.close_all(fds + received)
        ours.close()
        assert broker_protocol.receive_reply(theirs) == (None, [])


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"type":"launch","id":1}',
        b'{"type":"stop","id":1}',
        b'{"type":"stop","id":-1,"instance":1}',
        b'{"type":"stop","id":1,"instance":"1"}',
        b'{"type":"stop","id":1,"instance":1,"path":"/etc"}',
        msgspec.json.encode(START).replace(b'"auto"', b'"always"'),
        msgspec.json.encode(START).replace(b'"pids":1', b'"pids":0'),
        msgspec.json.encode(START)[:-1],
        b"x" * 200_000,
    ],
)
def test_the_broker_takes_only_whole_messages_of_its_types(data: bytes) -> None:
    ours, theirs = broker_protocol.socketpair()
    with ours, theirs:
        theirs.send(data)
        with pytest.raises(msgspec.MsgspecError):
            broker_protocol.receive_request(ours)


def test_the_broker_takes_no_descriptors() -> None:
    ours, theirs = broker_protocol.socketpair()
    count = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        socket.send_fds(theirs, [msgspec.json.encode(Stop(id=1, instance=1))], [0, 0, 0])
        with pytest.raises(msgspec.MsgspecError):
            broker_protocol.receive_request(ours)
        assert len(os.listdir("/proc/self/fd")) == count


def test_any_order_of_messages_keeps_its_bounds() -> None:
    chance = random.Random(2)
    ours, theirs = broker_protocol.socketpair()
    with ours, theirs:
        for _ in range(200):
            message = chance.choice([Stop(id=1, instance=2), OomKills(id=3, instance=4), START])
            broker_protocol.send(theirs, message)
            assert broker_protocol.receive_request(ours) == message
        broker_protocol.send(ours, Done(1, 5))
        assert broker_protocol.receive_reply(theirs) == (Done(1, 5), [])


# What functions import.


def test_a_function_is_measured_until_it_is_known_and_then_now_and_then(tmp_path: Path) -> None:
    planner = Planner(load(None, {}), tmp_path, WorkerLog("test"))
    facts = Facts()
    told: list[olsock.Imported] = [olsock.Imported("a", "a", 1.0, 1.0, 0)]
    for _ in range(8):
        assert planner.measures("f")
        planner.observe("f", "python3.11", frozenset({"a==1"}), facts, (told, ()), {})
    planner.observe("f", "python3.11", frozenset({"a==1"}), facts, (None, ()), {})  # counted, and nothing learnt of it
    assert planner.imports("f") == {}
    assert 0 < sum(planner.measures("f") for _ in range(1000)) < 200
    assert planner.measures("g")
    planner.renew("f")
    assert all(planner.measures("f") for _ in range(100))
