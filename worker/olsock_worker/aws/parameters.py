"""What is sent: the bodies of requests, checked as far as their form goes, and how a function is configured by them.

What olsock has no counterpart for is accepted if a function runs as well without, and refused by its name if whoever asked
for it would be wrong about what they get: a private network, encryption with a key of theirs, volumes, images.
"""

from __future__ import annotations

import platform
import re
from typing import Annotated, Any, TypeVar

import msgspec
import psutil
from msgspec import UNSET, UnsetType

from olsock_worker.aws.errors import invalid
from olsock_worker.store.records import Configuration, Cors

_ENVIRONMENT = 4096  # bytes of names and values
_MEMORY = 64, psutil.virtual_memory().total >> 20  # MB
_STORAGE, _TIMEOUT = (512, 32_768), (1, 900)  # MB, seconds
_VARIABLE = re.compile(r"[a-zA-Z][a-zA-Z0-9_]+", re.ASCII)
_RUNTIME = re.compile(r"python3\.[0-9]{1,2}", re.ASCII)
_RESERVED = re.compile(
    r"_HANDLER|_X_AMZN_TRACE_ID|AWS_(DEFAULT_)?REGION|AWS_EXECUTION_ENV|LAMBDA_(TASK_ROOT|RUNTIME_DIR)|TZ|"
    r"AWS_LAMBDA_(FUNCTION_(NAME|MEMORY_SIZE|VERSION)|LOG_(GROUP|STREAM)_NAME|INITIALIZATION_TYPE|RUNTIME_API)"
)  # https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
_SHOWN = ("TracingConfig", "LoggingConfig")
_ABSENT: tuple[Any, ...] = (None, UNSET, "", [], {})
ARCHITECTURE = {"aarch64": "arm64"}.get(platform.machine(), platform.machine())
_Struct = TypeVar("_Struct", bound=msgspec.Struct)

MOST_TAGS = 50
Tags = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=128)], Annotated[str, msgspec.Meta(max_length=256)]],
    msgspec.Meta(max_length=MOST_TAGS),
]
Description = Annotated[str, msgspec.Meta(max_length=256)]


class _Named(msgspec.Struct, rename="pascal", forbid_unknown_fields=True):
    """Names of the API, such as `FunctionName` for `function_name`. What is not known is refused by its name."""


class Environment(_Named):
    """Variables, by name."""

    variables: dict[str, str] = {}


class Storage(_Named):
    """The size of /tmp in MiB."""

    size: int


class SnapStart(_Named):
    """Whether versions begin from a snapshot."""

    apply_on: str = "None"


class Settings(_Named, kw_only=True):
    """How a function is to run: what creating and updating have in common."""

    runtime: str | UnsetType | None = UNSET
    role: Annotated[str, msgspec.Meta(max_length=2048)] | UnsetType | None = UNSET
    handler: Annotated[str, msgspec.Meta(max_length=128)] | UnsetType | None = UNSET
    description: Description | UnsetType | None = UNSET
    timeout: int | UnsetType | None = UNSET
    memory_size: int | UnsetType | None = UNSET
    environment: Environment | UnsetType | None = UNSET
    ephemeral_storage: Storage | UnsetType | None = UNSET
    snap_start: SnapStart | None = None
    tracing_config: dict[str, str] | None = None
    logging_config: dict[str, str] | None = None
    vpc_config: dict[str, Any] | None = None
    dead_letter_config: dict[str, Any] | None = None
    file_system_configs: list[Any] | None = None
    layers: Annotated[list[str], msgspec.Meta(max_length=5)] | None = None
    image_config: dict[str, Any] | None = None
    capacity_provider_config: Any = None
    durable_config: Any = None
    tenancy_config: Any = None
    accelerator_config: Any = None
    runtime_config: Any = None
    kms_key_arn: Annotated[str | None, msgspec.Meta()] = msgspec.field(name="KMSKeyArn", default=None)


class ZipCode(_Named, kw_only=True):
    """Where code comes from."""

    zip_file: bytes | None = None
    s3_bucket: Any = msgspec.field(name="S3Bucket", default=None)
    s3_key: Any = msgspec.field(name="S3Key", default=None)
    s3_object_version: Any = msgspec.field(name="S3ObjectVersion", default=None)
    s3_object_storage_mode: Any = msgspec.field(name="S3ObjectStorageMode", default=None)
    image_uri: Any = None
    source_kms_key_arn: Any = msgspec.field(name="SourceKMSKeyArn", default=None)


class CreateFunction(Settings, kw_only=True):
    """A new function."""

    function_name: str
    code: ZipCode
    publish: bool | None = None
    publish_to: str | None = None
    tags: Tags | None = None
    package_type: str | None = None
    code_signing_config_arn: str | None = None
    architectures: list[str] | None = None


class UpdateFunctionCode(ZipCode, kw_only=True):
    """Other code."""

    publish: bool | None = None
    publish_to: str | None = None
    dry_run: bool | None = None
    revision_id: str | None = None
    architectures: list[str] | None = None


class UpdateFunctionConfiguration(Settings, kw_only=True):
    """Another configuration."""

    revision_id: str | None = None


class PublishVersion(_Named):
    """What is to be published."""

    code_sha256: str | None = msgspec.field(name="CodeSha256", default=None)
    description: Description | None = None
    revision_id: str | None = None
    publish_to: str | None = None


class Routing(_Named):
    """Other versions that share an alias's calls."""

    additional_version_weights: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1)]] | None = None


class Alias(_Named, kw_only=True):
    """A new alias, or what is to be another in one."""

    name: str | None = None
    function_version: str | None = None
    description: Description | None = None
    routing_config: Routing | None = None
    revision_id: str | None = None


class PublishLayerVersion(_Named, kw_only=True):
    """A new version of a layer."""

    content: ZipCode
    description: Description = ""
    license_info: Annotated[str, msgspec.Meta(max_length=512)] = ""
    compatible_runtimes: Annotated[tuple[str, ...], msgspec.Meta(max_length=15)] = ()
    compatible_architectures: Annotated[tuple[str, ...], msgspec.Meta(max_length=2)] = ()


class UpdateUrl(_Named, kw_only=True):
    """What is to be another in a function URL."""

    auth_type: str | None = None
    cors: Cors | None = None
    invoke_mode: str | None = None


class CreateUrl(UpdateUrl, kw_only=True):
    """A new function URL."""


class Concurrency(_Named):
    """A reservation."""

    reserved_concurrent_executions: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Provisioned(_Named):
    """How many instances are to be kept initialised."""

    provisioned_concurrent_executions: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class TagResource(_Named):
    """Tags to add."""

    tags: Tags


def decode(body: bytes, kind: type[_Struct]) -> _Struct:
    """Return the body of a request. Raises `ApiError` naming what is wrong with it."""
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"Could not parse request body: {error}") from None


def archive(code: ZipCode) -> bytes:
    """Return the bytes of a zip. Raises `ApiError` for code from elsewhere."""
    for name in (
        *("s3_bucket", "s3_key", "s3_object_version", "s3_object_storage_mode", "image_uri"),
        "source_kms_key_arn",
    ):
        if getattr(code, name) not in _ABSENT:
            raise invalid(f"{_spelled(code, name)} is not supported: send the code as ZipFile")
    if not code.zip_file:
        raise invalid("ZipFile is missing or empty: send the code as a zip")
    return code.zip_file


def check_package(parameters: CreateFunction | UpdateFunctionCode) -> None:
    """Refuse what would be another package than a zip for this host."""
    if isinstance(parameters, CreateFunction):
        if parameters.package_type not in (None, "Zip"):
            raise invalid("PackageType: only Zip is supported")
        if parameters.code_signing_config_arn:
            raise invalid("CodeSigningConfigArn is not supported: signatures are not checked")
    if parameters.publish_to:
        raise invalid("PublishTo is not supported")
    if parameters.architectures and parameters.architectures != [ARCHITECTURE]:
        raise invalid(f"Architectures {parameters.architectures}: this host is {ARCHITECTURE}")


def configure(before: Configuration, given: Settings) -> Configuration:
    """Return a configuration with what is given changed. Raises `ApiError` naming what cannot be accepted."""
    _refuse_unsupported(given)
    changed: dict[str, Any] = {}
    for field, value in (
        ("runtime", given.runtime),
        ("role", given.role),
        ("handler", given.handler),
        ("description", given.description),
        ("timeout", _between(given.timeout, _TIMEOUT, "Timeout", "seconds")),
        ("memory", _between(given.memory_size, _MEMORY, "MemorySize", "MB")),
    ):
        if value is not UNSET and value is not None:
            changed[field] = value
    if given.runtime and not _RUNTIME.fullmatch(str(given.runtime)):
        raise invalid(f"Runtime {given.runtime!r}: expected a Python such as python3.12")
    if isinstance(given.ephemeral_storage, Storage):
        changed["storage"] = _between(given.ephemeral_storage.size, _STORAGE, "EphemeralStorage.Size", "MB")
    if isinstance(given.environment, Environment):
        changed["environment"] = _variables(given.environment.variables)
    shown = dict(before.shown)
    for name, parameter in zip(_SHOWN, (given.tracing_config, given.logging_config), strict=True):
        if parameter is not None:
            shown[name] = msgspec.Raw(msgspec.json.encode(parameter))
    return msgspec.structs.replace(before, shown=shown, **changed)


def _refuse_unsupported(given: Settings) -> None:
    vpc = given.vpc_config or {}
    if any(value not in _ABSENT and value is not False for value in vpc.values()):
        raise invalid("VpcConfig is not supported: functions have no network")
    if any(value not in _ABSENT for value in (given.dead_letter_config or {}).values()):
        raise invalid("DeadLetterConfig is not supported")
    for name in (
        *("file_system_configs", "image_config", "capacity_provider_config", "durable_config"),
        *("tenancy_config", "accelerator_config", "runtime_config", "kms_key_arn"),
    ):
        if getattr(given, name) not in _ABSENT:
            raise invalid(f"{_spelled(given, name)} is not supported")


def _spelled(given: msgspec.Struct, name: str) -> str:
    return next(field.encode_name for field in msgspec.structs.fields(given) if field.name == name)


def _between(value: int | UnsetType | None, limits: tuple[int, int], name: str, unit: str) -> int | UnsetType | None:
    if isinstance(value, int) and not limits[0] <= value <= limits[1]:
        raise invalid(f"{name} {value}: expected {limits[0]} to {limits[1]} {unit}")
    return value


def _variables(variables: dict[str, str]) -> dict[str, str]:
    reserved = [name for name in variables if _RESERVED.fullmatch(name)]
    if reserved:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment variables you have provided "
            "contains reserved keys that are currently not supported for modification. "
            f"Reserved keys used in this request: {', '.join(reserved)}"
        )
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name) or len(name) > 200:
            raise invalid(f"Environment variable {name[:200]!r}: expected letters, digits and _, the first a letter")
        if "\0" in value:
            raise invalid(f"Environment variable {name}: the value holds a null byte")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in variables.items())
    if size > _ENVIRONMENT:
        raise invalid(
            "Lambda was unable to configure your environment variables because the environment variables you have provided "
            f"exceeded the 4KB limit: they take {size} bytes"
        )
    return variables
