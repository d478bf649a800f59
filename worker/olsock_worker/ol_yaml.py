"""`ol.yaml`, the settings a function brings along: read, checked, and merged over the worker's defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import yaml

from olsock.spec import Handler, parse_size
from olsock_worker.settings import Count, FunctionDefaults, Seconds, Size

NAME = "ol.yaml"
LARGEST = 64 * 1024
_LEAST_CPUS, _MOST_CPUS = 0.01, 1024.0
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

_Module = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$", max_length=200)]
_LARGEST = 1 << 50  # bytes of memory or of /tmp
_VARIABLES, _NAME, _TOLD = 900, 255, 48 * 1024  # with what the worker adds it fits into one message to the broker
_Handler = Annotated[str, msgspec.Meta(max_length=200)]
_Runtime = Annotated[str, msgspec.Meta(pattern=r"^python3\.[0-9]{1,2}$")]
Contract = Literal["auto", "event", "wsgi", "asgi"]
_Variable = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]


class FunctionError(ValueError):
    """A function cannot be deployed as it is; the message says what to change."""


class _HttpTrigger(msgspec.Struct, forbid_unknown_fields=True):
    method: str = "*"


class _Triggers(msgspec.Struct, forbid_unknown_fields=True):
    http: list[_HttpTrigger] = []


class _File(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    triggers: _Triggers = msgspec.field(default_factory=_Triggers)
    environment: dict[_Variable, str | int | float | bool] = {}
    reuse_sandbox: bool = True
    memory: Size | None = None
    cpus: Annotated[float, msgspec.Meta(gt=0, le=1024)] | None = None
    pids: Annotated[int, msgspec.Meta(ge=1, le=32_768)] | None = None
    tmpfs_size: Size | None = None
    timeout: Seconds | None = None
    init_timeout: Seconds | None = None
    websocket_timeout: Seconds | None = None
    concurrency: Count | None = None
    queue: Annotated[int, msgspec.Meta(ge=0, le=100_000)] | None = None
    runtime: _Runtime | None = None
    imports: Annotated[list[_Module], msgspec.Meta(max_length=200)] = []
    snapshot: bool = False
    isolation: Literal["instance", "request"] = "instance"
    zygote: bool | Literal["auto", "wait", "off"] | None = None
    debug: bool = False
    invocation_log: bool | None = None
    handler: _Handler = "f:f"
    contract: Contract = "auto"


class FunctionConfig(msgspec.Struct, frozen=True):
    """How one function is to run, nothing left open."""

    methods: frozenset[str]  # empty: any
    environment: dict[str, str]
    reuse_sandbox: bool
    memory: int
    cpus: float | None
    memory_per_cpu: int  # 0: memory says nothing of processors
    pids: int
    tmpfs_size: int
    timeout: float
    init_timeout: float
    websocket_timeout: float
    concurrency: int
    queue: int
    runtime: str  # "": the worker's own interpreter, or the one of its settings
    imports: tuple[str, ...]
    snapshot: bool
    zygote: Literal["auto", "wait", "off"]
    debug: bool
    invocation_log: bool
    handler: str
    contract: Contract

    @property
    def ceiling(self) -> float | None:
        """How many processors' worth of time an instance gets at most; None: as much as there is."""
        if self.cpus is not None or not self.memory_per_cpu:
            return self.cpus
        return min(_MOST_CPUS, max(_LEAST_CPUS, self.memory / self.memory_per_cpu))

    def allow(self) -> str:
        """Return the value of an Allow header."""
        return ", ".join(method for method in METHODS if not self.methods or method in self.methods)


class _Loader(yaml.SafeLoader):
    """Plain YAML: no aliases, since a few lines of them expand to gigabytes, and no key twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise FunctionError(f"{NAME}: aliases are not accepted")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is given twice."""
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise FunctionError(f"{NAME}: a key is given twice{node.start_mark}")
        return mapping


def parse(text: bytes, defaults: FunctionDefaults) -> FunctionConfig:
    """Turn the contents of an `ol.yaml` (empty where there is none) into a complete configuration."""
    if len(text) > LARGEST:
        raise FunctionError(f"{NAME}: longer than {LARGEST} bytes")
    try:
        data = yaml.load(text, Loader=_Loader)
        given = msgspec.convert({} if data is None else data, _File)
        return _complete(given, defaults)
    except (yaml.YAMLError, msgspec.ValidationError, RecursionError) as error:
        raise FunctionError(f"{NAME}: {' '.join(str(error).split())}") from None
    except FunctionError:
        raise
    except ValueError as error:
        raise FunctionError(f"{NAME}: {error}") from None


def _complete(given: _File, defaults: FunctionDefaults) -> FunctionConfig:
    zygote, alone = given.zygote, given.isolation == "request"
    timeout = _or(given.timeout, defaults.timeout)
    if isinstance(zygote, bool):
        zygote = "auto" if zygote else "off"
    config = FunctionConfig(
        methods=_methods(given.triggers),
        environment={name: _text(value) for name, value in given.environment.items()},
        reuse_sandbox=given.reuse_sandbox and not alone,
        memory=_size(given.memory, defaults.memory, "memory", least=1 << 20),
        cpus=_or(given.cpus, defaults.cpus),
        memory_per_cpu=int(defaults.memory_per_cpu),
        pids=_or(given.pids, defaults.pids),
        tmpfs_size=_size(given.tmpfs_size, defaults.tmpfs_size, "tmpfs-size"),
        timeout=timeout,
        init_timeout=_or(given.init_timeout, defaults.init_timeout),
        websocket_timeout=_or(_or(given.websocket_timeout, defaults.websocket_timeout), timeout),
        concurrency=_or(given.concurrency, defaults.concurrency),
        queue=_or(given.queue, defaults.queue),
        runtime=given.runtime or "",
        imports=tuple(dict.fromkeys(given.imports)),
        snapshot=given.snapshot or alone,
        zygote=_or(zygote, defaults.zygote),
        debug=given.debug,
        invocation_log=_or(given.invocation_log, defaults.invocation_log),
        handler=handler_of(given.handler),
        contract=given.contract,
    )
    return checked(config)


def handler_of(text: str) -> str:
    """Return "module.sub:function" from that, or from "folder/module.function" as AWS has it. Raises `FunctionError`."""
    try:
        handler = Handler.parse(text)
    except ValueError as error:
        raise FunctionError(str(error)) from None
    return f"{handler.module}:{handler.attribute}"


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _size(value: Size | None, default: Size, field: str, least: int = 4096) -> int:
    return parse_size(default if value is None else value, field, least=least, most=_LARGEST, unlimited=False) or 0


def checked(config: FunctionConfig) -> FunctionConfig:
    """Return a configuration that a message to the broker can hold. Raises `FunctionError` for any other."""
    names = config.environment.keys()
    try:
        size = len(msgspec.json.encode((config.environment, config.imports)))
    except UnicodeEncodeError:
        raise FunctionError("environment: a name or value is not text") from None
    if size > _TOLD or len(names) > _VARIABLES or any(len(name) > _NAME for name in names):
        raise FunctionError(
            f"environment: at most {_VARIABLES} variables, names of {_NAME} characters, and {_TOLD} bytes with `imports`"
        )
    return config


def _text(value: str | int | float | bool) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if "\0" in text:
        raise FunctionError(f"{NAME}: environment: a value holds a null byte")
    return text


def _methods(triggers: _Triggers) -> frozenset[str]:
    methods = set()
    for trigger in triggers.http:
        method = trigger.method.upper()
        if method == "*":
            return frozenset()
        if method not in METHODS:
            raise FunctionError(
                f"{NAME}: triggers.http.method={trigger.method!r}: expected * or one of {', '.join(METHODS)}"
            )
        methods.add(method)
    return frozenset(methods)
