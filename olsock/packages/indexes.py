"""Where packages come from: the settings of uv and of certificates in an environment, made to work in a sandbox.

A sandbox has nothing of the host, so what these settings name on the host is bound into it: directories of wheels, and
the certificate bundle. Settings that name other places of the host, or that are ours to decide, are left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from olsock.packages.errors import PackageError
from olsock.spec import Bind

PLACE = "/opt/index"  # where directories of wheels and certificates appear inside

_LISTS = {"UV_FIND_LINKS": ",", "UV_INDEX": " ", "UV_DEFAULT_INDEX": "", "UV_INDEX_URL": "", "UV_EXTRA_INDEX_URL": " "}
_OURS = re.compile(
    r"UV_(?:CACHE_DIR|NO_CACHE|CONFIG_FILE|NO_CONFIG|ENV_FILE|WORKING_DIR|PROJECT\w*|PYTHON\w*|MANAGED_PYTHON|NO_MANAGED_PYTHON"
    r"|SYSTEM_PYTHON|BREAK_SYSTEM_PACKAGES|LINK_MODE|COMPILE_BYTECODE|TOOL\w*|INSTALL\w*|UNMANAGED_INSTALL|CREDENTIALS_DIR"
    r"|CONSTRAINT|OVERRIDE|EXCLUDE|BUILD_CONSTRAINT|NO_BUILD\w*|NO_BINARY\w*|ONLY_BINARY\w*|NO_VERIFY_HASHES|REQUIRE_HASHES"
    r"|NO_INDEX|LOG\w*|NO_PROGRESS|NO_COLOR|TARGET|PREFIX|NO_EDITABLE|FROZEN|LOCKED|NO_SYNC|PREVIEW\w*|STACK_SIZE)"
)


@dataclass(slots=True)
class Sources:
    """What a sandbox gets: environment, and binds that the environment names."""

    environment: dict[str, str] = field(default_factory=dict)
    binds: list[Bind] = field(default_factory=list)
    no_index: bool = False  # only directories of wheels; uv itself has an option for that, but no variable

    def bind(self, path: str, setting: str) -> str:
        """Bind a file or directory of the host, once, and return where it is inside."""
        real = os.path.realpath(path)
        if not os.path.exists(real):
            raise PackageError(f"{setting} names {path}, which is not on this host")
        for bind in self.binds:
            if bind.source == real:
                return bind.target
        self.binds.append(Bind(real, f"{PLACE}/{len(self.binds)}"))
        return self.binds[-1].target


def of(environment: Mapping[str, str]) -> Sources:
    """Return what of an environment reaches uv: `UV_*`, `SSL_CERT_FILE` and `SSL_CERT_DIR`."""
    found = Sources(no_index=environment.get("UV_NO_INDEX", "").lower() in ("1", "true", "yes", "on"))
    for name in sorted(environment):
        value = environment[name]
        if name in _LISTS:
            separator = _LISTS[name]
            parts = value.replace("\n", separator or "\n").split(separator) if separator else [value]
            found.environment[name] = separator.join(
                _place(found, part.strip(), name) for part in parts if part.strip()
            )
        elif name in ("SSL_CERT_FILE", "SSL_CERT_DIR") and value:
            found.environment[name] = found.bind(value, name)
        elif name.startswith("UV_") and not _OURS.fullmatch(name):
            found.environment[name] = value
    return found


def _place(found: Sources, value: str, setting: str) -> str:
    """An address as it is; a directory of the host as what it is bound to. An index may have a name before it."""
    name, equals, rest = value.partition("=")
    if setting in ("UV_INDEX", "UV_DEFAULT_INDEX") and equals and re.fullmatch(r"[A-Za-z0-9._-]+", name):
        return f"{name}={_place(found, rest, '')}"
    if value.startswith("file:"):
        return "file://" + found.bind(unquote(urlsplit(value).path), setting or "an index")
    return value if "://" in value else found.bind(value, setting or "an index")
