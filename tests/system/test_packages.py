"""Packages: resolved and installed in sandboxes, each once, kept apart by content, within limits, with nothing left behind.

The first half needs no network: wheels and source archives made here. The second half takes real packages from an index.
"""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import olsock
from olsock import Lock, PackageError, PackageStore, SpecError, interpreters
from olsock.packages import collect, indexes
from olsock.packages.scratch import remove_tree
from olsock.packages.uv import Uv
from support.require import require
from support.wheels import source, wheel

pytestmark = pytest.mark.system

Open = Callable[..., PackageStore]
TAG = sys.implementation.cache_tag
SHOW = """
import importlib, sys
def f(event):
    found = {}
    for name in event:
        try:
            module = importlib.import_module(name)
            found[name] = [getattr(module, "__version__", getattr(module, "version", None)), getattr(module, "__file__", None)]
        except ImportError:
            found[name] = None
    return found
"""


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    (tmp_path / "wheels").mkdir()
    return tmp_path / "wheels"


@pytest.fixture
def open_store(tmp_path: Path, wheels: Path) -> Iterator[Open]:
    """Open stores over one directory, whose packages are those of `wheels` alone."""
    opened: list[PackageStore] = []

    def open_one(**options: object) -> PackageStore:
        settings = {"network": "none", "environment": {"UV_FIND_LINKS": str(wheels)}, **options}
        opened.append(PackageStore(tmp_path / "store", **settings))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()
    if opened:
        assert leftovers(tmp_path / "store") == []


def leftovers(directory: Path) -> list[str]:
    """What is being made, or locked, or is known without being there."""
    found = [path.name for path in (directory / ".scratch").iterdir() if path.name != ".lock"]
    for tag in directory.glob("cpython-*"):
        found += [path.name for path in (tag / ".locks").iterdir()]
        packages = {path.name for path in tag.iterdir()} - {"closures"}
        found += [path.name for path in (tag / ".records").iterdir() if path.stem not in packages]
        found += [path.name for path in (tag / ".pins").iterdir() if path.read_text() not in packages]
        merged = {path.name for path in (tag / "closures").iterdir()}
        found += [name for name in merged if name.endswith(".json") and name.removesuffix(".json") not in merged]
    return found


def names(directory: Path) -> set[str]:
    """The distributions that are installed."""
    return {path.name.rpartition("-")[0] for path in directory.glob("cpython-*/*-*-*") if path.is_dir()}


@pytest.fixture
def show(tmp_path: Path) -> Callable[..., dict[str, list[str | None] | None]]:
    """Import modules in a function that sees a closure; return what they say of themselves."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "f.py").write_text(SHOW)
    code.chmod(0o755)

    def run(closure: olsock.Closure, *modules: str, **options: object) -> dict[str, list[str | None] | None]:
        with olsock.Function(code, packages=[closure.directory], memory="1G", timeout=60, **options) as function:
            found: dict[str, list[str | None] | None] = function.invoke(list(modules), timeout=60)
            return found

    return run


def test_a_package_is_resolved_installed_and_imported(open_store, wheels, show):
    wheel(wheels, "Some_Name", "1.0", requires=["other>=2"])
    wheel(wheels, "other", "2.5")
    wheel(wheels, "other", "1.0")
    store = open_store()
    lock = store.resolve(["some.name"])
    assert lock.packages == {"some-name==1.0", "other==2.5"} and lock.tag == TAG
    assert lock.requirements == ("some-name",) and Lock.parse(lock.text) == lock
    with store.install(lock) as closure:
        assert closure.packages == lock.packages and closure.key == lock.key and not closure.conflicts
        assert closure.owners() == {"Some_Name": "some-name==1.0", "other": "other==2.5"}
        found = show(closure, "Some_Name", "other", "missing")
        assert found["Some_Name"] == ["1.0", "/var/packages/0/Some_Name.py"]
        assert found["other"] == ["2.5", "/var/packages/0/other.py"] and found["missing"] is None


def test_what_is_installed_is_ours_read_only_and_compiled(open_store, wheels):
    wheel(wheels, "a", files={"a/__init__.py": "", "a/run": "#!/bin/sh\n"}, modes={"a/run": stat.S_IFREG | 0o6777})
    store = open_store()
    with store.install(store.resolve(["a"])) as closure:
        for top in (Path(closure.directory), *Path(store.directory, TAG).glob("a-1.0-*")):
            for path in (top, *top.rglob("*")):
                found = path.lstat()
                assert (found.st_uid, found.st_gid) == (0, 0)
                executable = path.is_dir() or path.name == "run"
                assert stat.S_IMODE(found.st_mode) == (0o555 if executable else 0o444), path
                assert path.is_dir() or found.st_nlink == 2, "the closure has links, not copies"
        (compiled,) = Path(closure.directory).glob("a/__pycache__/*.pyc")
        assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "by the source's hash, which is never checked"


def test_an_empty_lock_has_a_closure(open_store, show):
    store = open_store()
    lock = store.resolve([])
    assert lock.pins == () and lock.packages == frozenset()
    with store.install(lock) as closure:
        assert os.listdir(closure.directory) == [] and closure.owners() == {}
        assert show(closure, "json")["json"] is not None


def test_same_version_with_other_content_is_another_package(open_store, wheels, show):
    store = open_store()
    wheel(wheels, "a", "1.0", {"a.py": "version = 'first'"})
    first = store.install(store.resolve(["a"]))
    wheel(wheels, "a", "1.0", {"a.py": "version = 'second'"})
    second = store.install(store.resolve(["a"]))
    with first, second:
        assert first.packages == second.packages and first.key != second.key
        assert show(first, "a")["a"][0] == "first" and show(second, "a")["a"][0] == "second"
    assert store.contents().packages == 2


def test_namespaces_come_together_and_conflicts_are_decided_and_told(open_store, wheels, show):
    wheel(wheels, "ns-b", files={"ns/b.py": "version = 'b'", "same.py": "version = 'b'", "equal.py": "", "f/x.py": ""})
    wheel(wheels, "ns-a", files={"ns/a.py": "version = 'a'", "same.py": "version = 'a'", "equal.py": "", "f": "file"})
    store = open_store()
    with store.install(store.resolve(["ns-b", "ns-a"])) as closure:
        found = show(closure, "ns.a", "ns.b", "same")
        assert [found[name][0] for name in ("ns.a", "ns.b", "same")] == ["a", "b", "a"]
        lost = {(path, kept, left) for path, kept, left in closure.conflicts if path.count("/") == 0}
        assert lost == {("same.py", "ns-a==1.0", "ns-b==1.0"), ("f", "ns-a==1.0", "ns-b==1.0")}
        assert closure.owners().items() >= {
            ("ns.a", "ns-a==1.0"),
            ("ns.b", "ns-b==1.0"),
            ("same", "ns-a==1.0"),
        }


def test_startup_files_have_no_effect(open_store, wheels, show):
    wheel(wheels, "a", files={"a.py": "version = 1", "a.pth": "import sys; sys.modules['planted'] = sys\n"})
    store = open_store()
    with store.install(store.resolve(["a"])) as closure:
        assert show(closure, "a", "planted")["planted"] is None


def test_extras_and_markers(open_store, wheels):
    wheel(wheels, "a", requires=['b; extra == "more"', 'c; python_version < "3"', 'd; python_version >= "3"'])
    for name in "bcd":
        wheel(wheels, name)
    store = open_store()
    assert store.resolve(["a"]).packages == {"a==1.0", "d==1.0"}
    assert store.resolve(["a[more]"]).packages == {"a==1.0", "b==1.0", "d==1.0"}
    assert store.resolve(["b; python_version < '3'"]).packages == frozenset()


def test_a_hash_decides(open_store, wheels):
    wheel(wheels, "a")
    store = open_store()
    (pin,) = store.resolve(["a==1.0"]).pins
    assert store.resolve([f"a==1.0 --hash={pin.hashes[0]}"]).pins == (pin,)
    with pytest.raises(PackageError, match="hash"):
        store.resolve([f"a==1.0 --hash=sha256:{'0' * 64}"])
    lock = store.resolve(["a"])
    wheel(wheels, "a", files={"a.py": "changed = True"})
    with pytest.raises(PackageError, match="(?i)hash"):
        store.install(lock)
    assert store.contents().packages == 0


# Once each.


def test_threads_install_once(open_store, wheels, monkeypatch):
    for name in "abc":
        wheel(wheels, name)
    store = open_store()
    ran: list[str] = []
    install = Uv.install

    def counted(self: Uv, runtime, scratch, pin, **options):
        ran.append(pin.split("==")[0])
        install(self, runtime, scratch, pin, **options)

    monkeypatch.setattr(Uv, "install", counted)
    locks = [store.resolve(names) for names in (["a", "b"], ["b", "c"], ["a", "c"], ["a", "b"])]
    with ThreadPoolExecutor(4) as pool:
        closures = list(pool.map(store.install, locks))
    assert sorted(ran) == ["a", "b", "c"]
    assert closures[0].directory == closures[3].directory
    for closure in closures:
        closure.close()


PROCESS = """
import sys
import olsock
from olsock.packages.uv import Uv
install = Uv.install
def counted(self, runtime, scratch, pin, **options):
    print("installs", pin.split("==")[0], flush=True)
    install(self, runtime, scratch, pin, **options)
Uv.install = counted
store = olsock.PackageStore(sys.argv[1], network="none", environment={"UV_FIND_LINKS": sys.argv[2]})
lock = store.resolve(["a", "b"])
print("ready", flush=True)
sys.stdin.readline()
closure = store.install(lock)
print("holds", closure.directory, flush=True)
sys.stdin.readline()
closure.close()
store.close()
"""


def test_processes_install_once_and_hold(open_store, wheels, tmp_path):
    for name in "ab":
        wheel(wheels, name)
    store = open_store()
    argv = [sys.executable, "-c", PROCESS, str(tmp_path / "store"), str(wheels)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with ExitStack() as stack:
        running = [stack.enter_context(subprocess.Popen(argv, **pipes)) for _ in range(3)]
        for process in running:
            stack.callback(process.kill)

        def until(process: subprocess.Popen[str], what: str) -> list[str]:
            lines = []
            while not (line := process.stdout.readline()).startswith(what):
                assert line, process.stderr.read()
                lines.append(line)
            return lines

        for process in running:
            until(process, "ready")
        for process in running:
            process.stdin.write("\n")
            process.stdin.flush()
        said = [line for process in running for line in until(process, "holds")]
        assert sorted(said) == ["installs a\n", "installs b\n"]
        assert store.evict(0) > 0 and names(tmp_path / "store") == {"a-1.0", "b-1.0"}, "held by other processes"
        for process in running:
            process.communicate("\n")
            assert process.returncode == 0
    assert store.evict(0) == 0 and names(tmp_path / "store") == set()


# Limits.


def test_least_recently_used_goes_first_and_nothing_that_is_held(open_store, wheels, tmp_path):
    for name in "abcd":
        wheel(wheels, name, files={f"{name}.bin": os.urandom(1 << 20)})
    store = open_store()
    held = store.install(store.resolve(["a"]))
    for name in "bcb":
        store.install(store.resolve([name])).close()
    room = store.contents().bytes
    tight = open_store(max_bytes=room)
    tight.install(tight.resolve(["d"])).close()
    assert names(tmp_path / "store") == {"a-1.0", "b-1.0", "d-1.0"}
    assert Path(held.directory, "a.bin").stat().st_size == 1 << 20
    held.close()
    assert store.evict(0) == 0


def test_a_cache_that_is_full_of_what_is_used_says_so(open_store, wheels, tmp_path):
    for name in "ab":
        wheel(wheels, name, files={f"{name}.bin": os.urandom(1 << 20)})
    store = open_store(max_bytes="2M")
    with store.install(store.resolve(["a"])) as closure:
        with pytest.raises(PackageError, match="max_bytes"):
            store.install(store.resolve(["b"]))
        assert names(tmp_path / "store") == {"a-1.0"} and os.path.exists(f"{closure.directory}/a.bin")
    store.install(store.resolve(["b"])).close()
    assert names(tmp_path / "store") == {"b-1.0"}


def test_a_shared_package_stays_while_one_closure_uses_it(open_store, wheels, tmp_path):
    for name in "abc":
        wheel(wheels, name)
    store = open_store()
    with store.install(store.resolve(["a", "b"])):
        store.install(store.resolve(["b", "c"])).close()
        store.evict(0)
        assert names(tmp_path / "store") == {"a-1.0", "b-1.0"}


@pytest.mark.parametrize(
    "options",
    [
        {"max_bytes": "1"},
        {"max_bytes": None},
        {"max_package": 3.5},
        {"network": "all"},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"allow_source": 1},
    ],
)
def test_settings_that_make_no_sense(tmp_path, options):
    with pytest.raises(SpecError):
        PackageStore(tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_a_directory_that_others_may_write_is_refused(tmp_path):
    (tmp_path / "store").mkdir(mode=0o777)
    (tmp_path / "store").chmod(0o777)
    with pytest.raises(olsock.KernelError, match="others may write"):
        PackageStore(tmp_path / "store", network="none")


# Errors quote the resolver, and leave nothing.


def test_what_cannot_be_resolved(open_store, wheels, tmp_path):
    wheel(wheels, "a", requires=["c<2"])
    wheel(wheels, "b", requires=["c>=2"])
    wheel(wheels, "c", "1.0")
    wheel(wheels, "c", "2.0")
    store = open_store()
    with pytest.raises(PackageError) as missing:
        store.resolve(["no-such-package"])
    assert "no-such-package" in missing.value.output and "no-such-package" in str(missing.value)
    with pytest.raises(PackageError) as conflict:
        store.resolve(["a", "b"])
    assert "c<2" in conflict.value.output and "c>=2" in conflict.value.output
    with pytest.raises(PackageError) as version:
        store.resolve(["c>=3"])
    assert "c>=3" in version.value.output
    for error in (missing, conflict, version):
        assert "\x1b" not in str(error.value) and len(str(error.value)) < 8192
    for line in ("-r /etc/passwd", "a @ file:///etc/passwd", "../a", "/a", "--find-links=/", "a\n-r /etc/passwd"):
        with pytest.raises(SpecError):
            store.resolve([line])
    assert store.contents() == olsock.packages.eviction.Contents(0, 0, 0)


def test_no_network_is_told(open_store):
    store = open_store(environment={"UV_HTTP_RETRIES": "0"}, network="none", timeout=60)
    with pytest.raises(PackageError) as error:
        store._uv._no_index.clear()
        store.resolve(["requests"])
    assert "index cannot be reached" in str(error.value) and error.value.output


def test_time_is_bounded(open_store, wheels):
    source(wheels, "slow", built="import time\ntime.sleep(1000)")
    store = open_store(allow_source=True, timeout=3)
    with pytest.raises(PackageError, match="within 3 seconds"):
        store.install(store.resolve(["slow"]))


@pytest.mark.parametrize("setting", ["UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL"])
def test_an_index_that_is_a_directory(open_store, tmp_path, setting, show):
    """The simple repository layout, named by file:// as a private mirror on disk would be."""
    made = wheel(tmp_path / "simple" / "a", "a")
    (tmp_path / "simple" / "a" / "index.html").write_text(f'<a href="{made.name}">{made.name}</a>')
    (tmp_path / "simple").chmod(0o755)
    address = f"file://{tmp_path}/simple"
    others = {} if setting == "UV_DEFAULT_INDEX" else {"UV_DEFAULT_INDEX": address}
    store = open_store(environment={**others, setting: f"mirror={address}" if setting == "UV_INDEX" else address})
    with store.install(store.resolve(["a"])) as closure:
        assert show(closure, "a")["a"][0] == "1.0"


def test_what_of_an_environment_reaches_uv(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "ca.pem").write_text("")
    found = indexes.of(
        {
            "UV_FIND_LINKS": f"{tmp_path}/one,https://example.org/links",
            "UV_INDEX": f"mine=https://user:secret@example.org/simple file://{tmp_path}/one",
            "UV_INDEX_MINE_PASSWORD": "secret",
            "UV_HTTP_TIMEOUT": "7",
            "SSL_CERT_FILE": f"{tmp_path}/ca.pem",
            "UV_CACHE_DIR": "/shared",
            "UV_PYTHON": "/bin/sh",
            "UV_CONFIG_FILE": "/etc/uv.toml",
            "UV_NO_BUILD": "0",
            "PATH": "/mine",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
    )
    assert {bind.source: bind.target for bind in found.binds} == {
        f"{tmp_path}/one": "/opt/index/1",
        f"{tmp_path}/ca.pem": "/opt/index/0",
    }
    assert not any(bind.writable for bind in found.binds)
    assert found.environment == {
        "UV_FIND_LINKS": "/opt/index/1,https://example.org/links",
        "UV_INDEX": "mine=https://user:secret@example.org/simple file:///opt/index/1",
        "UV_INDEX_MINE_PASSWORD": "secret",
        "UV_HTTP_TIMEOUT": "7",
        "SSL_CERT_FILE": "/opt/index/0",
    }


def test_settings_that_name_what_is_not_there(open_store):
    with pytest.raises(PackageError, match="SSL_CERT_FILE"):
        open_store(environment={"SSL_CERT_FILE": "/nowhere.pem"})


# Hostile archives. uv drops entries that lead out of a wheel, and unpacks links as files; what it leaves is walked again.


@pytest.mark.parametrize("path", ["../../../evil.py", "/evil.py", "hostile-1.0.data/data/../../../../evil.py"])
def test_paths_that_lead_out_of_a_wheel_lead_nowhere(open_store, wheels, tmp_path, path):
    wheel(wheels, "hostile", files={path: "x = 1", "hostile.py": ""})
    store = open_store()
    try:
        store.install(store.resolve(["hostile"])).close()
    except PackageError:
        pass
    inside = tmp_path / "store" / TAG
    assert {found.parent.parent for found in tmp_path.rglob("evil.py")} <= {inside, inside / "closures"}
    assert not Path("/evil.py").exists()


def test_entries_that_are_no_files(open_store, wheels):
    files = {"link.py": "/etc/passwd", "device": "", "hostile.py": ""}
    modes = {"link.py": stat.S_IFLNK | 0o777, "device": stat.S_IFCHR | 0o666}
    wheel(wheels, "hostile", files=files, modes=modes)
    store = open_store()
    with store.install(store.resolve(["hostile"])) as closure:
        assert all(path.is_file() and not path.is_symlink() for path in Path(closure.directory).glob("*.py"))
        assert Path(closure.directory, "link.py").read_text() == "/etc/passwd"


def test_a_link_as_a_directory_is_refused(open_store, wheels):
    wheel(wheels, "hostile", files={"sub": "/etc", "sub/x.py": ""}, modes={"sub": stat.S_IFLNK | 0o777})
    store = open_store()
    with pytest.raises(PackageError):
        store.install(store.resolve(["hostile"]))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"huge.py": b"#" * (40 << 20)}, "bytes"),
        ({"/".join(["d"] * 60) + "/x.py": ""}, "levels"),
        ({"/".join(["d" * 200] * 8) + "/x.py": ""}, "names"),
    ],
)
def test_what_is_too_big_or_too_deep_is_refused(open_store, wheels, files, why):
    wheel(wheels, "hostile", files={"hostile.py": "", **files})
    store = open_store(max_package="32M")
    with pytest.raises(PackageError, match=why):
        store.install(store.resolve(["hostile"]))
    assert store.contents().packages == 0


# Hostile builds.

OUT = "import os\nout = '/var/install/out'\nos.makedirs(out, exist_ok=True)\n"


def test_a_build_is_refused_and_then_allowed(open_store, wheels, show):
    source(wheels, "built", built="assert os.getuid() == 1000 and not os.path.exists('/root/.ssh')")
    with pytest.raises(PackageError, match="allow_source=True") as refused:
        open_store().resolve(["built"])
    assert "built" in refused.value.output
    store = open_store(allow_source=True)
    lock = store.resolve(["built"])
    with store.install(lock) as closure:
        assert show(closure, "built")["built"][0] == "1.0"
    with pytest.raises(PackageError):
        open_store().evict(0)
        open_store().install(lock)


@pytest.mark.parametrize(
    ("built", "why"),
    [
        (OUT + "os.symlink('/etc/passwd', out + '/link')", "a symbolic link"),
        (OUT + "os.mkfifo(out + '/pipe')", "a pipe"),
        (OUT + "import socket; socket.socket(socket.AF_UNIX).bind(out + '/socket')", "a socket"),
        (OUT + "os.mkdir(out + '/other-1.0.dist-info')", "other-1.0"),
        (OUT + "open(out + '/new\\nline', 'w')", "printable"),
        (OUT + "open(out.encode() + b'/\\xff', 'w')", "printable"),
        (OUT + "for n in range(300): open(out + '/%d' % n, 'wb').write(b'x' * (1 << 20))", "bytes"),
        (
            "with open('/var/install/fill', 'wb') as f:\n    for _ in range(2000): f.write(b'x' * (1 << 20))",
            "bytes|File too",
        ),
        (OUT + "os.chdir(out)\nfor _ in range(3000):\n    os.mkdir('d')\n    os.chdir('d')", "levels|deep"),
        ("raise SystemExit('\\x1b[31mno\\x00')", "no"),
    ],
)
def test_a_hostile_build_is_refused(open_store, wheels, built, why):
    source(wheels, "hostile", built=built)
    store = open_store(allow_source=True, max_package="64M")
    with pytest.raises(PackageError, match=why) as error:
        store.install(store.resolve(["hostile"]))
    assert "\x1b" not in str(error.value)
    assert store.contents().packages == 0


def test_what_a_build_leaves_running_ends_before_its_files_are_read(open_store, wheels):
    loop = "while :; do mkdir -p /var/install/out; date > /var/install/out/late; done"
    source(
        wheels,
        "hostile",
        built=f"import subprocess\nnull = subprocess.DEVNULL\nsubprocess.Popen(['sh', '-c', {loop!r}], "
        "start_new_session=True, stdin=null, stdout=null, stderr=null)",
    )
    store = open_store(allow_source=True)
    with store.install(store.resolve(["hostile"])) as closure:
        late = Path(closure.directory, "late")
        before = late.stat().st_mtime_ns if late.exists() else 0
        select.poll().poll(200)
        assert before == (late.stat().st_mtime_ns if late.exists() else 0)


def test_access_lists_and_set_id_bits_do_not_survive(open_store, wheels):
    built = (
        OUT + "path = out + '/tool'\nopen(path, 'w').close()\nos.chmod(path, 0o6777)\n"
        "os.setxattr(path, 'user.note', b'x')\n"
        "import struct\nacl = struct.pack('<I' + 'HHI' * 5, 2, 1, 6, 0xffffffff, 2, 6, 1000, 4, 4, 0xffffffff, "
        "16, 6, 0xffffffff, 32, 4, 0xffffffff)\n"
        "os.setxattr(path, 'system.posix_acl_access', acl)\n"
    )
    source(wheels, "hostile", built=built)
    store = open_store(allow_source=True)
    with store.install(store.resolve(["hostile"])) as closure:
        tool = f"{closure.directory}/tool"
        assert os.listxattr(tool) == [] and stat.S_IMODE(os.stat(tool).st_mode) == 0o444 and os.stat(tool).st_uid == 0


def test_trees_of_any_depth_are_removed(tmp_path):
    deep = tmp_path / "deep"
    deep.mkdir()
    at = os.open(deep, os.O_RDONLY)
    for number in range(5000):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.symlink("/etc", "link", dir_fd=below)
        os.close(at)
        at = below
        assert number < 5000
    os.close(at)
    parent = os.open(tmp_path, os.O_RDONLY)
    remove_tree(parent, "deep")
    os.close(parent)
    assert not deep.exists() and Path("/etc/passwd").exists()


# Real packages.


@pytest.fixture(scope="session")
def real(index: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One directory for the stores of these tests, so that each package is fetched once."""
    return str(tmp_path_factory.mktemp("packages") / "store")


def test_requests(real, show):
    with PackageStore(real) as store:
        lock = store.resolve(["requests"])
        assert {each.split("==")[0] for each in lock.packages} >= {"requests", "urllib3", "idna", "certifi"}
        with store.install(lock) as closure:
            assert show(closure, "requests")["requests"][1] == "/var/packages/0/requests/__init__.py"
            assert closure.owners()["requests"].startswith("requests==")


def test_two_numpys_side_by_side(real, show):
    with PackageStore(real) as store:
        old, new = (store.install(store.resolve([line])) for line in ("numpy==1.26.4", "numpy>=2"))
        with old, new:
            assert show(old, "numpy")["numpy"][0] == "1.26.4"
            assert show(new, "numpy")["numpy"][0].startswith("2.")
            program = "import sys; sys.path.insert(0, '/packages'); import numpy; print(numpy.__version__, numpy.arange(3).sum())"
            with olsock.Sandbox(binds=[f"{old.directory}:/packages"], memory="1G") as box:
                done = box.run([olsock.rootfs.host_python(), "-I", "-S", "-B", "-c", program], check=True)
                assert done.stdout == b"1.26.4 3\n"


def test_pydantic_with_an_extra_and_pillow(real, show):
    text = b"pydantic[email]>=2  # with an extra\npillow\ntomli; python_version < '3.11'\n"
    with PackageStore(real) as store:
        lock = store.resolve(collect({"requirements.txt": text}.get, "f.py"))
        found = {each.split("==")[0] for each in lock.packages}
        assert found >= {"pydantic", "pydantic-core", "email-validator", "pillow"} and "tomli" not in found
        with store.install(lock) as closure:
            loaded = show(closure, "pydantic", "PIL.Image", "email_validator", "numpy")
            assert loaded["numpy"] is None and all(
                loaded[name] for name in ("pydantic", "PIL.Image", "email_validator")
            )
            assert closure.owners()["PIL"].startswith("pillow==")


def test_a_real_source_package_is_refused_and_then_allowed(real, show):
    """docopt was never published as a wheel; building it needs setuptools from the index."""
    with PackageStore(real) as store:
        with pytest.raises(PackageError, match="allow_source") as error:
            store.resolve(["docopt==0.6.2"])
        assert "docopt" in error.value.output
    with PackageStore(real, allow_source=True) as store:
        with store.install(store.resolve(["docopt==0.6.2"])) as closure:
            assert show(closure, "docopt")["docopt"][0] == "0.6.2"


def test_script_metadata_for_another_interpreter(real, show):
    others = [each for name, each in interpreters.find().items() if each.tag != TAG]
    require(others, "needs a second interpreter")
    script = b"# /// script\n# dependencies = ['six==1.16.0']\n# ///\n"
    with PackageStore(real) as store:
        lock = store.resolve(collect({"f.py": script}.get, "f.py"), others[0].path)
        assert lock.tag == others[0].tag and lock.packages == {"six==1.16.0"}
        with store.install(lock) as closure:
            assert show(closure, "six", python=others[0].path)["six"][0] == "1.16.0"
            assert list(Path(closure.directory).glob(f"__pycache__/six.{others[0].tag}.pyc"))
        with pytest.raises(SpecError, match="tag|interpreter"):
            store.install(lock, olsock.rootfs.host_python())


def test_real_errors(real):
    with PackageStore(real) as store:
        with pytest.raises(PackageError) as missing:
            store.resolve(["a-name-that-nobody-would-take-5b1f"])
        assert "a-name-that-nobody-would-take-5b1f" in missing.value.output
        with pytest.raises(PackageError) as conflict:
            store.resolve(["requests==2.31.0", "urllib3<1.21"])
        assert "urllib3" in conflict.value.output
    with PackageStore(
        real, environment={"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_HTTP_RETRIES": "0"}
    ) as store:
        with pytest.raises(PackageError, match="cannot be reached"):
            store.resolve(["requests"])


def test_threads_resolve_and_install_at_once(real):
    with PackageStore(real) as store:
        errors: list[BaseException] = []

        def one(line: str) -> None:
            try:
                store.install(store.resolve([line])).close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=one, args=(line,)) for line in ("idna", "certifi", "idna", "six")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
