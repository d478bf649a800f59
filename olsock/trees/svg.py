"""Trees as a picture: one SVG file that needs nothing else, drawn from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from olsock.trees.plan import Node, Plan
from olsock.trees.render import few, label, mib, numbers, plain

WIDTH, HEIGHT = 250, 54  # of a node, in pixels
ACROSS, DOWN = 60, 14  # between nodes
MARGIN, TITLE = 24, 40
LETTERS = 36  # that fit into a node

_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" \
font-family="system-ui, sans-serif" font-size="12">
<title>{title}</title>
<rect width="100%" height="100%" fill="#ffffff"/>"""


def draw(plans: Sequence[Plan]) -> str:
    """The text of an SVG file with all trees, one below the other."""
    drawing = _Drawing()
    for plan in plans:
        drawing.tree(plan)
    title = f"Zygote trees: {sum(plan.nodes for plan in plans)} nodes"
    width, height = drawing.right + MARGIN, drawing.bottom + MARGIN
    return "\n".join(
        [_HEAD.format(width=width, height=height, title=title), *drawing.lines, *drawing.boxes, "</svg>\n"]
    )


class _Drawing:
    def __init__(self) -> None:
        self.lines: list[str] = []  # below the boxes
        self.boxes: list[str] = []
        self.right, self.bottom = MARGIN + WIDTH, MARGIN

    def tree(self, plan: Plan) -> None:
        text = f"{plan.python or 'any python'}: {plan.nodes} nodes, {mib(plan.size)}"
        self.boxes.append(_text(MARGIN, self.bottom + 18, text, 'font-size="15" font-weight="bold" fill="#1f2933"'))
        self.bottom += TITLE
        most = max((path[-1].saved_ms for path in plan.paths()), default=0.0)
        self._node(plan.root, None, 0, most)

    def _node(self, node: Node, parent: Node | None, depth: int, most: float) -> float:
        """Draw a node beside its children; return the height of its middle."""
        x = MARGIN + depth * (WIDTH + ACROSS)
        self.right = max(self.right, x + WIDTH)
        if node.children:
            middles = [self._node(child, node, depth + 1, most) for child in node.children]
            middle = (middles[0] + middles[-1]) / 2
        else:
            middles, middle = [], self.bottom + HEIGHT / 2
            self.bottom += HEIGHT + DOWN
        for other in middles:
            start, end = x + WIDTH, x + WIDTH + ACROSS
            bend = (start + end) / 2
            self.lines.append(
                f'<path d="M{start} {middle:g} C{bend:g} {middle:g} {bend:g} {other:g} {end} {other:g}" '
                'fill="none" stroke="#9aa5b1" stroke-width="1.5"/>'
            )
        self._box(node, parent, x, middle - HEIGHT / 2, node.saved_ms / most if most else 0.0)
        return middle

    def _box(self, node: Node, parent: Node | None, x: float, y: float, share: float) -> None:
        light = round(97 - 25 * share)  # the more a node saves, the stronger its colour
        stroke = "#c81e1e" if node.note else "#2186eb"
        tip = "\n".join([*sorted(node.added(parent)), f"imports {few(node.imports)}", *numbers(node), node.note])
        self.boxes.append(
            f'<g><title>{escape(plain(tip))}</title><rect x="{x}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            f'fill="hsl(210, 85%, {light}%)" stroke="{stroke}"/>'
        )
        figures = numbers(node)
        rows = (label(node, parent), few(node.imports), node.note or ", ".join([*figures[:1], *figures[2:]]))
        styles = ('font-weight="bold" fill="#102a43"', 'fill="#334e68"', 'fill="#486581" font-size="11"')
        for number, (row, style) in enumerate(zip(rows, styles, strict=True)):
            if row:
                self.boxes.append(_text(x + 10, y + 17 + 15 * number, row, style))
        self.boxes.append("</g>")


def _text(x: float, y: float, text: str, style: str) -> str:
    shown = plain(text)
    shown = shown if len(shown) <= LETTERS else f"{shown[: LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(shown)}</text>'
