# SPDX-License-Identifier: Apache-2.0
"""The lab's table of hosts makes sense."""

import pytest

from tests.conftest import lab_group
from tests.lab.hosts import HOSTS, Cluster, Host, parse_cpus


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert parse_cpus("0") == (0,)
    assert parse_cpus("0-1,4") == (0, 1, 4)
    with pytest.raises(ValueError, match="invalid literal"):
        parse_cpus("")


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


def test_a_files_tests_of_one_kernel_stay_together() -> None:
    """Or each worker boots every kernel for each."""
    file = "tests/lab/test_x.py"
    assert lab_group(f"{file}::test_y[6.1]") == lab_group(f"{file}::test_z[gap-6.1]")
    assert lab_group(f"{file}::test_y[newest]") == lab_group(f"{file}::test_y")
    assert lab_group(f"{file}::test_y[6.1]") != lab_group(f"{file}::test_y")
    assert lab_group(f"{file}::test_y") != lab_group("tests/lab/test_z.py::test_y")
    assert lab_group("tests/unit/test_x.py::test_y[6.1]") == "tests/unit/test_x.py::test_y[6.1]"
