# SPDX-License-Identifier: Apache-2.0
"""The lab's table of hosts makes sense."""

import pytest

from tests.lab.cpulist import parse_cpus
from tests.lab.hosts import HOSTS, Cluster, Host


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert parse_cpus("0") == (0,)
    assert parse_cpus("0-1,4") == (0, 1, 4)
    assert parse_cpus("\n") == ()
    with pytest.raises(ValueError, match="invalid literal"):
        parse_cpus("0,")


def test_cluster_is_a_name_and_cpus() -> None:
    cluster = Cluster.parse("arm,cortex-a72-pmu=2-3")
    assert cluster == Cluster(compatible="arm,cortex-a72-pmu", cpus=(2, 3))


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_clusters_share_no_cpu_and_no_name(host: Host) -> None:
    cpus = [cpu for cluster in host.clusters for cpu in cluster.cpus]
    assert len(set(cpus)) == len(cpus)
    assert all(cpu < host.cpus for cpu in cpus)
    # the kernel refuses a second PMU of the same name
    assert len({cluster.compatible for cluster in host.clusters}) == len(host.clusters)
