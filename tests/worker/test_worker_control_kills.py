"""SIGKILL of the worker while layers, function URLs and provisioned concurrency are changed: old or new, nothing torn or lost."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aws_client import active, client, create, invoke, zipped
from botocore.exceptions import BotoCoreError, ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.fault
_KILLS = 12
HANDLER = {"app.py": "import layered\ndef handler(e, c): return layered.N\n"}


@dataclass(frozen=True)
class Known:
    """What there is, as far as was acknowledged."""

    layers: tuple[int, ...] = ()
    url: str | None = None  # its mode
    provisioned: int | None = None


@dataclass
class Changer(threading.Thread):
    """Changes one thing after the other for as long as the worker lives."""

    worker: WorkerProcess
    known: Known
    chance: random.Random
    attempted: Known | None = None  # what there will be if the change under way is made
    error: BaseException | None = None
    changes: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        super().__init__()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        aws = client(self.worker)
        try:
            while True:
                self._change(aws)
                self.changes.release()
        except (BotoCoreError, ClientError) as error:
            self.error = error
        finally:
            aws.close()
            self.changes.release()

    def _change(self, aws: Any) -> None:
        known, kind = self.known, self.chance.randrange(6)
        if kind == 0 or not known.layers:
            number = max(known.layers, default=0) + 1
            self.attempted = replace(known, layers=(*known.layers, number))
            archive = zipped({"python/layered.py": f"N = {number}\n"})
            made = aws.publish_layer_version(LayerName="l", Content={"ZipFile": archive})["Version"]
            self.attempted = replace(known, layers=(*known.layers, made))
        elif kind == 1 and len(known.layers) > 1:
            self.attempted = replace(known, layers=known.layers[1:])
            aws.delete_layer_version(LayerName="l", VersionNumber=known.layers[0])
        elif kind in (2, 3):
            mode = self.chance.choice(["BUFFERED", "RESPONSE_STREAM"])
            self.attempted = replace(known, url=mode)
            change = aws.create_function_url_config if known.url is None else aws.update_function_url_config
            change(FunctionName="f", AuthType="NONE", InvokeMode=mode)
        elif kind == 4 and known.url is not None:
            self.attempted = replace(known, url=None)
            aws.delete_function_url_config(FunctionName="f")
        else:
            count = self.chance.randrange(3)
            self.attempted = replace(known, provisioned=count or None)
            name = {"FunctionName": "f", "Qualifier": "1"}
            if count:
                aws.put_provisioned_concurrency_config(**name, ProvisionedConcurrentExecutions=count)
            else:
                aws.delete_provisioned_concurrency_config(**name)
        self.known, self.attempted = self.attempted, None


def found(aws: Any) -> Known:
    """What there is."""
    layers = sorted(each["Version"] for each in aws.list_layer_versions(LayerName="l")["LayerVersions"])
    urls = aws.list_function_url_configs(FunctionName="f")["FunctionUrlConfigs"]
    kept = aws.list_provisioned_concurrency_configs(FunctionName="f")["ProvisionedConcurrencyConfigs"]
    return Known(
        tuple(layers),
        urls[0]["InvokeMode"] if urls else None,
        kept[0]["RequestedProvisionedConcurrentExecutions"] if kept else None,
    )


@pytest.mark.timeout(300)
def test_nothing_is_lost_or_torn(fresh: Callable[..., WorkerProcess]) -> None:
    process, chance = fresh({}), random.Random(7)
    aws = client(process)
    first = zipped({"python/layered.py": "N = 1\n"})
    layer = aws.publish_layer_version(LayerName="l", Content={"ZipFile": first})
    create(aws, "f", HANDLER, Layers=[layer["LayerVersionArn"]], Publish=True)
    known = found(aws)
    aws.close()
    for _ in range(_KILLS):
        changing = Changer(process, known, random.Random(chance.random()))
        changing.start()
        for _ in range(chance.randrange(1, 6)):
            assert changing.changes.acquire(timeout=30.0)
        threading.Event().wait(chance.random() * 0.03)  # the kill comes at any moment of the next change
        process.kill()
        changing.join(30.0)
        assert not changing.is_alive() and not isinstance(changing.error, ClientError), changing.error
        process.start()
        aws = client(process)
        known = found(aws)
        assert known in (changing.known, changing.attempted)
        for number in known.layers:
            assert aws.get_layer_version(LayerName="l", VersionNumber=number)["Content"]["CodeSize"]
        active(aws, "f")
        assert invoke(aws, "f", Qualifier="1")["result"] == 1
        aws.close()
    aws = client(process)
    if known.provisioned is not None:
        process.until(
            lambda: aws.get_provisioned_concurrency_config(FunctionName="f", Qualifier="1")["Status"] == "READY"
        )
    aws.delete_function(FunctionName="f")
    for number in known.layers:
        aws.delete_layer_version(LayerName="l", VersionNumber=number)
    aws.close()
    for part in ("code", "uploads", "scratch"):
        assert os.listdir(process.state / "store" / part) == []
