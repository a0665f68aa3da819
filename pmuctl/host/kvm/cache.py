# SPDX-License-Identifier: Apache-2.0
"""What the probes found, kept for as long as this boot lasts: probing takes tenths of a second."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmuctl.host import json_store
from pmuctl.host.runtime_dirs import PATH_CAPTURED, PATH_RUN, PROBE_CACHE, cache_dirs
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu

PATH_BOOT_ID = "proc/sys/kernel/random/boot_id"
FORMAT = 1
SIZE_LIMIT = 64 * 1024
"""Bytes: a host has a handful of PMUs."""


def read_kvm_caps(
    sysfs: Sysfs,
    pmus: Sequence[Pmu],
    environ: Mapping[str, str],
    *,
    run: Path = PATH_RUN,
    uid: int | None = None,
    probe: Callable[[Sequence[Pmu]], KvmCaps] | None = None,
) -> KvmCaps:
    """What KVM does on this host: from the cache where it is of this boot and these PMUs.

    Else it is probed, and kept if possible. The cache is not trusted further than its owner: only
    a regular file of root or the caller that nobody else may write to is read, and no link leads
    to it. `probe` is `probe_kvm_caps` unless given; raises OSError as that does.
    """
    if probe is None:
        from pmuctl.host.kvm.probes import probe_kvm_caps

        probe = probe_kvm_caps
    uid = os.geteuid() if uid is None else uid
    _, target = cache_dirs(environ, uid, run=run)
    key = cache_key(sysfs, pmus)
    if key is None:
        return probe(pmus)
    if found := read_cached(sysfs, pmus, environ, run=run, uid=uid):
        return found
    probed = probe(pmus)
    # what was not to be found out now may be next time, by one who may go everywhere
    if target and probed.is_complete:
        _store(target, key, probed, owners={0, uid})
    return probed


def read_cached(
    sysfs: Sysfs,
    pmus: Sequence[Pmu],
    environ: Mapping[str, str],
    *,
    run: Path = PATH_RUN,
    uid: int | None = None,
) -> KvmCaps | None:
    """What earlier probes of this boot found, None where there were none; nothing is tried.

    Of another machine's tree it is what was captured with that.
    """
    uid = os.geteuid() if uid is None else uid
    key = cache_key(sysfs, pmus)
    if key is None and not sysfs.is_live:
        return _read_captured(sysfs, pmus)
    for source in cache_dirs(environ, uid, run=run)[0] if key else ():
        if found := _load(source, key or {}, owners={0, uid}):
            return found
    return None


def cache_key(sysfs: Sysfs, pmus: Sequence[Pmu]) -> dict[str, object] | None:
    """What a cache must be of; None where this boot cannot be told from another."""
    boot_id = sysfs.read_text(PATH_BOOT_ID)
    return _key(boot_id.strip(), pmus) if boot_id else None


def _key(boot_id: str | None, pmus: Sequence[Pmu]) -> dict[str, object]:
    types = sorted(pmu.type for pmu in pmus if pmu.type is not None)
    return {"format": FORMAT, "boot_id": boot_id, "pmus": types}


def to_captured(probed: KvmCaps, pmus: Sequence[Pmu]) -> str:
    """The text of PATH_CAPTURED: a cache that is of no boot."""
    return json.dumps({"key": _key(None, pmus), "probed": to_json(probed)}, indent=1) + "\n"


def _read_captured(sysfs: Sysfs, pmus: Sequence[Pmu]) -> KvmCaps | None:
    text = sysfs.read_text(PATH_CAPTURED, limit=SIZE_LIMIT)
    with contextlib.suppress(ValueError, RecursionError):
        return _of(json.loads(text or ""), _key(None, pmus))
    return None


def to_json(probed: KvmCaps) -> dict[str, object]:
    """As it stands in the cache: numbers as keys become texts there."""
    return {
        "has_vpmu": probed.has_vpmu,
        "attributes": sorted(probed.attributes),
        "counters": {str(pmu): its for pmu, its in probed.counters.items()},
        "event_bits": probed.event_bits,
        "event_bits_of": {str(pmu): its for pmu, its in probed.event_bits_of.items()},
        "default": probed.default and probed.default.value,
        "default_pmu": probed.default_pmu,
        "has_strict": probed.has_strict,
        "cpus": {str(pmu): str(cpus) for pmu, cpus in probed.cpus.items()},
    }


def from_json(document: Mapping[str, Any]) -> KvmCaps:
    """The inverse of `to_json`; raises ValueError for anything else."""
    try:
        probed = KvmCaps(
            has_vpmu=document["has_vpmu"],
            attributes=frozenset(document["attributes"]),
            counters={int(pmu): its for pmu, its in document["counters"].items()},
            event_bits=document["event_bits"],
            event_bits_of={int(pmu): its for pmu, its in document["event_bits_of"].items()},
            default=None if document["default"] is None else DefaultPmu(document["default"]),
            default_pmu=document["default_pmu"],
            has_strict=document["has_strict"],
            cpus={int(pmu): CpuSet.parse(cpus) for pmu, cpus in document["cpus"].items()},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not what probes found: {error!r}") from error
    numbers = [probed.event_bits, probed.default_pmu, *probed.counters.values()]
    numbers = [its for its in numbers if its is not None]
    numbers += [*probed.attributes, *probed.event_bits_of.values()]
    if not all(type(its) is int and 0 <= its < 1 << 31 for its in numbers):
        raise ValueError("not what probes found: a number is none")
    if probed.has_vpmu not in (True, False, None) or probed.has_strict not in (True, False):
        raise ValueError("not what probes found: a truth is none")
    return probed


def _load(directory: Path, key: Mapping[str, object], owners: set[int]) -> KvmCaps | None:
    return _of(json_store.load(directory, PROBE_CACHE, owners=owners, limit=SIZE_LIMIT), key)


def _of(document: object, key: Mapping[str, object]) -> KvmCaps | None:
    if isinstance(document, dict) and document.get("key") == dict(key):
        with contextlib.suppress(ValueError, KeyError):
            return from_json(document["probed"])
    return None


def _store(directory: Path, key: Mapping[str, object], probed: KvmCaps, owners: set[int]) -> None:
    """Whole or not at all; where it cannot be, there is no cache and no error."""
    document = {"key": key, "probed": to_json(probed)}
    with contextlib.suppress(OSError):
        json_store.save(directory, PROBE_CACHE, document, owners=owners, limit=SIZE_LIMIT)
