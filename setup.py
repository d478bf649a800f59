"""Everything compiled: the cffi core, the fork extension of the zygotes, the spawner. Metadata is in pyproject.toml.

OLSOCK_SANITIZE=address,undefined builds with sanitizers instead of hardening (scripts/sanitize); CC names the compiler.
"""

from __future__ import annotations

import os
import platform
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = Path("csrc/core")
CHILD = "csrc/child"  # what an init and a forked handler do alike
SPAWNER = Path("olsock/_core/olsock-spawner")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
HARDENING = [
    "-O2",
    "-U_FORTIFY_SOURCE",  # Debian's Python brings a lower level of its own
    "-D_FORTIFY_SOURCE=3",
    "-fstack-protector-strong",
    "-fstack-clash-protection",
    "-fvisibility=hidden",
    {"x86_64": "-fcf-protection=full", "aarch64": "-mbranch-protection=standard"}.get(platform.machine(), ""),
]
HARDENED_LINK = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]
DEBUGGABLE = ["-O1", "-g", "-fno-omit-frame-pointer", "-U_FORTIFY_SOURCE"]

SANITIZE = [name for name in os.environ.get("OLSOCK_SANITIZE", "").split(",") if name]
# AddressSanitizer is a runtime library that has to be loaded first. The fork extension is loaded by interpreters inside
# sandboxes, where nothing is preloaded, and the spawner is static, which ASan does not support; both sit behind a
# seccomp filter that a report could not pass. UBSan needs no runtime when it traps, so these two get that.
TRAPPING = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"] if "undefined" in SANITIZE else []


def sources(folder: str) -> list[str]:
    return [str(path) for path in sorted(Path(folder).glob("*.c"))]


def compile_flags(preloaded: bool) -> list[str]:
    """Flags of one part; `preloaded` says whether a sanitizer's runtime can be there when it runs."""
    if not SANITIZE:
        return WARNINGS + [flag for flag in HARDENING if flag]
    return WARNINGS + DEBUGGABLE + ([f"-fsanitize={','.join(SANITIZE)}"] if preloaded else TRAPPING)


def link_flags(preloaded: bool) -> list[str]:
    return HARDENED_LINK + ([f"-fsanitize={','.join(SANITIZE)}"] if SANITIZE and preloaded else [])


class BuildC(build_ext):
    """Builds the extensions with our flags, and the spawner: an executable, which setuptools has no notion of."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Seconds of work; and neither a changed flag, compiler nor header leaves a stale object behind.
        self.force = True

    def build_extension(self, ext: Extension) -> None:
        preloaded = ext.name != "olsock.runtime._fork"
        ext.extra_compile_args = [*ext.extra_compile_args, *compile_flags(preloaded)]
        ext.extra_link_args = [*ext.extra_link_args, *link_flags(preloaded)]
        super().build_extension(ext)

    def run(self) -> None:
        super().run()
        target = self.spawner_path()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.build_spawner(target)

    def spawner_path(self) -> Path:
        return SPAWNER if self.inplace else Path(self.build_lib) / SPAWNER

    def build_spawner(self, target: Path) -> None:
        """Link `target` statically: it works in mount namespaces without a loader or a C library to be found."""
        objects = self.compiler.compile(
            [*sources("csrc/spawner"), *sources(CHILD)],
            output_dir=str(Path(self.build_temp) / "spawner"),
            include_dirs=[str(CORE)],
            extra_postargs=[*compile_flags(preloaded=False), "-fPIE"],
            depends=[],
        )
        # Under a new name first, as the old one may be running.
        fresh = target.with_name(f".{target.name}.new")
        self.compiler.link_executable(objects, str(fresh), extra_postargs=["-static-pie", *link_flags(preloaded=False)])
        fresh.chmod(0o755)
        fresh.rename(target)

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib) / SPAWNER)]

    def get_output_mapping(self) -> dict[str, str]:
        mapping = dict(super().get_output_mapping())
        if self.inplace:
            mapping[str(Path(self.build_lib) / SPAWNER)] = str(SPAWNER)
        return mapping


setup(
    cffi_modules=["csrc/build_ffi.py:ffi"],
    ext_modules=[
        Extension(
            "olsock.runtime._fork",
            [*sources("csrc/fork"), *sources(CHILD)],
            include_dirs=[str(CORE)],
            depends=[str(path) for path in sorted(Path("csrc").rglob("*.h"))],
            # Loaded by whatever CPython >= 3.9 a zygote runs, without cffi.
            define_macros=[("Py_LIMITED_API", "0x03090000")],
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildC},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
