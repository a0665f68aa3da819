# SPDX-License-Identifier: Apache-2.0
"""The CPU PMUs of a host, with what KVM was found to give guests of them."""

import os
from collections.abc import Sequence
from pathlib import Path

from pmuctl.host.host import Host
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.runtime_dirs import PATH_CAPTURED, PATH_RUN, PROBE_CACHE, cache_dirs
from pmuctl.model.pmu import Pmu
from pmuctl.value import replace


def add_probed(host: Host, pmus: Sequence[Pmu], *, run: Path = PATH_RUN) -> Sequence[Pmu]:
    """Return CPU PMUs with counters and event space as earlier probes of KVM found them.

    `pmus` are all of the host. No VM is created: this changes nothing. `run` is root's runtime
    directory, which holds the probe cache.
    """
    sysfs = host.sysfs
    caches = cache_dirs(host.environ, os.geteuid(), run=run)[0]
    if sysfs.is_live:
        is_cached = any((cache / PROBE_CACHE).exists() for cache in caches)
    else:
        is_cached = sysfs.resolve(PATH_CAPTURED) is not None
    if not is_cached:
        return pmus
    # imported here: most calls find no cache, and json and the KVM modules take a tenth of
    # the run time
    from pmuctl.host.kvm.cache import read_cached

    probed = read_cached(sysfs, pmus, host.environ, run=run)
    if probed is None:
        return pmus
    return [
        replace(
            pmu,
            counters=probed.counters.get(pmu.type),
            event_bits=probed.event_bits_of.get(pmu.type, probed.event_bits),
        )
        if pmu.type is not None
        else pmu
        for pmu in pmus
    ]


def explain_counters(host: Host) -> str | None:
    """Return "PMU has N" for each PMU of which that is known; None if it is of none."""
    pmus = add_probed(host, scan_pmus(host.sysfs))
    return ", ".join(f"{pmu.name} has {pmu.counters}" for pmu in pmus if pmu.counters) or None
