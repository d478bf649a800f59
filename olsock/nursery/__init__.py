"""Live zygote trees: the zygotes of a plan, kept for one interpreter.

slots.py is the place of one node and the zygote in it, choices.py which nodes a closure may use, evictions.py what goes when
memory is short, builds.py how a zygote is made, growth.py what goes on in the background, tree.py what users see.
"""

from olsock.nursery.slots import NodeStats
from olsock.nursery.tree import TreeStats, ZygoteTree

__all__ = ["NodeStats", "TreeStats", "ZygoteTree"]
