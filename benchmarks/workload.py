"""A synthetic load: functions over the packages that are used most, with their real dependency closures.

The packages are what the Python Package Index serves most often, in that order (github.com/hugovk/top-pypi-packages, 2025),
without build tools and commands, which no function imports. One resolution pins them all, so that they get along.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from peers import PeerError
from report import Tick, progress

import olsock
from olsock import bytecode, interpreters
from olsock.packages.needs import needs
from olsock.trees.bind import complete

EXPONENT = 1.5  # of Zipf's law, for packages and for functions
MOST_PACKAGES = 6  # that a function asks for by name; uniformly 1 to this
INSTALLS = 4
PANDAS = ["numpy", "pandas"]
STORE = "bench-packages"

# Name at the index, and the module that a function imports of it.
PACKAGES = dict(
    line.split()
    for line in """
    boto3 boto3
    urllib3 urllib3
    botocore botocore.session
    requests requests
    certifi certifi
    typing-extensions typing_extensions
    charset-normalizer charset_normalizer
    idna idna
    packaging packaging.version
    grpcio-status grpc_status.rpc_status
    python-dateutil dateutil.parser
    s3transfer s3transfer
    aiobotocore aiobotocore.session
    six six
    numpy numpy
    pyyaml yaml
    s3fs s3fs
    importlib-metadata importlib_metadata
    protobuf google.protobuf.message
    cryptography cryptography.fernet
    pydantic pydantic
    fsspec fsspec
    cffi cffi
    pycparser pycparser
    pandas pandas
    attrs attr
    platformdirs platformdirs
    click click
    rsa rsa
    jmespath jmespath
    pytz pytz
    google-api-core google.api_core.client_options
    markupsafe markupsafe
    jinja2 jinja2
    zipp zipp
    pluggy pluggy
    pyasn1 pyasn1.codec.der.decoder
    pydantic-core pydantic_core
    filelock filelock
    pygments pygments.lexers
    colorama colorama
    cachetools cachetools
    h11 h11
    google-auth google.auth
    sniffio sniffio
    anyio anyio
    googleapis-common-protos google.rpc.status_pb2
    annotated-types annotated_types
    pyasn1-modules pyasn1_modules.rfc2459
    tomli tomli
    iniconfig iniconfig
    tzdata tzdata
    httpx httpx
    jsonschema jsonschema
    aiohttp aiohttp
    pyjwt jwt
    httpcore httpcore
    wrapt wrapt
    tomlkit tomlkit
    multidict multidict
    """.strip().splitlines()
)


@dataclass(frozen=True, slots=True)
class Function:
    """One function of the load."""

    name: str
    asked: tuple[str, ...]  # packages by name, as its requirements.txt would have them
    code: str  # a directory
    closure: olsock.Closure


def cache() -> Path:
    """Where packages are kept from run to run."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "olsock")


@contextlib.contextmanager
def store() -> Iterator[olsock.PackageStore]:
    """The packages of the benchmarks."""
    cache().mkdir(parents=True, exist_ok=True)
    with olsock.PackageStore(cache() / STORE) as opened:
        yield opened


def lock_for(packages: olsock.PackageStore, names: Sequence[str], title: str) -> olsock.Lock:
    """The lock of some packages at their newest, resolved in the first run and kept; `PeerError` without an index."""
    runtime = interpreters.get(sys.executable)
    file = cache() / f"bench-{title}-{runtime.tag}.lock"
    if file.exists():
        with contextlib.suppress(olsock.SpecError):
            known = olsock.Lock.parse(file.read_text())
            if sorted(known.requirements) == sorted(names):
                return known
    try:
        lock = packages.resolve(names)
    except olsock.PackageError as error:
        raise PeerError(
            f"{len(names)} packages cannot be resolved: is a package index reachable? {_first(error)}"
        ) from None
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.write_text(lock.text)
    fresh.rename(file)
    return lock


def install(packages: olsock.PackageStore, lock: olsock.Lock) -> olsock.Closure:
    """Install what a lock lacks, showing how far that is."""
    done = threading.Event()
    with progress(f"installing {len(lock.pins)} packages") as tick:
        watcher = threading.Thread(target=_watch, args=(packages, len(lock.pins), done, tick))
        watcher.start()
        try:
            return packages.install(lock)
        except olsock.PackageError as error:
            raise PeerError(f"not all packages could be installed: {_first(error)}") from None
        finally:
            done.set()
            watcher.join()


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _watch(packages: olsock.PackageStore, total: int, done: threading.Event, tick: Tick) -> None:
    while not done.wait(1.0):
        tick(min(packages.contents().packages, total), total)


def pandas(stack: contextlib.ExitStack) -> olsock.Closure:
    """Numpy and pandas, held for as long as `stack`."""
    packages = stack.enter_context(store())
    return stack.enter_context(install(packages, lock_for(packages, PANDAS, "pandas")))


def functions(packages: olsock.PackageStore, folder: Path, count: int, seed: int) -> list[Function]:
    """Draw functions, write their code below `folder`, and merge their closures, which are the caller's to close."""
    lock = lock_for(packages, list(PACKAGES), "trace")
    with install(packages, lock) as everything:
        closures = _closures(everything)
    draw = random.Random(seed)
    names = list(PACKAGES)
    wanted: list[tuple[str, ...]] = []
    for _ in range(count):
        chosen: dict[str, None] = {}
        most = draw.randint(1, MOST_PACKAGES)
        while len(chosen) < most:
            chosen[draw.choices(names, zipf(len(names)))[0]] = None
        wanted.append(tuple(chosen))

    def make(number: int) -> Function:
        asked = wanted[number]
        code = folder / f"function-{number}"
        code.mkdir(mode=0o755)
        (code / "f.py").write_text(source(PACKAGES[each] for each in asked))
        compile_beside(code)
        own = lock.restrict(frozenset().union(*(closures[each] for each in asked)))
        return Function(code.name, asked, str(code), packages.install(own))

    with ThreadPoolExecutor(INSTALLS) as pool, progress(f"closures of {count} functions") as tick:
        made = []
        for number, each in enumerate(pool.map(make, range(count))):
            made.append(each)
            tick(number + 1, count)
    return made


def _closures(everything: olsock.Closure) -> Mapping[str, frozenset[str]]:
    """What each package needs, itself included."""
    direct = needs(everything.directory, everything.packages)
    exact = {package.partition("==")[0]: package for package in everything.packages}
    return {name: complete([exact[name]], direct, everything.packages) for name in PACKAGES}


def source(modules: Iterator[str] | Sequence[str]) -> str:
    """A handler that imports modules and does next to nothing."""
    return "".join(f"import {each}\n" for each in modules) + "\n\ndef f(event):\n    return event\n"


def compile_beside(code: Path) -> None:
    """Write bytecode beside the code of a function, as the worker does when it deploys one."""
    directory = os.open(code, os.O_RDONLY | os.O_DIRECTORY)
    try:
        bytecode.write(directory, bytecode.parse(bytecode.compile_code(code)))
    finally:
        os.close(directory)


def zipf(count: int) -> list[float]:
    """Weights of the first, the second and so on."""
    return [rank**-EXPONENT for rank in range(1, count + 1)]


def invocations(load: Sequence[Function], popular: Sequence[int], count: int, seed: int) -> list[Function]:
    """Draw calls; `popular` are the functions by rank."""
    chosen = random.Random(seed).choices(popular, zipf(len(popular)), k=count)
    return [load[number] for number in chosen]


def ranking(count: int, seed: int) -> list[int]:
    """An order of popularity, drawn anew for each trial: the first function has two calls of five."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def counts(calls: Sequence[Function]) -> Counter[str]:
    """How often each function is called."""
    return Counter(each.name for each in calls)
