"""What runs inside sandboxes: standard library only, any CPython >= 3.9.

wire      frames, shared with the host side (there it is `olsock.runtime.wire`)
handler   imports a function and answers requests for it
contracts finds out whether a function is called with an event, or is a WSGI or ASGI application
context   what a function with a second parameter is told
loop      the one event loop of coroutines
reply     an answer with status, headers and a body that may be a stream
stream    generators
wsgi      WSGI applications
traces    what is told of an exception
asgi      ASGI applications, with http, websocket and lifespan for the three things that they are told of
shortcut  imports the function's own module without most of the import system
measure   how long imports take, and which preloaded packages a function uses
hooks     runs what a function wants done before and after it is forked from a snapshot
zygote    imports packages, then forks handlers
atfork    spares children what is done for threads that are not there
reseed    gives a forked child randomness of its own
lib/      modules that functions may import: olsock_runtime, and AWS's name for it
exec/     the handler that runs snippets

Inside a sandbox this directory is mounted at /var/runtime and its modules are loaded by path under
private names (`_olsock_wire`, ...), so that a function may have modules called `wire` or `handler` too.
"""
