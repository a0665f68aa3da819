# SPDX-License-Identifier: Apache-2.0
"""Turn the device tree of QEMU's `virt` machine into that of a host with several PMUs.

The way real GICv3 machines describe it: all PMUs share one PPI, which `ppi-partitions` divides
(Documentation/devicetree/bindings/interrupt-controller/arm,gic-v3.yaml). That needs a fourth cell
in every interrupt of the GIC.
"""

from collections.abc import Iterator, Sequence

import fdt

from tests.lab.hosts import Cluster

PPI = 1
PMU_PPI = 7
LEVEL_HIGH = 4


def rewrite(blob: bytes, clusters: Sequence[Cluster]) -> bytes:
    """The tree with these PMUs in place of its own."""
    tree = fdt.parse_dtb(blob)
    root = tree.get_node("/")
    gic = _gic(root)
    _widen_interrupts(root, gic)
    if root.exist_subnode("pmu"):
        root.remove_subnode("pmu")
    _add_pmus(root, gic, clusters)
    result: bytes = tree.to_dtb()
    return result


def cells(node: fdt.Node, name: str) -> list[int]:
    """The 32-bit cells of a property; none where there is no such property."""
    prop = node.get_property(name)
    if prop is None:
        return []
    if not isinstance(prop, fdt.PropWords):
        raise ValueError(f"device tree: {node.name}: {name} holds no cells")
    return list(prop)


def walk(node: fdt.Node) -> Iterator[fdt.Node]:
    """The node and everything below it."""
    yield node
    for child in node.nodes:
        yield from walk(child)


def _by_phandle(root: fdt.Node) -> dict[int, fdt.Node]:
    return {cells(n, "phandle")[0]: n for n in walk(root) if n.exist_property("phandle")}


def _gic(root: fdt.Node) -> fdt.Node:
    node = _by_phandle(root)[cells(root, "interrupt-parent")[0]]
    if "arm,gic-v3" not in node.get_property("compatible") or cells(node, "#interrupt-cells") != [
        3
    ]:
        raise ValueError("device tree: only a GICv3 with three interrupt cells can be divided")
    return node


def _interrupt_parent(node: fdt.Node) -> int:
    """The phandle of the controller of a node's interrupts: its own, else the nearest above."""
    while not node.exist_property("interrupt-parent"):
        node = node.parent
    return cells(node, "interrupt-parent")[0]


def _widen_interrupts(root: fdt.Node, gic: fdt.Node) -> None:
    """Give each interrupt of the GIC a fourth cell: 0, no partition."""
    nodes = _by_phandle(root)
    own = cells(gic, "phandle")[0]
    for node in walk(root):
        old = cells(node, "interrupts")
        if old and _interrupt_parent(node) == own:
            triples = [old[i : i + 3] for i in range(0, len(old), 3)]
            node.set_property("interrupts", [cell for t in triples for cell in (*t, 0)])
        if node.exist_property("interrupts-extended"):
            _widen_entries(node, "interrupts-extended", nodes, gic, before=0)
        if node.exist_property("interrupt-map"):
            before = cells(node, "#address-cells")[0] + cells(node, "#interrupt-cells")[0]
            _widen_entries(node, "interrupt-map", nodes, gic, before=before)
    gic.set_property("#interrupt-cells", 4)


def _widen_entries(
    node: fdt.Node, name: str, nodes: dict[int, fdt.Node], gic: fdt.Node, *, before: int
) -> None:
    """Widen a list of (`before` cells, controller, its interrupt, …)."""
    old, new = cells(node, name), []
    while old:
        controller = nodes[old[before]]
        length = before + 1 + cells(controller, "#interrupt-cells")[0]
        if name == "interrupt-map":
            length += (cells(controller, "#address-cells") or [0])[0]
        new += old[:length] + ([0] if controller is gic else [])
        old = old[length:]
    node.set_property(name, new)


def _add_pmus(root: fdt.Node, gic: fdt.Node, clusters: Sequence[Cluster]) -> None:
    fresh = max(_by_phandle(root)) + 1
    cpus = [n for n in root.get_subnode("cpus").nodes if n.name.startswith("cpu@")]
    cpus.sort(key=lambda n: cells(n, "reg")[-1])
    for cpu in cpus:
        if not cpu.exist_property("phandle"):
            cpu.set_property("phandle", fresh)
            fresh += 1
    partitions = fdt.Node("ppi-partitions")
    gic.append(partitions)
    for index, cluster in enumerate(clusters):
        partition = fdt.Node(f"interrupt-partition-{index}")
        partition.set_property("affinity", [cells(cpus[c], "phandle")[0] for c in cluster.cpus])
        partition.set_property("phandle", fresh)
        partitions.append(partition)
        pmu = fdt.Node(f"pmu-{index}")
        pmu.set_property("compatible", cluster.compatible)
        pmu.set_property("interrupts", [PPI, PMU_PPI, LEVEL_HIGH, fresh])
        root.append(pmu)
        fresh += 1
        for cpu in cluster.cpus:
            cpus[cpu].set_property("compatible", cluster.compatible.removesuffix("-pmu"))
