"""Memory of a phase with other weights beside its state: the ends of a curve, the teacher of a bridge, all weights of a
child while some of them are drawn.
"""

from __future__ import annotations

from dataclasses import replace

from nt_pretrain.config.schema import Config
from nt_pretrain.methods.phase import Phase
from nt_pretrain.methods.settings import single
from nt_pretrain.parallel.mesh import wants_cuda
from nt_pretrain.train.memory import Memory, element_bytes
from nt_pretrain.train.plan import Plan, make_plan


def plan_of(phase: Phase, world_size: int) -> Plan:
    """The plan of a phase, its memory with what lies beside the state."""
    plan = make_plan(phase.config, world_size)
    return replace(plan, memory=_with_beside(plan.memory, phase, world_size))


def _with_beside(memory: Memory, phase: Phase, world_size: int) -> Memory:
    beside, teaching = 0, 0
    if phase.annealing is not None:
        # All weights, while a step computes with those drawn; of the average too, while the target is measured.
        beside = memory.weights + memory.average
    if phase.curve is not None:
        # Both ends, and the control point while a step computes with another point.
        beside = 3 * memory.weights
    if phase.distils is not None:
        teacher = make_plan(single(phase.config), world_size).memory
        beside, teaching = teacher.weights, teacher.gathered + distillation_bytes(phase.config)
    on_host = phase.config.parallel.cpu_offload and wants_cuda(phase.config)
    return replace(memory, beside=beside, teaching=teaching, host=memory.host + beside * on_host)


def distillation_bytes(config: Config) -> int:
    """Of a divergence from a teacher, for one micro-batch: its logits and the head's, both whole, both as logarithmic
    probabilities in fp32 at least, and the three products that the divergence is summed from.
    """
    model, compute = config.model, element_bytes(config)[0]
    rows = config.train.micro_batch * (1 if model.classifies else config.data.sequence_length)
    return rows * (model.classes if model.classifies else model.vocab_size) * (2 * compute + 5 * max(4, compute))
