"""The cffi recipe of `olsock._core._olsock`: which declarations Python sees and which sources implement them.

How they are compiled (hardening, warnings, sanitizers) is decided in setup.py, for everything written in C alike.
"""

from __future__ import annotations

from pathlib import Path

import cffi

# setuptools runs this with the project's root as the working directory and wants source paths relative to it.
CORE = Path("csrc/core")
AREAS = ("error", "mount", "process", "cgroup", "seccomp", "probe")

# The generated glue and cffi's own header are not ours to keep clean of these; csrc/core is compiled with all of them.
PREAMBLE = """
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include "olsock.h"
"""

ffi = cffi.FFI()
# The same text that the compiler checks the sources against (core/olsock.h), so the two cannot drift apart.
ffi.cdef("\n".join((CORE / "api" / f"{area}.h").read_text(encoding="utf-8") for area in AREAS))
ffi.set_source(
    "olsock._core._olsock",
    PREAMBLE,
    sources=[str(path) for path in sorted(CORE.glob("*.c"))],
    depends=[str(path) for path in sorted(CORE.rglob("*.h"))],
    include_dirs=[str(CORE)],
    libraries=["seccomp"],
    # cffi's header defines a bare Py_LIMITED_API, which means the API of Python 3.2; name the one we require.
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
)
