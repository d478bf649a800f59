"""What is answered: the values of the store in the shapes of the API."""

from __future__ import annotations

import msgspec

from olsock_worker.aws import names
from olsock_worker.aws.parameters import ARCHITECTURE
from olsock_worker.configurations import merged
from olsock_worker.settings import FunctionDefaults
from olsock_worker.store.records import LATEST, Alias, LayerVersion, Version

Shape = dict[str, object]


class Condition(msgspec.Struct, frozen=True):
    """Whether a version is served: what it waits for, or why it is not."""

    state: str = "Active"  # or Pending, Failed
    update: str = "Successful"  # or InProgress, Failed
    why: str = ""


def configuration(version: Version, condition: Condition, defaults: FunctionDefaults, qualified: bool = False) -> Shape:
    """Return a FunctionConfiguration; a `qualified` one names its version in the ARN."""
    given, code = version.configuration, version.code
    config = merged(given, code.ol_yaml, defaults)
    named = qualified or version.number != LATEST
    shape: Shape = {
        "FunctionName": version.function,
        "FunctionArn": names.arn(version.function, version.number if named else None),
        "Role": given.role,
        "Handler": config.handler.replace(":", ".") if given.handler is None else given.handler,
        "CodeSize": code.size,
        "Description": given.description,
        "Timeout": max(1, round(config.timeout)),
        "MemorySize": config.memory >> 20,
        "LastModified": version.modified,
        "CodeSha256": code.sha256,
        "Version": version.number,
        "TracingConfig": {"Mode": "PassThrough"},
        "RevisionId": version.revision,
        "PackageType": "Zip",
        "Architectures": [ARCHITECTURE],
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{version.function}"},
        "State": condition.state,
        "LastUpdateStatus": condition.update,
        **given.shown,
    }
    logging = given.shown.get("LoggingConfig")
    if logging is not None:  # what was not said of it is as always
        shape["LoggingConfig"] = {
            "LogFormat": "Text",
            "LogGroup": f"/aws/lambda/{version.function}",
        } | msgspec.json.decode(logging)
    if given.layers:
        shape["Layers"] = [
            {"Arn": names.layer_arn(each.name, each.number), "CodeSize": each.size} for each in given.layers
        ]
    if config.runtime:
        shape["Runtime"] = config.runtime
    if config.environment:
        shape["Environment"] = {"Variables": config.environment}
    if config.tmpfs_size >= 512 << 20:
        shape["EphemeralStorage"] = {"Size": config.tmpfs_size >> 20}
    if condition.state == "Pending":
        shape |= {"StateReason": condition.why, "StateReasonCode": "Creating"}
    elif condition.state == "Failed":
        shape |= {"StateReason": condition.why, "StateReasonCode": "FunctionError"}
    if condition.update == "Failed":
        shape |= {"LastUpdateStatusReason": condition.why, "LastUpdateStatusReasonCode": "FunctionError"}
    return shape


def layer_version(found: LayerVersion) -> Shape:
    """Return what lists of layers have of a version."""
    shape: Shape = {
        "LayerVersionArn": names.layer_arn(found.name, found.number),
        "Version": found.number,
        "Description": found.description,
        "CreatedDate": found.created,
    }
    if found.license:
        shape["LicenseInfo"] = found.license
    if found.runtimes:
        shape["CompatibleRuntimes"] = found.runtimes
    if found.architectures:
        shape["CompatibleArchitectures"] = found.architectures
    return shape


def layer(newest: LayerVersion) -> Shape:
    """Return what lists of layers have of a layer, by the newest of its versions that was asked for."""
    return {
        "LayerName": newest.name,
        "LayerArn": names.layer_arn(newest.name),
        "LatestMatchingVersion": layer_version(newest),
    }


def alias(found: Alias) -> Shape:
    """Return an AliasConfiguration."""
    shape: Shape = {
        "AliasArn": names.arn(found.function, found.name),
        "Name": found.name,
        "FunctionVersion": found.version,
        "Description": found.description,
        "RevisionId": found.revision,
    }
    if found.weights:
        shape["RoutingConfig"] = {"AdditionalVersionWeights": found.weights}
    return shape
