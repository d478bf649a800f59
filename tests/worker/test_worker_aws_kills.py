"""SIGKILL of the worker while functions are created, changed, published and deleted: old or new, never torn, nothing lost."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from aws_client import ROLE, active, client, invoke, zipped
from botocore.exceptions import BotoCoreError, ClientError
from worker_process import WorkerProcess

pytestmark = pytest.mark.fault
_KILLS = 20


def code(number: int) -> bytes:
    """Code in two files that have to be of the same version."""
    return zipped(
        {"app.py": f"import other\ndef handler(e, c): return [{number}, other.N]\n", "other.py": f"N = {number}\n"}
    )


class Client(threading.Thread):
    """Changes functions for as long as the worker lives, and knows what was acknowledged."""

    def __init__(self, worker: WorkerProcess, known: dict[str, int], begun: int) -> None:
        super().__init__()
        self._aws = client(worker)
        self.known, self.number, self.attempted = known, begun, ("", -1)  # -1: a deletion
        self.changes = threading.Semaphore(0)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                self._change()
                self.changes.release()
        except (BotoCoreError, ClientError) as error:
            self.error = error
        finally:
            self._aws.close()
            self.changes.release()

    def _change(self) -> None:
        self.number += 1
        name = f"f{self.number % 3}"
        self.attempted = name, self.number
        if name not in self.known:
            self._aws.create_function(
                FunctionName=name,
                Runtime="python3.11",
                Handler="app.handler",
                Role=ROLE,
                Code={"ZipFile": code(self.number)},
            )
        elif self.number % 7 == 0:
            self.attempted = name, -1
            self._aws.delete_function(FunctionName=name)
            del self.known[name]
            self.attempted = "", -1
            return
        else:
            self._aws.update_function_code(FunctionName=name, ZipFile=code(self.number), Publish=self.number % 2 == 0)
        self.known[name] = self.number
        self.attempted = "", -1


def test_nothing_is_lost_or_torn(fresh: Callable[..., WorkerProcess]) -> None:
    process, chance = fresh({}), random.Random(4)
    known: dict[str, int] = {}
    number = 0
    for _ in range(_KILLS):
        changing = Client(process, known, number)
        changing.start()
        for _ in range(chance.randrange(1, 6)):
            assert changing.changes.acquire(timeout=30.0)
        threading.Event().wait(chance.random() * 0.05)  # the kill comes at any moment of the next change
        process.kill()
        changing.join(30.0)
        assert not changing.is_alive() and not isinstance(changing.error, ClientError), changing.error
        number = changing.number
        process.start()
        aws = client(process)
        _settle(aws, known, changing.attempted)
        aws.close()
    aws = client(process)
    for name, expected in known.items():
        active(aws, name)
        assert invoke(aws, name)["result"] == [expected, expected]
        for version in aws.list_versions_by_function(FunctionName=name)["Versions"]:
            first, second = invoke(aws, name, Qualifier=version["Version"])["result"]
            assert first == second
    for name in list(known):
        aws.delete_function(FunctionName=name)
    aws.close()
    for part in ("code", "uploads", "scratch"):
        assert os.listdir(process.state / "store" / part) == []


def _settle(aws: Any, known: dict[str, int], attempted: tuple[str, int]) -> None:
    """Hold what is there against what was acknowledged. The change that was under way may have been made or not."""
    there = {each["FunctionName"]: each["CodeSize"] for each in aws.list_functions()["Functions"]}
    name, number = attempted
    if name and number == -1 and name not in there:
        known.pop(name)
    elif name and number != -1 and name in there:
        active(aws, name)
        found, same = invoke(aws, name)["result"]
        assert found == same and found in (number, known.get(name))
        known[name] = found
    assert there.keys() == known.keys(), "what was acknowledged is lost, or what was deleted is back"
