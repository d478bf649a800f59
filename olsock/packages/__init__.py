"""Packages: requirements are resolved to a lock, each distribution is installed once, and a closure is what one lock sees.

Names are re-exported here; errors.py and requirements.py know nothing of the host, lock.py is the value that the others
share, uv.py runs the resolver in a sandbox, intake.py takes over what it wrote, closures.py merges, store.py keeps.
"""

from olsock.packages.closures import Closure
from olsock.packages.errors import PackageError
from olsock.packages.lock import Lock, Pin
from olsock.packages.requirements import collect
from olsock.packages.store import PackageStore

__all__ = ["Closure", "Lock", "PackageError", "PackageStore", "Pin", "collect"]
