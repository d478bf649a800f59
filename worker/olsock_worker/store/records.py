"""What a store keeps: values without behaviour, and the errors that every store raises."""

from __future__ import annotations

import msgspec

LATEST = "$LATEST"
"""The version that can be changed."""


class StoreError(Exception):
    """A store did not do what it was asked to; nothing was changed."""


class Absent(StoreError):
    """There is no such function, version or alias."""


class Conflict(StoreError):
    """It exists already, or something else refers to it."""


class Stale(StoreError):
    """It is not what whoever asked believes it to be: it was changed meanwhile."""


class Different(StoreError):
    """The code is not the one that was named."""


class Code(msgspec.Struct, frozen=True):
    """An uploaded archive, and where its contents are."""

    digest: str  # of the contents: their name in the code store
    sha256: str  # of the archive, in base64
    size: int  # bytes of the archive
    ol_yaml: str = ""  # what it says about itself


class Layer(msgspec.Struct, frozen=True):
    """A version of a layer as a function has it: it stays even if nobody else can have it any more."""

    name: str
    number: int
    digest: str  # of the contents
    size: int  # bytes of the archive


class Configuration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a function is to run. What is None is taken from its ol.yaml, or from the worker's defaults."""

    handler: str | None = None  # "module.function", or with folders "folder/module.function"
    runtime: str | None = None
    description: str = ""
    timeout: int | None = None  # seconds
    memory: int | None = None  # MiB
    storage: int | None = None  # MiB of /tmp
    environment: dict[str, str] = {}
    layers: tuple[Layer, ...] = ()  # a later one over an earlier one
    role: str = ""
    shown: dict[str, msgspec.Raw] = {}  # parameters that mean nothing here, given back as they were given


class Version(msgspec.Struct, frozen=True):
    """A version of a function; all but LATEST stay as they are."""

    function: str
    number: str  # "1", "2", ... or LATEST
    code: Code
    configuration: Configuration
    requirements: tuple[str, ...]  # of packages, as the code names them
    revision: str
    modified: str  # ISO 8601, UTC


class Alias(msgspec.Struct, frozen=True):
    """A name for a version, or for two with weights."""

    function: str
    name: str
    version: str
    weights: dict[str, float]  # other version -> share of the calls that it gets
    description: str
    revision: str


class Cors(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True, forbid_unknown_fields=True):
    """Which web pages a browser may let use a function URL. None: nothing is said of it."""

    allow_credentials: bool | None = None
    allow_headers: tuple[str, ...] | None = None
    allow_methods: tuple[str, ...] | None = None
    allow_origins: tuple[str, ...] | None = None
    expose_headers: tuple[str, ...] | None = None
    max_age: int | None = None  # seconds


class FunctionUrl(msgspec.Struct, frozen=True):
    """An address of a function, or of one of its aliases, for HTTP."""

    id: str
    function: str
    qualifier: str  # name of the alias; "": LATEST
    signed: bool  # requests have to be
    stream: bool  # parts go out as they are made
    cors: Cors | None
    created: str  # ISO 8601, UTC
    modified: str


class Provision(msgspec.Struct, frozen=True):
    """How many instances of a version, or of the version that an alias leads to, are kept initialised."""

    function: str
    qualifier: str  # number of a version, or name of an alias
    instances: int
    modified: str  # ISO 8601, UTC


class LayerVersion(msgspec.Struct, frozen=True):
    """A version of a layer; it stays as it is until it is deleted."""

    name: str
    number: int  # 1, 2, ...
    code: Code
    description: str
    license: str
    runtimes: tuple[str, ...]  # that it says it is for
    architectures: tuple[str, ...]
    created: str  # ISO 8601, UTC


class EventInvoke(msgspec.Struct, frozen=True):
    """How often and for how long events for a function are tried; None: as the worker's settings have it."""

    function: str
    qualifier: str  # LATEST, the number of a version or the name of an alias
    retries: int | None
    age: int | None  # seconds
    modified: float  # time()


class Usage(msgspec.Struct, frozen=True):
    """What a store holds."""

    functions: int
    bytes: int  # of archives, those of published versions included
