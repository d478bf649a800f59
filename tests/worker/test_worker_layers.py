"""Layers by AWS's client: published, listed, deleted, and found at /opt by the functions that have them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from aws_client import ROLE, active, client, create, invoke, zipped
from botocore.exceptions import ClientError
from worker_process import WorkerProcess

from olsock_worker import broker_protocol

pytestmark = pytest.mark.system
RUNTIME = f"python3.{sys.version_info[1]}"
ARN = "arn:aws:lambda:us-east-1:000000000000:layer:"
SITE = f"python/lib/{RUNTIME}/site-packages"
HANDLER = """
import os, subprocess, sys
def handler(event, context):
    found = {}
    for name in ("lone", "shared", "deep"):
        try:
            found[name] = __import__(name).WHO
        except ImportError:
            found[name] = None
    tool = subprocess.run(["tool"], capture_output=True, text=True).stdout.strip() if "tool" in event else ""
    return [found, sorted(os.listdir("/opt")), [each for each in sys.path if each.startswith("/opt")], tool]
"""


@pytest.fixture(scope="module")
def config() -> str:
    return 'registry_check = 0.2\ncode = "1M"\n'


def publish(aws: Any, name: str, files: dict[str, str | bytes], **more: Any) -> Any:
    return aws.publish_layer_version(LayerName=name, Content={"ZipFile": zipped(files)}, **more)


def refused(kind: str, call: Callable[..., Any], *words: str, **given: Any) -> None:
    with pytest.raises(ClientError) as error:
        call(**given)
    found = error.value.response["Error"]
    assert found["Code"] == kind and all(word in found["Message"] for word in words), found


def module(who: str) -> str:
    return f"WHO = {who!r}\n"


# -- layers -------------------------------------------------------------------------------------------------------


def test_a_layer_from_its_making_to_its_end(aws: Any) -> None:
    archive = zipped({"python/lone.py": module("one")})
    more = {"Description": "d", "LicenseInfo": "MIT", "CompatibleRuntimes": ["python3.11"]}
    made = aws.publish_layer_version(LayerName="whole", Content={"ZipFile": archive}, **more)
    assert (made["LayerArn"], made["LayerVersionArn"], made["Version"]) == (f"{ARN}whole", f"{ARN}whole:1", 1)
    digest = base64.b64encode(hashlib.sha256(archive).digest()).decode()
    assert (made["Content"]["CodeSha256"], made["Content"]["CodeSize"]) == (digest, len(archive))
    second = publish(aws, f"{ARN}whole", {"python/lone.py": module("two")}, CompatibleArchitectures=["x86_64"])
    assert second["Version"] == 2
    got = aws.get_layer_version(LayerName="whole", VersionNumber=1)
    assert {name: got[name] for name in more} == more and got["Content"]["CodeSha256"] == digest
    assert aws.get_layer_version_by_arn(Arn=f"{ARN}whole:2")["Version"] == 2
    listed = aws.list_layer_versions(LayerName="whole")["LayerVersions"]
    assert [each["Version"] for each in listed] == [2, 1]
    page = aws.list_layer_versions(LayerName="whole", MaxItems=1)
    assert [each["Version"] for each in page["LayerVersions"]] == [2]
    rest = aws.list_layer_versions(LayerName="whole", Marker=page["NextMarker"])
    assert [each["Version"] for each in rest["LayerVersions"]] == [1] and "NextMarker" not in rest
    only = aws.list_layer_versions(LayerName="whole", CompatibleRuntime="python3.11")["LayerVersions"]
    assert [each["Version"] for each in only] == [1]
    publish(aws, "other", {"a": "b"})
    layers = aws.list_layers(MaxItems=1)
    assert [each["LayerName"] for each in layers["Layers"]] == ["other"]
    (whole,) = aws.list_layers(Marker=layers["NextMarker"])["Layers"]
    assert whole["LayerName"] == "whole" and whole["LatestMatchingVersion"]["Version"] == 2
    (old,) = aws.list_layers(CompatibleRuntime="python3.11")["Layers"]
    assert old["LatestMatchingVersion"]["Version"] == 1
    aws.delete_layer_version(LayerName="whole", VersionNumber=2)
    aws.delete_layer_version(LayerName="whole", VersionNumber=2)
    absent = "ResourceNotFoundException"
    refused(absent, aws.get_layer_version, "whole:2", LayerName="whole", VersionNumber=2)
    refused(absent, aws.get_layer_version_by_arn, Arn=f"{ARN}whole:2")
    assert publish(aws, "whole", {"a": "b"})["Version"] == 3, "numbers are used once"
    for name, number in (("whole", 1), ("whole", 3), ("other", 1)):
        aws.delete_layer_version(LayerName=name, VersionNumber=number)
    assert aws.list_layers()["Layers"] == [] and aws.list_layer_versions(LayerName="whole")["LayerVersions"] == []


def test_what_cannot_be_a_layer_is_refused(worker: WorkerProcess, aws: Any) -> None:
    invalid = "InvalidParameterValueException"
    bad = {
        "../up": zipped({"../x": "y"}),
        "no zip": b"PK no zip",
        "large": zipped({"a": b"x" * 2_000_000}),
    }
    for archive in bad.values():
        refused(invalid, aws.publish_layer_version, LayerName="bad", Content={"ZipFile": archive})
    refused(invalid, aws.publish_layer_version, "S3", LayerName="bad", Content={"S3Bucket": "abc", "S3Key": "k"})
    loose = client(worker, parameter_validation=False)
    refused(invalid, loose.publish_layer_version, "LayerName", LayerName="a b", Content={"ZipFile": zipped()})
    refused(invalid, loose.get_layer_version, LayerName="x", VersionNumber="one")
    refused(invalid, loose.get_layer_version_by_arn, Arn="whole:1")
    loose.close()
    refused("ResourceNotFoundException", aws.get_layer_version, LayerName="bad", VersionNumber=1)
    assert os.listdir(worker.state / "store" / "uploads") == os.listdir(worker.state / "store" / "scratch") == []


# -- functions with layers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers(aws: Any) -> list[str]:
    """Two layers, of which the second has some of the same names."""
    first = publish(
        aws,
        "first",
        {"python/lone.py": module("first"), "python/shared.py": module("first"), f"{SITE}/deep.py": module("deep")},
    )
    second = publish(aws, "second", {"python/shared.py": module("second"), "lib/x.so": b"\0", "place/file": "x"})
    return [first["LayerVersionArn"], second["LayerVersionArn"]]


PATHS = [f"/opt/{SITE}", "/opt/python"]


def test_layers_are_found_in_their_order(aws: Any, layers: list[str]) -> None:
    made = create(aws, "layered", {"app.py": HANDLER}, Layers=layers)
    assert [each["Arn"] for each in made["Layers"]] == layers
    both = {"lone": "first", "shared": "second", "deep": "deep"}
    assert invoke(aws, "layered")["result"] == [both, ["lib", "place", "python"], PATHS, ""]
    aws.update_function_configuration(FunctionName="layered", Layers=layers[::-1])
    active(aws, "layered")
    assert invoke(aws, "layered")["result"][0]["shared"] == "first"
    aws.update_function_configuration(FunctionName="layered", Layers=layers[:1])
    active(aws, "layered")
    assert invoke(aws, "layered")["result"][1] == ["python"]
    version = aws.publish_version(FunctionName="layered")["Version"]
    assert "Layers" not in aws.update_function_configuration(FunctionName="layered", Layers=[])
    active(aws, "layered")
    assert invoke(aws, "layered")["result"] == [{"lone": None, "shared": None, "deep": None}, [], [], ""]
    assert invoke(aws, "layered", Qualifier=version)["result"][0]["lone"] == "first", "a version keeps its layers"
    assert aws.publish_version(FunctionName="layered")["Version"] != version
    create(aws, "bare", {"app.py": HANDLER})
    assert invoke(aws, "bare")["result"][1:3] == [[], []], "who has no layers sees none"
    for name in ("layered", "bare"):
        aws.delete_function(FunctionName=name)


@pytest.mark.parametrize("yaml", ["zygote: wait\n", "snapshot: true\nzygote: wait\n", "zygote: off\n"])
def test_whatever_a_function_begins_from(aws: Any, layers: list[str], yaml: str) -> None:
    source = HANDLER.replace("import os", "import lone\nimport os")
    create(aws, "begun", {"app.py": source, "ol.yaml": yaml}, Layers=layers)
    for _ in range(2):
        assert invoke(aws, "begun")["result"][0]["shared"] == "second"
    aws.delete_function(FunctionName="begun")


def test_programs_of_layers_are_found(aws: Any) -> None:
    import io
    import zipfile

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        info = zipfile.ZipInfo("bin/tool")
        info.external_attr = 0o100755 << 16
        archive.writestr(info, "#!/bin/sh\necho from the layer\n")
    arn = aws.publish_layer_version(LayerName="tools", Content={"ZipFile": data.getvalue()})["LayerVersionArn"]
    create(aws, "tooled", {"app.py": HANDLER}, Layers=[arn])
    assert invoke(aws, "tooled", {"tool": 1})["result"][3] == "from the layer"
    aws.delete_function(FunctionName="tooled")
    aws.delete_layer_version(LayerName="tools", VersionNumber=1)


def test_a_deleted_layer_stays_with_its_functions(worker: WorkerProcess, aws: Any) -> None:
    contents = lambda: set(os.listdir(worker.state / "store" / "code"))  # noqa: E731
    before = contents()
    arn = publish(aws, "brief", {"python/lone.py": module("brief")})["LayerVersionArn"]
    (digest,) = contents() - before
    create(aws, "keeper", {"app.py": HANDLER}, Layers=[arn])
    aws.delete_layer_version(LayerName="brief", VersionNumber=1)
    assert invoke(aws, "keeper")["result"][0]["lone"] == "brief" and digest in contents()
    given = {"Runtime": RUNTIME, "Handler": "app.handler", "Role": ROLE, "Code": {"ZipFile": zipped()}}
    refused(
        "InvalidParameterValueException", aws.create_function, "brief:1", FunctionName="late", Layers=[arn], **given
    )
    aws.update_function_code(FunctionName="keeper", ZipFile=zipped({"app.py": HANDLER + "\n"}))
    active(aws, "keeper")
    assert invoke(aws, "keeper")["result"][0]["lone"] == "brief"
    trees = worker.state / "code" / ".layers"
    assert len(os.listdir(trees)) >= 1
    aws.delete_function(FunctionName="keeper")
    assert digest not in contents(), "nobody refers to it any more"


def test_trees_go_with_the_last_who_has_them(worker: WorkerProcess, aws: Any) -> None:
    trees = worker.state / "code" / ".layers"
    worker.until(lambda: os.listdir(trees) == [])
    arn = publish(aws, "tree", {"python/lone.py": module("tree")})["LayerVersionArn"]
    for name in ("tree-a", "tree-b"):
        create(aws, name, {"app.py": HANDLER}, Layers=[arn])
    assert len(os.listdir(trees)) == 1, "equal layers are one tree"
    aws.delete_function(FunctionName="tree-a")
    assert invoke(aws, "tree-b")["result"][0]["lone"] == "tree"
    aws.delete_function(FunctionName="tree-b")
    worker.until(lambda: os.listdir(trees) == [])
    aws.delete_layer_version(LayerName="tree", VersionNumber=1)


def test_what_cannot_be_had_is_refused(worker: WorkerProcess, aws: Any, layers: list[str]) -> None:
    create(aws, "refusing", {"app.py": HANDLER})
    invalid = "InvalidParameterValueException"
    again = publish(aws, "first", {"a": "b"})["LayerVersionArn"]
    loose = client(worker, parameter_validation=False)
    for bad, word in (
        ([f"{ARN}absent:1"], "absent:1"),
        ([f"{ARN}first:99"], "first:99"),
        ([layers[0], again], "two versions"),
        (["first:1"], "ARN"),
        ([f"{ARN}first"], "ARN"),
        ([f"{ARN}l{number}:1" for number in range(6)], "Layers"),
        (["../../etc:1"], "ARN"),
    ):
        refused(invalid, loose.update_function_configuration, word, FunctionName="refusing", Layers=bad)
    half = [publish(aws, f"half-{side}", {"x": os.urandom(600_000)})["LayerVersionArn"] for side in "ab"]
    refused(invalid, loose.update_function_configuration, "exceeds", FunctionName="refusing", Layers=half)
    aws.update_function_configuration(FunctionName="refusing", Layers=half[:1])
    active(aws, "refusing")
    large = zipped({"app.py": HANDLER, "x": os.urandom(600_000)})
    refused(invalid, aws.update_function_code, "exceeds", FunctionName="refusing", ZipFile=large)
    assert invoke(aws, "refusing")["result"][1] == ["x"]
    loose.close()
    aws.delete_function(FunctionName="refusing")


def test_layers_are_there_after_a_kill(fresh: Callable[..., WorkerProcess]) -> None:
    process = fresh({})
    aws = client(process)
    arn = publish(aws, "lasting", {"python/lone.py": module("lasting")})["LayerVersionArn"]
    create(aws, "lasting", {"app.py": HANDLER}, Layers=[arn])
    process.kill()
    process.start()
    aws.close()
    aws = client(process)
    active(aws, "lasting")
    assert invoke(aws, "lasting")["result"][0]["lone"] == "lasting"
    assert aws.list_layers()["Layers"][0]["LatestMatchingVersion"]["LayerVersionArn"] == arn
    aws.close()


def test_the_broker_takes_names_of_trees_alone() -> None:
    given = {"type": "start", "id": 1, "code": "a/b", "handler": "f:f", "env": {}, "memory": 1 << 20, "tmpfs_size": 0}
    given |= {"pids": 1, "cpus": None, "imports": [], "zygote": "auto"}
    good = "0" * 64
    for layers, accepted in (
        ("", True),
        (good, True),
        (good[1:], False),
        (f"{good}/", False),
        ("../" * 21 + "a", False),
    ):
        ours, theirs = broker_protocol.socketpair()
        with ours, theirs:
            ours.send(json.dumps({**given, "layers": layers}).encode())
            if accepted:
                found = broker_protocol.receive_request(theirs)
                assert isinstance(found, broker_protocol.Start) and found.layers == layers
            else:
                with pytest.raises(msgspec.ValidationError, match="layers"):
                    broker_protocol.receive_request(theirs)
