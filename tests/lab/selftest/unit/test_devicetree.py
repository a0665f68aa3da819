# SPDX-License-Identifier: Apache-2.0
"""A host with several PMUs is described as real machines describe it."""

import fdt
import pytest

from tests.lab.devicetree import cells, rewrite
from tests.lab.hosts import Cluster

TREE = """
/dts-v1/;
/ {
    interrupt-parent = <1>;
    cpus {
        cpu@0 { reg = <0>; compatible = "arm,armv8"; phandle = <7>; };
        cpu@1 { reg = <1>; compatible = "arm,armv8"; };
        cpu@2 { reg = <2>; compatible = "arm,armv8"; };
    };
    intc@8000000 {
        phandle = <1>;
        compatible = "arm,gic-v3";
        #interrupt-cells = <3>;
        #address-cells = <2>;
        interrupt-controller;
        interrupts = <1 9 4>;
    };
    gpio@9030000 {
        phandle = <2>;
        #interrupt-cells = <2>;
        interrupt-controller;
        interrupts = <0 7 4>;
    };
    timer { interrupts = <1 13 4 1 14 4>; };
    key { interrupt-parent = <2>; interrupts = <3 0>; };
    both { interrupts-extended = <1 0 5 4 2 3 0 1 0 6 4>; };
    pcie@10000000 {
        #address-cells = <3>;
        #interrupt-cells = <1>;
        interrupt-map = <0 0 0 1 1 0 0 0 3 4 0 0 0 2 1 0 0 0 4 4>;
    };
    pmu { compatible = "arm,armv8-pmuv3"; interrupts = <1 7 4>; };
};
"""
CLUSTERS = (
    Cluster(compatible="arm,cortex-a53-pmu", cpus=(0, 1)),
    Cluster(compatible="arm,cortex-a72-pmu", cpus=(2,)),
)


def compiled(text: str) -> bytes:
    """The tree as QEMU would hand it over; the library wants a statement a line."""
    lines = text.replace("{", "{\n").replace(";", ";\n")
    blob: bytes = fdt.parse_dts(lines).to_dtb(version=17)
    return blob


@pytest.fixture
def tree() -> fdt.FDT:
    return fdt.parse_dtb(rewrite(compiled(TREE), CLUSTERS))


def test_every_interrupt_of_the_gic_gets_a_fourth_cell(tree: fdt.FDT) -> None:
    root = tree.get_node("/")
    gic = root.get_subnode("intc@8000000")
    assert cells(gic, "#interrupt-cells") == [4]
    assert cells(gic, "interrupts") == [1, 9, 4, 0]
    assert cells(root.get_subnode("timer"), "interrupts") == [1, 13, 4, 0, 1, 14, 4, 0]
    both = cells(root.get_subnode("both"), "interrupts-extended")
    assert both == [1, 0, 5, 4, 0, 2, 3, 0, 1, 0, 6, 4, 0]
    pcie = cells(root.get_subnode("pcie@10000000"), "interrupt-map")
    assert pcie == [0, 0, 0, 1, 1, 0, 0, 0, 3, 4, 0, 0, 0, 0, 2, 1, 0, 0, 0, 4, 4, 0]


def test_interrupts_of_other_controllers_stay(tree: fdt.FDT) -> None:
    assert cells(tree.get_node("/key"), "interrupts") == [3, 0]
    assert cells(tree.get_node("/gpio@9030000"), "#interrupt-cells") == [2]


def test_each_pmu_shares_the_ppi_through_its_partition(tree: fdt.FDT) -> None:
    assert not tree.exist_node("/pmu")
    cpus = tree.get_node("/cpus").nodes
    partitions = tree.get_node("/intc@8000000/ppi-partitions").nodes
    for index, cluster in enumerate(CLUSTERS):
        pmu = tree.get_node(f"/pmu-{index}")
        assert list(pmu.get_property("compatible")) == [cluster.compatible]
        *interrupt, partition = cells(pmu, "interrupts")
        assert interrupt == [1, 7, 4]
        assert cells(partitions[index], "phandle") == [partition]
        wanted = [cells(cpus[cpu], "phandle")[0] for cpu in cluster.cpus]
        assert cells(partitions[index], "affinity") == wanted


def test_cpus_are_named_for_their_pmu(tree: fdt.FDT) -> None:
    names = [list(cpu.get_property("compatible")) for cpu in tree.get_node("/cpus").nodes]
    assert names == [["arm,cortex-a53"], ["arm,cortex-a53"], ["arm,cortex-a72"]]


def test_phandles_are_unique(tree: fdt.FDT) -> None:
    handles = [prop.value for prop in tree.search("phandle", fdt.ItemType.PROP)]
    assert len(set(handles)) == len(handles)


def test_other_interrupt_controllers_are_refused() -> None:
    blob = compiled(TREE.replace("gic-v3", "gic-400"))
    with pytest.raises(ValueError, match="only a GICv3"):
        rewrite(blob, CLUSTERS)
