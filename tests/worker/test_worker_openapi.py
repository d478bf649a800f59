"""docs/openapi.yaml is true: routes, statuses and kinds of error are the worker's, and schemathesis finds no answer beyond it."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from worker_process import WorkerProcess

from support.documents import ROOT, section, tables

with warnings.catch_warnings(action="ignore"):
    import schemathesis
    from schemathesis.checks import CHECKS
    from schemathesis.generation import GenerationMode

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs" / "openapi.yaml").read_text())
METHODS = frozenset(("get", "head", "post", "put", "patch", "delete", "options"))
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS]
EXAMPLES = 12  # of each kind, for each operation: all of them together take some seconds

FUNCTIONS = {
    "echo": ("def f(event):\n    return event\n", ""),
    "function": ("def f(event):\n    return event\n", ""),
    "only_get": ("def f(event):\n    return 1\n", "triggers: {http: [{method: GET}]}\n"),
}


@pytest.fixture(scope="module")
def functions() -> dict[str, tuple[str, str]]:
    return FUNCTIONS


def responses() -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"]["/run/{function}"]["get"]["responses"]
    return {
        status: DOCUMENT["components"]["responses"][each["$ref"].rpartition("/")[2]] for status, each in found.items()
    }


@pytest.mark.unit
def test_it_is_well_formed() -> None:
    """Every operation can be read, and every reference leads somewhere."""
    schema = schemathesis.openapi.from_dict(copy.deepcopy(DOCUMENT))
    found = [each.ok() for each in schema.get_all_operations()]
    assert sorted((each.path, each.method) for each in found) == sorted(OPERATIONS)

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [each for inner in value.values() for each in references(inner)]
        return [each for inner in value for each in references(inner)] if isinstance(value, list) else []

    for reference in set(references(DOCUMENT)):
        place: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


@pytest.mark.unit
def test_its_kinds_of_error_are_those_of_the_page() -> None:
    """Row for row the table "Replies" of docs/worker.md, but for what is of Invoke or of function URLs alone."""
    described = {
        (row[0], row[1].strip("`"))
        for row in tables(section(ROOT / "docs" / "worker.md", "Replies"))
        if "by Invoke:" not in row[2] and "at a function URL" not in row[2]
    }
    found: set[tuple[str, str]] = set()
    retry = set()
    for status, response in responses().items():
        schema = response["content"].get("application/json", {}).get("schema", {})
        kinds = schema.get("properties", {}).get("error", {}).get("properties", {}).get("type", {}).get("enum", [])
        found |= {(status, kind) for kind in kinds}
        retry |= {status for name in response["headers"] if name == "Retry-After"}
    assert found == described
    assert retry == {"429", "503"}


@pytest.mark.system
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[f"{method} {path}" for path, method in OPERATIONS])
def test_there_is_such_a_route(worker: WorkerProcess, path: str, method: str) -> None:
    target = path.replace("{function}", "there-is-none").replace("{path}", "a/b%2Fc")
    reply = worker.request(target, method=method.upper())
    assert reply.status not in (405, 501), reply.body
    assert b"not_found" not in reply.body and b"no operation" not in reply.body
    known = DOCUMENT["paths"][path][method]["responses"]
    assert str(reply.status) in known
    assert re.fullmatch(DOCUMENT["components"]["headers"]["id"]["schema"]["pattern"], reply.headers["x-request-id"])


@pytest.mark.system
def test_there_are_no_others(worker: WorkerProcess) -> None:
    """The control: a path that is not in the document, and methods that are not."""
    assert worker.request("/openapi", method="GET").error == "not_found"
    assert worker.request("/runs/echo", method="GET").error == "not_found"
    for path, method in (("/status", "POST"), ("/stats", "DELETE"), ("/metrics", "PUT"), ("/run/only_get", "POST")):
        reply = worker.request(path, method=method)
        assert reply.status == 405 and "GET" in reply.headers["allow"]
    assert b"no operation" in worker.request("/registry/", method="PUT").body


@pytest.mark.system
def test_a_query_of_many_fields(worker: WorkerProcess) -> None:
    assert worker.request("/status?a=&b=&c=&function=echo", method="GET").status == 200
    reply = worker.request("/status?a=&b=&c=&d=&function=echo", method="GET")
    assert (reply.status, reply.error) == (400, "bad_request")


# -- schemathesis ---------------------------------------------------------------------------------------------------


def document(names: list[str]) -> dict[str, Any]:
    """The document for event functions alone; of the paths that name a function, with these names or any."""
    made = copy.deepcopy(DOCUMENT)
    for item in made["paths"].values():
        for method, operation in item.items():
            if method in METHODS:
                operation["responses"].pop("default", None)  # a web application's; these functions are none
    if names:
        made["paths"] = {path: item for path, item in made["paths"].items() if path.startswith("/run/")}
        made["components"]["parameters"]["function"]["schema"] = {"type": "string", "enum": names}
    return made


SCHEMAS = {"any": document([]), "echo": document(["echo"])}
CASES = [
    (names, path, method, mode)
    for names, schema in SCHEMAS.items()
    for path, item in schema["paths"].items()
    for method in item
    if method in METHODS
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    if mode is GenerationMode.POSITIVE or "parameters" in {*item, *item[method]}  # or nothing in it could be wrong
]
UPLOAD = ("/registry/{function}", "post")  # an archive is more than a schema can say
CHECKED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
)


@schemathesis.serializer("application/gzip")
def _gzip(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.mark.attack
@pytest.mark.parametrize(
    ("names", "path", "method", "mode"), CASES, ids=[f"{names} {mode.value} {m} {p}" for names, p, m, mode in CASES]
)
def test_schemathesis(worker: WorkerProcess, names: str, path: str, method: str, mode: GenerationMode) -> None:
    """Whatever is asked, by the rules or against them: an answer that the document knows, and no 5xx."""
    schema = schemathesis.openapi.from_dict(copy.deepcopy(SCHEMAS[names]))
    cases = schema[path][method.upper()].as_strategy(generation_mode=mode)
    checks = CHECKS.get_by_names(
        [each for each in CHECKED if not (each == "positive_data_acceptance" and (path, method) == UPLOAD)]
    )

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases)
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=f"http://127.0.0.1:{worker.port}", checks=checks, timeout=30)

    ask()
    assert worker.call("echo", 1).json == 1
