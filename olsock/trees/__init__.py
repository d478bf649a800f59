"""Which zygotes to keep: plans of zygote trees, fitted from traces, read from files, chosen from and drawn. Starts nothing.

Names are re-exported here; they live in olsock.trees.plan, trace, fit, bind, select and formats.
"""

from olsock.trees.bind import bind
from olsock.trees.fit import fit
from olsock.trees.formats import dump, load
from olsock.trees.plan import Node, Plan
from olsock.trees.select import Match, rank
from olsock.trees.trace import Import, Usage, read_trace

__all__ = ["Import", "Match", "Node", "Plan", "Usage", "bind", "dump", "fit", "load", "rank", "read_trace"]
