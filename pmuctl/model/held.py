# SPDX-License-Identifier: Apache-2.0
"""A VM held against its PMU: which one that is, and where its vCPUs may be."""

from pmuctl.model.alignment import Chosen, Judgement, Verdict, judge_mask, judge_vm, words
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.vm import Vm, VmVcpu
from pmuctl.value import value


@value(kw_only=True)
class HeldVcpu:
    """A vCPU, the CPUs its thread may be on (None where not known), and whether it can leave."""

    vcpu: VmVcpu
    affinity: CpuSet | None
    judgement: Judgement

    @property
    def index(self) -> int:
        """Its number."""
        return self.vcpu.index

    @property
    def tid(self) -> int | None:
        """Its thread, where that is known."""
        return self.vcpu.tid


@value(kw_only=True)
class HeldVm:
    """A VM, the PMU it has or can have, and whether its vCPUs stay there: each, and all."""

    vm: Vm
    chosen: Chosen
    vcpus: tuple[HeldVcpu, ...]
    judgement: Judgement

    @classmethod
    def of(
        cls, vm: Vm, chosen: Chosen, masks: dict[int, CpuSet], online: CpuSet | None
    ) -> "HeldVm":
        """A VM whose threads have these masks, by thread id."""
        vcpus = tuple(
            HeldVcpu(vcpu=its, affinity=mask, judgement=judge_mask(mask, chosen, online))
            for its in vm.vcpus or ()
            for mask in [None if its.tid is None else masks.get(its.tid)]
        )
        judged = judge_vm([its.affinity for its in vcpus], chosen, online)
        return cls(vm=vm, chosen=chosen, vcpus=vcpus, judgement=judged)

    @property
    def is_stray(self) -> bool:
        """Whether a vCPU can leave its PMU, or some of them do whichever it is."""
        return self.judgement.aligned is False

    @property
    def strays(self) -> tuple[HeldVcpu, ...]:
        """The vCPUs that can leave the VM's PMU, whichever it is."""
        return tuple(its for its in self.vcpus if its.judgement.aligned is False)

    @property
    def is_torn(self) -> bool:
        """Whether no vCPU leaves by itself: they are on several PMUs, of which it has one."""
        return self.is_stray and not self.strays

    @property
    def leavers(self) -> tuple[HeldVcpu, ...]:
        """The vCPUs that its judgement is about: those that leave one of the PMUs it can have."""
        if not self.is_stray:
            return ()
        if self.judgement.verdict is Verdict.STRANDED:
            return tuple(its for its in self.strays if its.judgement.verdict is Verdict.STRANDED)
        stay = (Verdict.STAYS, Verdict.STRANDED)
        known = (its for its in self.vcpus if its.affinity is not None)
        return tuple(its for its in known if its.judgement.verdict not in stay)

    @property
    def means(self) -> str | None:
        """What it means for the guest where its vCPUs may be; None without a PMU."""
        whose = f"vCPU {CpuSet.of(its.index for its in self.leavers)}"
        return words(self.judgement, self.chosen, whose, self.vm.identity.kind)
