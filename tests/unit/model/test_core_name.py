# SPDX-License-Identifier: Apache-2.0
"""The names that `core/` takes for a core model."""

import pytest

from pmuctl.errors import NotFoundError, UsageError
from pmuctl.host.cpus import core_names, decode_midr
from pmuctl.model.core_name import is_matched, is_named, is_short_name, short_names
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import CoreModel, Pmu
from pmuctl.model.pmu_selector import match_pmus, select_pmu
from pmuctl.value import replace


def make_pmu(name: str, *midrs: int) -> Pmu:
    """A PMU of CPUs of these core models."""
    return Pmu(
        name=name,
        path=f"/sys/devices/{name}",
        type=8,
        cpus=CpuSet.parse("0"),
        online=CpuSet.parse("0"),
        cores=tuple(map(decode_midr, midrs)),
        events={},
        formats={},
        caps={},
    )


def is_taken(core: CoreModel, text: str) -> bool:
    return is_named(core, text) or is_short_name(core, text) or is_matched(core, text)


@pytest.mark.parametrize(
    ("midr", "names"),
    [
        (0x410FD0B0, "Cortex-A76 cortex-a76 cortex_a76 CortexA76 a76 A76 0x41:0xd0b *a76"),
        (0x410FD421, "cortex-a78ae a78ae"),
        (0x410FD851, "cortex-x925 x925 X925 x9*"),
        (0x410FD871, "a725"),
        (0x410FD0C0, "neoverse-n1 n1 neoverse_n1"),
        (0x410FD4F0, "v2 neoverse-v2"),
        (0x410FD8C0, "c1-ultra c1ultra c1"),
        (0x421F1000, "b53 brahma-b53"),
        (0x420F5160, "thunderx2 vulcan"),
        (0x430F0AF0, "thunderx2 thunderx2-99xx"),
        (0x430F0A10, "thunderx thunderx-88xx"),
        (0x460F0010, "a64fx"),
        (0x481FD010, "kunpeng-920 kunpeng920 kunpeng tsv110 taishan-v110"),
        (0x481FD020, "kunpeng-920 hip09"),
        (0x4E0F0040, "carmel"),
        (0x500F0000, "x-gene xgene"),
        (0x512F0011, "oryon Oryon"),
        (0x510F8040, "kryo-4xx-gold kryo-4xx kryo *gold"),
        (0x510F8000, "falkor-v1/kryo falkor-v1 falkor kryo"),
        (0x530F0010, "exynos-m1 mongoose"),
        (0x611F0230, "firestorm firestorm-m1 FIRESTORM"),
        (0x611F0350, "avalanche avalanche* avalanche-m2-pro avalanche-m2"),
        (0x610F0030, "typhoon capri"),
        (0x6D0FD490, "azure-cobalt-100 cobalt-100 cobalt100 cobalt"),
        (0x701F8620, "ftc862 FTC862"),
        (0xC00FAC30, "ampereone ampere-1 ampere1 AmpereOne"),
        (0xC00FAC40, "ampereone-a ampere-1a ampereone"),
        (0x480FD420, "0x48:0xd42 0X48:0XD42 0x48:*"),
        (0x611F0340, "0x61:0x034 0x61:0x34"),
    ],
)
def test_a_core_is_taken_by_its_names_short_forms_and_midr(midr: int, names: str) -> None:
    core = decode_midr(midr)
    assert [name for name in names.split() if not is_taken(core, name)] == []


@pytest.mark.parametrize(
    ("midr", "names"),
    [
        (0x410FD0B0, "cortex a7 a76ae 76 x - 0x41:0xd0 0xd0b ? ["),
        (0x410FD0E0, "a76 cortex-a76"),
        (0x410FD0C0, "neoverse n"),
        (0x500F0000, "x gene"),
        (0x480FD420, "? cortex kunpeng None none 0x48:0xd02"),
    ],
)
def test_no_other_word_is_a_name_of_a_core(midr: int, names: str) -> None:
    core = decode_midr(midr)
    assert [name for name in names.split() if is_taken(core, name)] == []


def test_every_core_of_the_table_is_taken_by_its_own_names() -> None:
    for (implementer, part), names in core_names().items():
        core = decode_midr(implementer << 24 | part << 4)
        assert core.name == names[0]
        for name in (*names, *short_names(core), core.midr):
            assert is_taken(core, name), name


@pytest.mark.parametrize("vendor", [0x41, 0x42, 0x43, 0x46, 0x48, 0x4E, 0x50, 0x51, 0x53, 0x61])
def test_the_table_has_cores_of_every_vendor(vendor: int) -> None:
    found = {implementer for implementer, _ in core_names()}
    assert vendor in found
    assert found >= {0x6D, 0x70, 0xC0}
    assert len(core_names()) >= 146


def test_a_full_name_goes_before_a_short_form_of_another_core() -> None:
    pmus = [make_pmu("old", 0x4E0F0000), make_pmu("new", 0x4E0F0030)]
    assert [pmus[0].cores[0].name, pmus[1].cores[0].name] == ["Denver", "Denver-2"]
    assert select_pmu("core/denver", pmus).name == "old"
    assert select_pmu("core/denver-2", pmus).name == "new"
    assert len(match_pmus("core/denver*", pmus)) == 2


def test_two_pmus_of_one_core_model_are_told_apart_by_no_core() -> None:
    pmus = [make_pmu("armv8_pmuv3_0", 0x512F0011), make_pmu("armv8_pmuv3_1", 0x511F0011)]
    with pytest.raises(UsageError, match="stands for 2 PMUs"):
        select_pmu("core/oryon", pmus)


def test_two_core_models_of_one_name_are_told_apart_by_their_midr() -> None:
    pmus = [make_pmu("silver", 0x510F2010), make_pmu("gold", 0x510F2050)]
    assert {core.name for pmu in pmus for core in pmu.cores} == {"Kryo"}
    assert len(match_pmus("core/kryo", pmus)) == 2
    assert select_pmu("core/0x51:0x205", pmus).name == "gold"


def test_unknown_cores_are_two_models_with_a_midr_each() -> None:
    pmus = [make_pmu("mid", 0x480FD420), make_pmu("new", 0x480FFFF0)]
    assert len({core for pmu in pmus for core in pmu.cores}) == 2
    assert [str(pmu.cores[0]) for pmu in pmus] == ["0x48:0xd42", "0x48:0xfff"]
    assert select_pmu("core/0x48:0xd42", pmus).name == "mid"
    with pytest.raises(NotFoundError) as error:
        select_pmu("core/cortex-a76", pmus)
    assert error.value.why == "the core models of this host: 0x48:0xd42, 0x48:0xfff"


def test_the_core_model_of_offline_cpus_is_said_to_be_unknown() -> None:
    offline = replace(make_pmu("armv9_cortex_x3"), online=CpuSet())
    with pytest.raises(NotFoundError) as error:
        select_pmu("core/x3", [make_pmu("mid", 0x410FD460), offline])
    assert error.value.why == (
        "the core models of this host: Cortex-A510 (0x41:0xd46); "
        "not known of armv9_cortex_x3, whose CPUs are offline"
    )
