"""From how a function was configured over the control API, and what its ol.yaml says, to how it runs."""

from __future__ import annotations

import msgspec

from olsock_worker import ol_yaml
from olsock_worker.ol_yaml import FunctionConfig, handler_of
from olsock_worker.settings import FunctionDefaults
from olsock_worker.store.records import LATEST, Configuration, Version

REGION, ACCOUNT = "us-east-1", "000000000000"


def handler_file(config: FunctionConfig) -> str:
    """Return the file that a handler is expected in."""
    return config.handler.partition(":")[0].replace(".", "/") + ".py"


def effective(version: Version, defaults: FunctionDefaults) -> FunctionConfig:
    """Return how a version runs: what was configured wins over its ol.yaml, and that over the worker's defaults."""
    given = version.configuration
    config = merged(given, version.code.ol_yaml, defaults)
    told = {
        **_identity(version.function, version.number, config),
        "AWS_LAMBDA_LOG_STREAM_NAME": f"{version.modified[:10].replace('-', '/')}/[{version.number}]{version.revision}",
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{given.runtime or 'python'}",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "LAMBDA_TASK_ROOT": "/var/task",
        "_HANDLER": config.handler.replace(":", "."),
        "TZ": ":UTC",
    }
    if given.layers:
        told["PATH"] = "/usr/local/bin:/usr/bin:/bin:/opt/bin"
        told["LD_LIBRARY_PATH"] = "/opt/lib"
    return msgspec.structs.replace(config, environment={**told, **config.environment})


def of_directory(name: str, config: FunctionConfig) -> FunctionConfig:
    """Return how a function of the registry directory runs, which is told its name as AWS's functions are."""
    told = _identity(name, LATEST, config)
    return msgspec.structs.replace(config, environment={**told, **config.environment})


def _identity(name: str, number: str, config: FunctionConfig) -> dict[str, str]:
    return {
        "AWS_LAMBDA_FUNCTION_NAME": name,
        "AWS_LAMBDA_FUNCTION_VERSION": number,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(config.memory >> 20),
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{name}",
    }


def merged(given: Configuration, yaml: str, defaults: FunctionDefaults) -> FunctionConfig:
    """Lay what was configured over an ol.yaml. Raises `FunctionError`."""
    config = ol_yaml.parse(yaml.encode(), defaults)
    whole = msgspec.structs.replace(
        config,
        handler=config.handler if given.handler is None else handler_of(given.handler),
        runtime=config.runtime if given.runtime is None else given.runtime,
        timeout=config.timeout if given.timeout is None else float(given.timeout),
        memory=config.memory if given.memory is None else given.memory << 20,
        tmpfs_size=config.tmpfs_size if given.storage is None else given.storage << 20,
        environment={**config.environment, **given.environment},
    )
    return ol_yaml.checked(whole)
