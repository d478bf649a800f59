"""Finds out how a function is to be called: with an event, as a WSGI or as an ASGI application.

Loaded only where the handler is not a plain function of an event. An application is known by the parameters of
what is called, as servers have it that take it from a name: function, method, instance or class alike, decorated or
not. What is called `app` or `application` and hides its parameters is taken for one.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:
    from olsock.runtime import handler
else:
    import _olsock_handler as handler

if TYPE_CHECKING:
    from typing import Any

DEFAULT = "f"  # the attribute of a function that named none
APPLICATIONS = ("app", "application")  # what frameworks' documentation calls theirs
CONTRACTS = ("auto", "event", "wsgi", "asgi")
CO_COROUTINE = 0x80 | 0x100  # `async def`, and generators that were made into coroutines


def override(env: dict[str, str], module: str, attribute: str, contract: str) -> tuple[str, str, str]:
    """Return module, attribute and contract as OpenLambda's variables have them: those that are there win."""
    file = env.get("OL_ENTRY_FILE")
    if file is not None:
        if not file.endswith(".py") or file.startswith("/") or ".." in file.split("/"):
            raise ValueError(f"OL_ENTRY_FILE={file!r}: expected a .py file below the function's directory")
        module = file[: -len(".py")].replace("/", ".").lstrip(".")
    for name, means in (("OL_WSGI_ENTRY", "wsgi"), ("OL_ASGI_ENTRY", "asgi")):
        if env.get(name) and contract in ("auto", means):
            return module, env[name], means
    return module, attribute, contract


def find(module: str, attribute: str, contract: str) -> tuple[Any, str]:
    """Return what is to be called, of a module that has been imported, and by which contract."""
    if contract not in CONTRACTS:
        raise ValueError(f"contract {contract!r}: expected one of {', '.join(CONTRACTS)}")
    found, name = _attribute(module, attribute)
    if not callable(found):
        raise TypeError(f"handler {f'{module}:{name}'!r} is not callable")
    if contract in ("wsgi", "asgi"):
        return found, contract
    code, names, required = _parameters(found)
    if contract == "auto":
        if _is_wsgi(code, names, name):
            return found, "wsgi"
        if _is_asgi(found, code, names, required, name):
            return found, "asgi"
    return found, "stream" if code is not None and code.co_flags & handler.CO_GENERATORS else "event"


def _attribute(module: str, attribute: str) -> tuple[Any, str]:
    """Look an attribute up; instead of the default one, that a module lacks, an application will do."""
    found: Any = sys.modules[module]
    if attribute == DEFAULT and not hasattr(found, DEFAULT):
        for name in APPLICATIONS:
            if hasattr(found, name):
                return getattr(found, name), name
        raise AttributeError(f"module {module!r} has neither a function {DEFAULT!r} nor an application 'app'")
    for name in attribute.split("."):
        found = getattr(found, name)
    return found, name


def _parameters(found: Any) -> tuple[Any, tuple[str, ...], int]:
    """Return the code of what is called (None: unknown), its positional parameters, and how many it requires."""
    given = 0
    while hasattr(found, "func") and hasattr(found, "args") and hasattr(found, "keywords"):  # functools.partial
        given += len(found.args)
        found = found.func
    if isinstance(found, type):
        function: Any = getattr(found, "__init__", None)
        code, bound = getattr(function, "__code__", None), True
    else:
        code, function, bound = handler.code_of(found)
    if code is None:
        return None, (), 0
    names = code.co_varnames[int(bound) + given : code.co_argcount]
    return code, names, max(0, len(names) - len(function.__defaults__ or ()))


def _is_wsgi(code: Any, names: tuple[str, ...], name: str) -> bool:
    if len(names) >= 2:
        return names[0] == "environ" or names[1].startswith("start_res")
    hidden = code is None or (not names and code.co_flags & handler.CO_VARARGS)
    return bool(hidden and name in APPLICATIONS and not (code is not None and code.co_flags & CO_COROUTINE))


def _is_asgi(found: Any, code: Any, names: tuple[str, ...], required: int, name: str) -> bool:
    if names[:3] == ("scope", "receive", "send"):
        return True
    if code is None or not (code.co_flags & CO_COROUTINE or (isinstance(found, type) and hasattr(found, "__await__"))):
        return False
    return required == 3 or bool(not names and code.co_flags & handler.CO_VARARGS and name in APPLICATIONS)
