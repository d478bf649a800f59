"""What an operator can set: a TOML file, checked whole before anything starts."""

from __future__ import annotations

import tomllib
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from olsock.spec import parse_size

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Checked = TypeVar("Checked", bound=msgspec.Struct)
Size = int | str  # "128M" or bytes; turned into bytes by `parse_size`

FRONT_USER = "olsock"
_OWN_FILES = 64  # of the front, beside those of connections and instances
_INSTANCE_FILES = 9  # eight, and a log
STATE = "/var/lib/olsock/worker"


class SettingsError(ValueError):
    """The configuration cannot be accepted; the message names the key."""


class Http(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits of the HTTP edge. Deadlines are absolute: a byte now and then does not extend them."""

    header_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 20)] = 32 * 1024
    header_count: Annotated[int, msgspec.Meta(ge=8, le=10_000)] = 100
    body: Size = "6M"
    upload: Size = "70M"  # largest request that deploys a function
    bodies: Size = "256M"  # all request bodies held at one time
    reply: Size = "6M"
    header_timeout: Seconds = 10.0
    body_timeout: Seconds = 60.0
    write_timeout: Seconds = 60.0
    idle_timeout: Seconds = 75.0
    peer_timeout: Seconds = 60.0  # without a sign of life from the client's host
    connections: Count = 1024
    pipeline: Count = 64
    trusted_proxies: tuple[str, ...] = ("127.0.0.1", "::1")  # whose X-Forwarded-* are believed: addresses or networks
    stream: Size = "200M"  # largest reply that is passed on as it comes
    websocket_message: Size = "1M"  # largest message of a WebSocket, either way
    websocket_idle: Seconds = 60.0  # without a sign of life from the client
    disconnect_grace: Seconds = 5.0  # for a function to end a stream or a WebSocket whose client has gone


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may use the control API. With either, every request that comes over the network has to have one."""

    keys: dict[
        Annotated[str, msgspec.Meta(pattern=r"^[\w/+=.@-]{1,128}$")],
        Annotated[str, msgspec.Meta(min_length=16, max_length=256)],
    ] = {}  # secret access keys, by their ids
    token: Annotated[str, msgspec.Meta(pattern=r"^([!-~]{16,256})?$")] = ""  # a bearer token


class FunctionDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a function gets when its ol.yaml does not say."""

    memory: Size = "128M"
    cpus: Annotated[float, msgspec.Meta(gt=0, le=1024)] | None = None
    memory_per_cpu: Size = 0  # without `cpus`: a processor's worth of time for so much memory limit; 0: no limit
    pids: Annotated[int, msgspec.Meta(ge=1, le=32_768)] = 64
    tmpfs_size: Size = "64M"
    timeout: Seconds = 30.0
    init_timeout: Seconds = 10.0  # for importing its module
    websocket_timeout: Seconds | None = None  # None: `timeout`
    concurrency: Count = 32
    queue: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 256
    zygote: Literal["auto", "wait", "off"] = "auto"
    invocation_log: bool = True  # START, END and REPORT of each call in the function's log


class Events(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The queue of asynchronous invocations, and when it tries again."""

    payload: Size = "256K"  # of one event
    count: Annotated[int, msgspec.Meta(ge=1, le=100_000_000)] = 1_000_000  # that may wait
    bytes: Size = "1G"  # that these may take
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.5  # of both, that one function may have
    running: Count = 128  # at one time; a function always has one
    function_running: Count = 32  # of one function
    retries: Annotated[int, msgspec.Meta(ge=0, le=2)] = 2  # after errors of the function
    age: Annotated[float, msgspec.Meta(gt=0, le=21_600)] = 21_600.0
    retry_delay: Seconds = 60.0  # before the first retry; twice that before the second
    backoff: Seconds = 1.0  # after a throttled call or a fault of the worker, doubled for each further one
    backoff_most: Seconds = 300.0
    dead_letters: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 10_000  # that are kept
    dead_letter_bytes: Size = "256M"
    dead_letter_age: Annotated[float, msgspec.Meta(gt=0, le=315_360_000)] = 1_209_600.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything `olsock-worker up` can be told, by file or by option."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 5000
    control_listen: Annotated[str, msgspec.Meta(pattern=r"^(\S+:[0-9]{1,5})?$")] = ""  # address of its own, host:port
    url_base: Annotated[str, msgspec.Meta(pattern=r"^(https?://[!-~]{1,60})?$")] = ""  # of function URLs
    registry: str = "/var/lib/olsock/registry"
    state: str = STATE
    user: str = ""  # "": the user `olsock` if there is one, else the id block that olsock keeps for its host side
    packages: list[str] = []
    python: str | None = None
    pythons: list[str] = []  # interpreters beside those that are found on the host
    package_store: str = ""  # what functions require is installed here; "": `packages` in the state directory
    package_bytes: Size = "10G"
    package_network: Literal["bridge", "host"] = "bridge"  # of the sandboxes that resolve and install
    allow_source: bool = False  # build packages that have no wheel
    install_timeout: Seconds = 300.0
    installs: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2  # at one time
    tree: str = ""  # file of zygote trees, ours or OpenLambda's
    tree_learn: bool = True  # without one: fit them to what functions import
    tree_memory: Size = "1G"
    tree_nodes: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 40
    tree_interval: Seconds = 30.0
    blanks: Annotated[int, msgspec.Meta(ge=0, le=64)] = 4  # most that one zygote keeps waiting
    registry_check: Seconds = 5.0
    grace: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.02
    keep_alive: Literal["hybrid", "fixed"] | Seconds = "hybrid"  # seconds: fixed, of that many
    keep_alive_window: Seconds = 600.0  # fixed, and hybrid as long as a function's history says too little
    keep_alive_bin: Annotated[float, msgspec.Meta(ge=0.001, le=3600)] = 60.0  # the histogram has 240 of them
    drain: Seconds = 30.0
    start_timeout: Seconds = 20.0
    instances: Count = 256
    concurrent_executions: Count = 1000  # calls that run or wait, of all functions together
    memory_budget: Size = 0  # sum of the limits of live instances; 0: twice the host's memory
    memory_floor: Size = 0  # evict while less than this is available; 0: a sixteenth of the host's memory
    zygote_memory: Size = "1G"
    code: Size = "256M"  # unpacked size of one function
    code_files: Count = 10_000
    store_bytes: Size = "10G"  # archives of all functions that are deployed over the control API
    log_bytes: Size = "4M"
    log_files: Annotated[int, msgspec.Meta(ge=1, le=100)] = 4
    logs_bytes: Size = "1G"  # logs of all functions
    access_log: bool = False
    metrics_functions: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 100  # with rows of their own in /metrics
    http: Http = Http()
    function: FunctionDefaults = FunctionDefaults()
    credentials: Credentials = Credentials()
    events: Events = Events()


def load(path: str | None, overrides: dict[str, object]) -> Settings:
    """Read `path` (if any), lay the given options over it, and check the whole."""
    data: dict[str, object] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise SettingsError(f"{path}: {error}") from None
    data.update({key: value for key, value in overrides.items() if value is not None})
    try:
        settings = msgspec.convert(data, Settings)
        return _with_bytes(settings)
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(f"{path or 'options'}: {error}") from None


def fitting(settings: Settings, files: int) -> Settings:
    """Return settings that ask for no more connections and instances than there may be open files in the front."""
    free = max(files - _OWN_FILES, 0)
    connections = min(settings.http.connections, max(free // 2 * 3 // 4, 1))  # a quarter for those that are refused
    instances = min(settings.instances, max((free - connections * 4 // 3) // _INSTANCE_FILES, 1))
    http = msgspec.structs.replace(settings.http, connections=connections)
    return msgspec.structs.replace(settings, http=http, instances=instances)


def _with_bytes(settings: Settings) -> Settings:
    """Replace every size by its bytes, so that nothing later has to parse one."""
    http, function = settings.http, settings.function
    for each in http.trusted_proxies:
        try:
            ip_network(each)
        except ValueError as error:
            raise SettingsError(f"http.trusted_proxies: {error}; expected addresses and networks") from None
    return msgspec.structs.replace(
        settings,
        http=_sizes(http, "http.", ("body", "upload", "bodies", "reply", "stream", "websocket_message")),
        function=_sizes(function, "function.", ("memory", "memory_per_cpu", "tmpfs_size")),
        events=_sizes(settings.events, "events.", ("payload", "bytes", "dead_letter_bytes")),
        **{
            name: parse_size(getattr(settings, name), name)
            for name in (
                "memory_budget",
                "memory_floor",
                "zygote_memory",
                "code",
                "log_bytes",
                "logs_bytes",
                "store_bytes",
                "package_bytes",
                "tree_memory",
            )
        },
    )


def _sizes(value: Checked, prefix: str, names: tuple[str, ...]) -> Checked:
    return msgspec.structs.replace(value, **{name: parse_size(getattr(value, name), prefix + name) for name in names})
