# SPDX-License-Identifier: Apache-2.0
"""The cache of probe results, valid for this boot, because probing takes tenths of a second."""

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
    """Return what KVM does on this host, from the cache if that is of this boot and these PMUs.

    Otherwise probe it, and cache the result if possible. The cache is trusted only as far as its
    owner: only a regular file of root or the caller that nobody else may write to is read, and
    only if no link leads to it. `probe` is `probe_kvm_caps` by default; raise OSError as that
    does.
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
    # an incomplete result is not cached: a later caller who may run on every CPU can find the rest
    if target and probed.is_complete:
        _save_caps(target, key, probed, owners={0, uid})
    return probed


def read_cached(
    sysfs: Sysfs,
    pmus: Sequence[Pmu],
    environ: Mapping[str, str],
    *,
    run: Path = PATH_RUN,
    uid: int | None = None,
) -> KvmCaps | None:
    """Return what earlier probes of this boot found, None if there were none; probe nothing.

    For a captured tree, return the results captured with it.
    """
    uid = os.geteuid() if uid is None else uid
    key = cache_key(sysfs, pmus)
    if key is None and not sysfs.is_live:
        return _read_captured(sysfs, pmus)
    for source in cache_dirs(environ, uid, run=run)[0] if key else ():
        if caps := _load_caps(source, key or {}, owners={0, uid}):
            return caps
    return None


def cache_key(sysfs: Sysfs, pmus: Sequence[Pmu]) -> dict[str, object] | None:
    """Return the key that a valid cache has, None if this boot has no readable id."""
    boot_id = sysfs.read_text(PATH_BOOT_ID)
    return _make_key(boot_id.strip(), pmus) if boot_id else None


def _make_key(boot_id: str | None, pmus: Sequence[Pmu]) -> dict[str, object]:
    types = sorted(pmu.type for pmu in pmus if pmu.type is not None)
    return {"format": FORMAT, "boot_id": boot_id, "pmus": types}


def to_captured(probed: KvmCaps, pmus: Sequence[Pmu]) -> str:
    """Return the text of PATH_CAPTURED: a cache without a boot id."""
    return json.dumps({"key": _make_key(None, pmus), "probed": to_json(probed)}, indent=1) + "\n"


def _read_captured(sysfs: Sysfs, pmus: Sequence[Pmu]) -> KvmCaps | None:
    text = sysfs.read_text(PATH_CAPTURED, limit=SIZE_LIMIT)
    with contextlib.suppress(ValueError, RecursionError):
        return _parse_document(json.loads(text or ""), _make_key(None, pmus))
    return None


def to_json(probed: KvmCaps) -> dict[str, object]:
    """Return the document that the cache holds; keys that are numbers become strings in it."""
    return {
        "has_vpmu": probed.has_vpmu,
        "attributes": sorted(probed.attributes),
        "counters": {str(pmu): count for pmu, count in probed.counters.items()},
        "event_bits": probed.event_bits,
        "event_bits_of": {str(pmu): bits for pmu, bits in probed.event_bits_of.items()},
        "default": probed.default and probed.default.value,
        "default_pmu": probed.default_pmu,
        "has_strict": probed.has_strict,
        "cpus": {str(pmu): str(cpus) for pmu, cpus in probed.cpus.items()},
    }


def from_json(document: Mapping[str, Any]) -> KvmCaps:
    """Return the value that `to_json` made the document of; raise ValueError for any other."""
    try:
        probed = KvmCaps(
            has_vpmu=document["has_vpmu"],
            attributes=frozenset(document["attributes"]),
            counters={int(pmu): count for pmu, count in document["counters"].items()},
            event_bits=document["event_bits"],
            event_bits_of={int(pmu): bits for pmu, bits in document["event_bits_of"].items()},
            default=None if document["default"] is None else DefaultPmu(document["default"]),
            default_pmu=document["default_pmu"],
            has_strict=document["has_strict"],
            cpus={int(pmu): CpuSet.parse(cpus) for pmu, cpus in document["cpus"].items()},
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no probe results: {error!r}") from error
    numbers = [probed.event_bits, probed.default_pmu, *probed.counters.values()]
    numbers = [number for number in numbers if number is not None]
    numbers += [*probed.attributes, *probed.event_bits_of.values()]
    if not all(type(number) is int and 0 <= number < 1 << 31 for number in numbers):
        raise ValueError("no probe results: a number is not an integer of 31 bits")
    if probed.has_vpmu not in (True, False, None) or probed.has_strict not in (True, False):
        raise ValueError("no probe results: a flag is not a boolean")
    return probed


def _load_caps(directory: Path, key: Mapping[str, object], owners: set[int]) -> KvmCaps | None:
    document = json_store.load(directory, PROBE_CACHE, owners=owners, limit=SIZE_LIMIT)
    return _parse_document(document, key)


def _parse_document(document: object, key: Mapping[str, object]) -> KvmCaps | None:
    """Return the probe results in a cache document, None if it is invalid or has another key."""
    if isinstance(document, dict) and document.get("key") == dict(key):
        with contextlib.suppress(ValueError, KeyError):
            return from_json(document["probed"])
    return None


def _save_caps(
    directory: Path, key: Mapping[str, object], probed: KvmCaps, owners: set[int]
) -> None:
    """Write the cache atomically; if that fails, there is no cache and no error."""
    document = {"key": key, "probed": to_json(probed)}
    with contextlib.suppress(OSError):
        json_store.save(directory, PROBE_CACHE, document, owners=owners, limit=SIZE_LIMIT)
