"""What the pages say of the repository is so: paths exist, links lead somewhere, names and numbers are the code's."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import re
import struct
import tomllib
from pathlib import Path

import click
import msgspec
import pytest

import olsock
from olsock import aio, channel, cli, host, packets
from olsock.runtime import wire
from olsock_worker import cli as worker_cli
from olsock_worker import ol_yaml, settings
from support.documents import ROOT, anchors, blocks, links, pages, paths, section, tables

pytestmark = pytest.mark.unit

README, ARCHITECTURE, WORKER = ROOT / "README.md", ROOT / "docs" / "architecture.md", ROOT / "docs" / "worker.md"
PAGES = pages()


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


# The repository.


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_exist(page: Path) -> None:
    """Relative to the root; the pages of a folder may also name what is beside them."""
    for path in paths(page):
        places = (ROOT, page.parent)
        assert any(list(place.glob(path)) if "*" in path else (place / path).exists() for place in places), path


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.mark.parametrize("page", [README, ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md")], ids=page_id)
def test_lines_are_wrapped(page: Path) -> None:
    """Tables and fenced blocks are as long as they are."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in prose.splitlines() if "|---" in line and not line.startswith("|")], "a broken table"
    assert not [line for line in prose.splitlines() if len(line) > 110 and not line.startswith("|")]


def test_the_code_map_names_every_folder_of_code() -> None:
    named = paths(README)
    for package in ("olsock", "worker/olsock_worker", "csrc"):
        for folder in (entry for entry in (ROOT / package).rglob("*") if entry.is_dir()):
            code = list(folder.glob("*.py")) + list(folder.glob("*.c"))
            relative = str(folder.relative_to(ROOT))
            assert not code or f"{relative}/" in named, f"{relative} is not in the code map"


def test_the_two_commands_can_be_run() -> None:
    commands = section(README, "Two commands")
    for name in ("demo", "test"):
        assert f"./scripts/{name}" in commands
        assert os.access(ROOT / "scripts" / name, os.X_OK)


def test_requirements_are_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = section(README, "Requirements")
    assert f"CPython {project['requires-python'].removeprefix('>=')} or later" in text
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{project['version']}]" in changelog


# Names of the library.


@pytest.mark.parametrize("page", [README, ARCHITECTURE, WORKER], ids=page_id)
def test_names_of_the_library_exist(page: Path) -> None:
    """`olsock.Name`, `olsock.module.name` and `aio.Name` in code spans."""
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        for dotted in re.findall(r"\b(?:olsock|aio)(?:\.[A-Za-z_]\w*)+", span):
            if dotted.endswith((".py", ".md", ".service", ".so", ".c", ".h", ".json")):
                continue
            found: object = olsock
            for name in dotted.split(".")[1:] if dotted.startswith("olsock.") else dotted.split("."):
                found = getattr(found, name, None)
            assert found is not None, f"{page.name}: {dotted}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_blocks_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)


def test_options_of_commands_exist() -> None:
    """Every long option that a page gives to one of our commands is one of its options."""
    commands = {**_commands("olsock", cli.main), **_commands("olsock-worker", worker_cli.main)}
    seen = 0
    for page in PAGES:
        for line in page.read_text().splitlines():
            for name, command in commands.items():
                match = re.search(rf"\b{name}((?: [^`]*)?)", line)
                if match is None:
                    continue
                ours = match[1].split(" -- ")[0]
                known = {
                    spelling for each in command.params if isinstance(each, click.Option) for spelling in each.opts
                }
                for option in re.findall(r"(?<= )--[a-z-]+", ours):
                    assert option in known | {"--help"}, f"{page.name}: {name} {option}"
                    seen += 1
    assert seen > 5


def _commands(name: str, group: click.Group) -> dict[str, click.Command]:
    """Every command by what is typed for it, those of groups in groups as well."""
    found: dict[str, click.Command] = {}
    for word, each in group.commands.items():
        found |= _commands(f"{name} {word}", each) if isinstance(each, click.Group) else {f"{name} {word}": each}
    return found


# Numbers of docs/architecture.md.


def test_frames_are_the_protocols() -> None:
    rows = tables(section(ARCHITECTURE, "Frames"))
    kinds = {row[1].strip("`"): (int(row[0]), row[2]) for row in rows}
    constants = {name: value for name, value in vars(wire).items() if name.isupper() and isinstance(value, int)}
    numbers = wire.FROM_BOX | wire.FROM_HOST
    assert kinds.keys() == {name for name, value in constants.items() if value in numbers and name != "MORE"}
    for name, (number, direction) in kinds.items():
        assert constants[name] == number
        sides = {"to the sandbox": {wire.FROM_HOST}, "from the sandbox": {wire.FROM_BOX}}.get(
            direction, {wire.FROM_HOST, wire.FROM_BOX}
        )
        assert {side for side in (wire.FROM_HOST, wire.FROM_BOX) if number in side} == sides, name


def test_bounds_are_the_codes() -> None:
    """The table of bounds names a constant and its value."""
    places = {"wire": wire, "channel": channel, "packets": packets, "host": host}
    rows = tables(section(ARCHITECTURE, "Bounds"))
    assert len(rows) >= 4
    for row in rows:
        module, name = row[1].strip("`").split(".")
        value = getattr(places[module], name)
        size = value.size if isinstance(value, struct.Struct) else value
        assert _bytes(row[2]) == size, row


def _bytes(text: str) -> int:
    number, unit = text.split()
    return int(number) * {"B": 1, "KiB": 1024, "MiB": 1024 * 1024}[unit]


def test_packets_are_the_codes() -> None:
    rows = tables(section(ARCHITECTURE, "Packets"))
    names = {row[1].strip("`"): int(row[0]) for row in rows}
    header = (ROOT / "csrc" / "child" / "message.h").read_text()
    declared = {name: int(number) for name, number in re.findall(r"OLS_([A-Z]+) = (\d+),", header)}
    assert names == declared
    assert all(getattr(packets, name) == number for name, number in names.items())


# docs/worker.md.


def test_keys_of_ol_yaml_are_all_described() -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(ol_yaml._File)}
    described = {row[0].strip("`") for row in tables(section(WORKER, "ol.yaml"))}
    assert described == fields


def test_settings_are_all_described() -> None:
    for title, struct_type in (
        ("Settings", settings.Settings),
        ("Defaults of functions", settings.FunctionDefaults),
        ("HTTP limits", settings.Http),
        ("Credentials", settings.Credentials),
        ("Events", settings.Events),
    ):
        described = {row[0].strip("`"): row[1].strip("`") for row in tables(section(WORKER, title))}
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct_type)}
        fields.pop("http", None)
        fields.pop("function", None)
        fields.pop("credentials", None)
        fields.pop("events", None)
        assert described.keys() == fields.keys(), title
        for name, shown in described.items():
            default = fields[name].default
            if default is msgspec.NODEFAULT:
                default = fields[name].default_factory()
            assert shown == msgspec.json.encode(default).decode(), name


def test_every_kind_of_error_is_described() -> None:
    """As the code spells them: the third argument of `fail`, `_refuse`, `_error` and the like, a status before it."""
    described = {(int(row[0]), row[1].strip("`")) for row in tables(section(WORKER, "Replies")) if row[1] != "-"}
    found: set[tuple[int, str]] = set()
    for path in (ROOT / "worker" / "olsock_worker").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            constants = [each.value for each in _items(node) if isinstance(each, ast.Constant)]
            for status, kind in itertools.pairwise(constants):
                if (
                    type(status) is int
                    and 400 <= status < 600
                    and isinstance(kind, str)
                    and re.fullmatch("[a-z_]+", kind)
                ):
                    found.add((status, kind))
    missing = found - described
    assert not missing, f"not described: {sorted(missing)}"
    spelled = " ".join(path.read_text() for path in (ROOT / "worker" / "olsock_worker").glob("*.py"))
    spelled += (ROOT / "olsock" / "runtime" / "handler.py").read_text()
    for _, kind in described:
        assert f'"{kind}"' in spelled, f"{kind} is described, and not in the code"


def _items(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Call):
        return list(node.args)
    return list(node.elts) if isinstance(node, ast.Tuple) else []


def test_asyncio_has_what_the_readme_says() -> None:
    """ "Everything that waits": the classes of the library, one for one."""
    for name in ("Sandbox", "Process", "Zygote", "Function"):
        assert inspect.isclass(getattr(aio, name))
