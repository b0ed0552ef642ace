"""A plan as a picture: nodes with their devices, processes with ranks and ports, the ways of requests and KV cache."""

from __future__ import annotations

__all__ = ["svg"]

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_FONT = "font-family='ui-sans-serif, system-ui, Helvetica, Arial, sans-serif'"
_COLOURS = {
    "serve": ("#0f766e", "#ccfbf1"),
    "prefill": ("#b45309", "#fef3c7"),
    "decode": ("#1d4ed8", "#dbeafe"),
    "router": ("#6d28d9", "#ede9fe"),
}
#: Processes beside the engines and jobs.
_BESIDE = ("#475569", "#e2e8f0")
_ROUTERS = ("router", "frontend", "gateway")
_IDLE = ("#94a3b8", "#f1f5f9")

_WIDTH = 300  # of a node's box
_GAP = 90  # between nodes; arrows of KV transfer cross it
_MARGIN = 24
_TIMES = "\N{MULTIPLICATION SIGN}"
_CELL = 29  # of a device square
_LINE = 17


def svg(plan: Mapping[str, Any]) -> str:
    """The picture as one self-contained SVG document; the same plan gives the same bytes."""
    return _Picture(plan).draw()


class _Picture:
    def __init__(self, plan: Mapping[str, Any]) -> None:
        self.plan = plan
        self.parts: list[str] = []
        self.router = next((one for one in plan["processes"] if one["kind"] in _ROUTERS), None)
        # Hosts stand in the order of their instances, so that the nodes of an instance are neighbours.
        order = [host for instance in plan["instances"] for host in instance["hosts"]]
        self.hosts = list(dict.fromkeys([*order, *plan["hosts"]]))
        self.columns = min(len(self.hosts), 4)
        # Arrows are drawn while they cross nothing: one row of hosts, one engine process on each. Beyond that the same
        # is said in words inside the boxes.
        boxes = [host for host in self.hosts for _ in self._on(host)]
        self.arrows = len(self.hosts) <= self.columns and len(boxes) == len(set(boxes))
        self.boxes: dict[str, tuple[int, int, int, int]] = {}  # process -> x, y, width, height
        self.tops: dict[str, int] = {}  # host -> y

    def draw(self) -> str:
        heights = {host: self._host_height(host) for host in self.hosts}
        top = 92 + (78 if self.router else 0)
        rows = [self.hosts[start : start + self.columns] for start in range(0, len(self.hosts), self.columns)]
        width = max(720, 2 * _MARGIN + self.columns * _WIDTH + (self.columns - 1) * _GAP)
        left = (width - self.columns * _WIDTH - (self.columns - 1) * _GAP) // 2
        y = top
        for row in rows:
            for column, host in enumerate(row):
                self._host(host, left + column * (_WIDTH + _GAP), y, max(heights[name] for name in row))
            y += max(heights[name] for name in row) + 56
        height = y - 56 + _MARGIN + 34
        self._title(width)
        if self.router:
            self._router(width)
        self._transfers()
        self._legend(height)
        return (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
            f"role='img' aria-label='{escape(self.plan['recipe'], quote=True)} on {len(self.hosts)} nodes' {_FONT}>\n"
            "<defs>"
            "<marker id='kv' markerWidth='9' markerHeight='8' refX='8' refY='4' orient='auto'>"
            "<path d='M0,0 L9,4 L0,8 z' fill='#be185d'/></marker>"
            "<marker id='req' markerWidth='9' markerHeight='8' refX='8' refY='4' orient='auto'>"
            "<path d='M0,0 L9,4 L0,8 z' fill='#6d28d9'/></marker>"
            "</defs>\n"
            f"<rect width='{width}' height='{height}' fill='#ffffff'/>\n" + "\n".join(self.parts) + "\n</svg>\n"
        )

    def _on(self, host: str) -> list[Mapping[str, Any]]:
        """What is drawn inside a host's box: all its processes but the router, then its jobs."""
        processes = [one for one in self.plan["processes"] if one["kind"] not in _ROUTERS]
        return [one for one in [*processes, *self.plan["jobs"]] if one["host"] == host]

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _title(self, width: int) -> None:
        plan = self.plan
        self._text(_MARGIN, 34, plan["recipe"], size=19, weight=600)
        engine = plan["engine"]
        subtitle = f"{plan['model']['id']}  ·  {engine['name']} {engine['version'] or ''}  ·  cluster {plan['cluster']}"
        self._text(_MARGIN, 56, subtitle, size=13, colour="#475569")
        self._text(width - _MARGIN, 34, _endpoint(plan), size=14, weight=600, anchor="end", colour="#334155")
        if plan["endpoint"]:
            self._text(width - _MARGIN, 56, "clients connect here", size=12, anchor="end", colour="#64748b")

    def _router(self, width: int) -> None:
        assert self.router is not None
        stroke, fill = _COLOURS["router"]
        x, y, box = width // 2 - 170, 82, 340
        self._rect(x, y, box, 48, fill, stroke, radius=8)
        guarded = any(process["kind"] == "gateway" for process in self.plan["processes"])
        label = f"{'gateway, ' if guarded else ''}{self.router['kind']} on {self.router['host']}"
        self._text(x + box // 2, y + 20, label, size=14, weight=600, anchor="middle", colour=stroke)
        self._text(
            x + box // 2, y + 38, f"{_program(self.router)}  :{_port(self.router, 'api')}", size=11, anchor="middle"
        )
        if not self.arrows:
            return
        for instance in self.plan["instances"]:
            left, _, span, _ = self.boxes[instance["processes"][0]]
            self._arrow(width // 2, y + 48, left + span // 2, self.tops[instance["hosts"][0]], "req")

    def _host(self, host: str, x: int, y: int, height: int) -> None:
        facts = self.plan["hosts"][host]
        self.tops[host] = y
        self._rect(x, y, _WIDTH, height, "#f8fafc", "#cbd5e1", radius=10)
        self._text(x + 14, y + 25, host, size=15, weight=600)
        self._text(x + _WIDTH - 14, y + 25, facts["node_ip"] or "", size=13, anchor="end", colour="#334155")
        where = " · ".join(str(part) for part in (facts["hardware"], facts["arch"], facts["nic"]) if part)
        self._text(x + 14, y + 44, where, size=11, colour="#64748b")
        inner = y + 56
        mine = self._on(host)
        for process in mine:
            inner = self._process(process, x + 10, inner)
        if not mine:
            self._text(x + 14, inner + 18, "no engine here", size=12, colour=_IDLE[0])

    def _process(self, process: Mapping[str, Any], x: int, y: int) -> int:
        """Draw one process and return where the next one may begin."""
        stroke, fill = _COLOURS.get(process["role"], _BESIDE)
        width, height = _WIDTH - 20, self._process_height(process)
        self.boxes[process["name"]] = (x, y, width, height)
        dashed = process["health"] is None
        self._rect(x, y, width, height, fill, stroke, radius=8, dashed=dashed)
        self._text(x + 10, y + 20, process["name"], size=13, weight=600, colour=stroke)
        self._text(x + width - 10, y + 20, _sizes(process), size=11, anchor="end", colour=stroke)
        lines = self._lines(process)
        for index, line in enumerate(lines):
            self._text(x + 10, y + 39 + index * _LINE, line, size=11)
        below = y + 39 + len(lines) * _LINE - 6
        columns = (width - 20) // (_CELL + 3)
        parallel = process["parallel"]
        per_rank = len(process["devices"]) // parallel["data_local"] if parallel else len(process["devices"])
        for index, device in enumerate(process["devices"]):
            left, top = x + 10 + index % columns * (_CELL + 3), below + index // columns * (_CELL - 4)
            # Devices of one rank share a shade, so that ranks can be counted.
            shade = "#ffffff" if index // per_rank % 2 == 0 else "#e2e8f0"
            self._rect(left, top, _CELL, _CELL - 7, shade, stroke, radius=3)
            self._text(left + _CELL // 2, top + 16, str(device), size=11, anchor="middle")
        return y + height + 8

    def _process_height(self, process: Mapping[str, Any]) -> int:
        columns = (_WIDTH - 40) // (_CELL + 3)
        rows = -(-len(process["devices"]) // columns)
        return 39 + len(self._lines(process)) * _LINE + rows * (_CELL - 4)

    def _lines(self, process: Mapping[str, Any]) -> list[str]:
        """Ranks, ports, and with whom KV cache is exchanged where no arrow says it."""
        lines = [_ranks(process), *_port_lines(process)] if process["parallel"] else _port_lines(process)
        other = {"prefill": "decode", "decode": "prefill"}.get(process["role"])
        if self.arrows or other is None:
            return lines
        names = [one["name"] for one in self.plan["instances"] if one["role"] == other]
        shown = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
        return [*lines, f"KV cache {'to' if other == 'decode' else 'from'} {shown}"]

    def _host_height(self, host: str) -> int:
        mine = self._on(host)
        return 60 + sum(self._process_height(one) + 8 for one in mine) + (0 if mine else 26)

    def _transfers(self) -> None:
        """KV cache goes from every prefill to every decode instance; the ranks of one instance talk over nodes."""
        if not self.arrows:
            return
        sources = [one for one in self.plan["instances"] if one["role"] == "prefill"]
        targets = [one for one in self.plan["instances"] if one["role"] == "decode"]
        for source in sources:
            for target in targets:
                for name in target["processes"]:
                    self._flow(self.boxes[source["processes"][-1]], self.boxes[name], name == target["processes"][0])
        for instance in self.plan["instances"]:
            for left, right in zip(instance["processes"], instance["processes"][1:], strict=False):
                a, b = self.boxes[left], self.boxes[right]
                if a[1] == b[1] and a[0] < b[0]:
                    y = a[1] + a[3] - 16
                    stroke = _COLOURS[instance["role"]][0]
                    self.parts.append(
                        f"<line x1='{a[0] + a[2]}' y1='{y}' x2='{b[0]}' y2='{y}' stroke='{stroke}' stroke-width='2' "
                        "stroke-dasharray='2 4'/>"
                    )
                    self._text((a[0] + a[2] + b[0]) // 2, y - 6, "ranks", size=10, anchor="middle", colour=stroke)

    def _flow(self, source: Sequence[int], target: Sequence[int], labelled: bool) -> None:
        """A KV arrow: straight across to a neighbour in the row, else in a bow below the boxes between."""
        y1, y2 = source[1] + 44, target[1] + 44
        ahead = target[0] > source[0]
        x1 = source[0] + source[2] if ahead else source[0]
        x2 = target[0] if ahead else target[0] + target[2]
        if y1 == y2 and abs(x2 - x1) <= _GAP + 20:
            path, label_x, label_y = f"M{x1},{y1} L{x2},{y2}", (x1 + x2) // 2, y1 - 7
        else:
            x1, x2 = source[0] + source[2] * 2 // 3, target[0] + target[2] // 3
            y1, y2 = source[1] + source[3], target[1] + target[3]
            deep = max(y1, y2) + 44
            path, label_x, label_y = f"M{x1},{y1} C{x1},{deep} {x2},{deep} {x2},{y2}", (x1 + x2) // 2, deep - 4
        self.parts.append(f"<path d='{path}' fill='none' stroke='#be185d' stroke-width='2' marker-end='url(#kv)'/>")
        if labelled:
            self._text(label_x, label_y, "KV cache", size=11, anchor="middle", colour="#be185d")

    def _legend(self, height: int) -> None:
        text = "Solid box: answers on a port of its own. Dashed box: does not. Small squares: devices, shaded by rank."
        self._text(_MARGIN, height - 14, text, size=11, colour="#64748b")

    # -- primitives ----------------------------------------------------------------------------------------------------

    def _rect(
        self, x: int, y: int, width: int, height: int, fill: str, stroke: str, *, radius: int, dashed: bool = False
    ) -> None:
        dash = " stroke-dasharray='6 4'" if dashed else ""
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='{radius}' fill='{fill}' stroke='{stroke}' "
            f"stroke-width='1.3'{dash}/>"
        )

    def _text(
        self, x: int, y: int, text: str, *, size: int, weight: int = 400, anchor: str = "start", colour: str = "#0f172a"
    ) -> None:
        self.parts.append(
            f"<text x='{x}' y='{y}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
            f"fill='{colour}'>{escape(text)}</text>"
        )

    def _arrow(self, x1: int, y1: int, x2: int, y2: int, kind: str) -> None:
        middle = (y1 + y2) // 2
        self.parts.append(
            f"<path d='M{x1},{y1} C{x1},{middle} {x2},{middle} {x2},{y2}' fill='none' stroke='#6d28d9' "
            f"stroke-width='1.6' stroke-opacity='0.75' marker-end='url(#{kind})'/>"
        )


def _port(process: Mapping[str, Any], name: str) -> int:
    return next(int(port["first"]) for port in process["ports"] if port["name"] == name)


def _span(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _endpoint(plan: Mapping[str, Any]) -> str:
    return str(plan["endpoint"]["url"]) if plan["endpoint"] else "nothing serves here"


def _sizes(process: Mapping[str, Any]) -> str:
    """The sizes of the instance; for a process beside the engines what kind it is."""
    parallel = process["parallel"]
    if not parallel:
        return str(process["kind"])
    sizes = {"TP": "tensor", "PP": "pipeline", "PCP": "prefill_context", "DCP": "decode_context", "DP": "data"}
    parts = [f"{short} {parallel[key]}" for short, key in sizes.items() if parallel[key] > 1 or short in ("TP", "DP")]
    return f" {_TIMES} ".join(parts)


def _ranks(process: Mapping[str, Any]) -> str:
    parallel = process["parallel"]
    if not process["devices"]:
        return f"serves with the devices of {parallel['nodes']} Ray nodes"
    if parallel["nodes"] > parallel["data"]:
        return f"node {parallel['node_rank']} of {parallel['nodes']} of the one rank"
    if parallel["data"] > 1:
        return f"DP ranks {_span(parallel['start_rank'], parallel['data_local'])}"
    return "one rank"


#: Short words for kinds of ports; the others are shown as they are called.
_PORTS = {"api": "API", "dp-rpc": "DP RPC", "kv": "KV", "kv-events": "KV events", "side-channel": "NIXL", "ray": "Ray"}


def _port_lines(process: Mapping[str, Any]) -> list[str]:
    """Ports, two to a line."""
    if not process["ports"]:
        return ["listens on nothing" if process["parallel"] is None else "no API"]
    shown = [f"{_PORTS.get(p['name'], p['name'])} :{_span(p['first'], p['count'])}" for p in process["ports"]]
    return [" \u00b7 ".join(shown[start : start + 2]) for start in range(0, len(shown), 2)]


def _program(process: Mapping[str, Any]) -> str:
    return str(process["argv"][0][-1]).rpartition("/")[2].removesuffix(".py")
