# SPDX-License-Identifier: Apache-2.0
"""The cache of probe results, valid for this boot, because probing takes tenths of a second."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pmuctl.host import json_store
from pmuctl.host.runtime_dirs import PATH_CAPTURED, PATH_RUN, PROBE_CACHE, cache_dirs
from pmuctl.host.sysfs import Sysfs
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from pmuctl.model.pmu import Pmu
from pmuctl.schema import AnyValue, Bool, Int, List, Nullable, NumberMap, Str, Struct
from pmuctl.value import value

PATH_BOOT_ID = "proc/sys/kernel/random/boot_id"
FORMAT = 1
SIZE_LIMIT = 64 * 1024
"""Bytes: a host has a handful of PMUs."""


_NUMBER = Int(most=0x7FFFFFFF)
CAPS = Struct(
    {
        "has_vpmu": Nullable(Bool()),
        "attributes": List(_NUMBER, make=frozenset, unmake=sorted),
        "counters": NumberMap(Nullable(_NUMBER)),
        "event_bits": Nullable(_NUMBER),
        "event_bits_of": NumberMap(_NUMBER),
        "default": Nullable(Str(make=DefaultPmu, unmake=lambda default: default.value)),
        "default_pmu": Nullable(_NUMBER),
        "has_strict": Bool(),
        "cpus": NumberMap(Str(most=SIZE_LIMIT, make=CpuSet.parse, unmake=str)),
    },
    is_open=True,
    cls=KvmCaps,
)
"""The form of probe results as JSON."""


@value
class _Cache:
    """Probe results, and the key that tells which boot and PMUs they are of."""

    key: Mapping[str, object]
    probed: KvmCaps


_FORM = Struct({"key": AnyValue(), "probed": CAPS}, is_open=True, cls=_Cache)


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
    cache = _Cache(_make_key(None, pmus), probed)
    return json.dumps(_FORM.format(cache), indent=1) + "\n"


def _read_captured(sysfs: Sysfs, pmus: Sequence[Pmu]) -> KvmCaps | None:
    text = sysfs.read_text(PATH_CAPTURED, limit=SIZE_LIMIT)
    with contextlib.suppress(ValueError, RecursionError):
        cache: _Cache = _FORM.read(json.loads(text or ""), PATH_CAPTURED)
        return cache.probed if cache.key == _make_key(None, pmus) else None
    return None


def _load_caps(directory: Path, key: Mapping[str, object], owners: set[int]) -> KvmCaps | None:
    cache: _Cache | None = json_store.load(
        directory, PROBE_CACHE, _FORM, owners=owners, limit=SIZE_LIMIT
    )
    return cache.probed if cache and cache.key == key else None


def _save_caps(
    directory: Path, key: Mapping[str, object], probed: KvmCaps, owners: set[int]
) -> None:
    """Write the cache atomically; if that fails, there is no cache and no error."""
    document = _FORM.format(_Cache(key, probed))
    with contextlib.suppress(OSError):
        json_store.save(directory, PROBE_CACHE, document, owners=owners, limit=SIZE_LIMIT)
