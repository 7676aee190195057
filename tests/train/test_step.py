"""The head-by-head step against one joint backward, its memory, and masks and clipping."""

import torch
from torch import nn

from nt_pretrain.models.llama import make_context
from nt_pretrain.parallel.forward import Inputs
from nt_pretrain.parallel.mesh import connect
from nt_pretrain.train.state import fresh_state
from nt_pretrain.train.step import accumulate_gradients, apply_gradients, micro_batch_backward
from tests.gloo import run_ranks
from tests.models.test_multihead import SMALL, filled
from tests.train.worlds import sequences, tiny


def batch():
    return Inputs.of_text(*sequences(1))


def joint_gradients(config, model) -> dict[str, torch.Tensor]:
    inputs, targets, documents = batch()
    context = make_context(config.model, documents)
    hidden = model.trunk_output(inputs % 97, context)
    losses = [head(hidden, context, targets % 97, 64) for head in model.heads.values()]
    (sum(losses) * 0.01).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_equals_the_joint_backward():
    config = tiny().model_copy(update={"model": SMALL})
    model = filled(SMALL)
    expected = joint_gradients(config, model)
    model.zero_grad()
    inputs, targets, documents = batch()
    micro_batch_backward(model, config, Inputs(inputs % 97, targets % 97, documents), 0.01)
    for name, parameter in model.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < 1e-6, name


class PeakOfSavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps alive for backward passes, and their peak."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        super().__init__(self._pack, self._unpack)

    def _pack(self, tensor: torch.Tensor):
        if isinstance(tensor, nn.Parameter):
            return tensor
        return _Kept(self, tensor)

    def _unpack(self, kept):
        return kept.tensor if isinstance(kept, _Kept) else kept


class _Kept:
    def __init__(self, counter: PeakOfSavedTensors, tensor: torch.Tensor) -> None:
        self.counter, self.tensor, self.size = counter, tensor, tensor.numel() * tensor.element_size()
        counter.live += self.size
        counter.peak = max(counter.peak, counter.live)

    def __del__(self) -> None:
        self.counter.live -= self.size


def peak_bytes(heads: int) -> int:
    section = SMALL.model_copy(update={"heads": heads})
    config = tiny().model_copy(update={"model": section})
    model = filled(section)
    inputs, targets, documents = batch()
    counter = PeakOfSavedTensors()
    with counter:
        micro_batch_backward(model, config, Inputs(inputs % 97, targets % 97, documents), 1.0)
    assert counter.live == 0
    return counter.peak


def test_peak_activation_memory_is_that_of_one_head():
    assert peak_bytes(5) == peak_bytes(1)


def _masked_step(rank: int, world: int, warm: bool):
    config = tiny(sparsity={"grown_moments": "warm" if warm else "mean"}, optim={"clip": 1e9})
    ranks = connect(config)
    state = fresh_state(config, ranks)
    accumulate_gradients(state.model, config, Inputs.of_text(*sequences(1)), ranks)
    active = {layer.name: layer.active.view(state.parameters[layer.name].shape) for layer in state.layers}
    square = sum(
        float((gradient * active.get(name, True)).double().square().sum())
        for name, gradient in state.optimizer.gradients().items()
    )
    norm = apply_gradients(state.optimizer, state.layers, config, ranks, 1e-2)
    inactive_weights = sum(int(state.optimizer.shards[name][~flags].count_nonzero()) for name, flags in active.items())
    inactive_moments = sum(
        int(state.optimizer.first_moment(name)[~flags].count_nonzero()) for name, flags in active.items()
    )
    return norm, square**0.5, inactive_weights, inactive_moments


def test_norm_counts_active_weights_only_and_masked_weights_stay_zero():
    for warm in (False, True):
        norm, expected, weights, moments = run_ranks(_masked_step, 1, warm)[0]
        assert abs(norm / expected - 1) < 1e-6
        assert weights == 0
        assert (moments > 0) is warm, "warm moments integrate the dense gradient"


def _clipped(rank: int, world: int, clip: float):
    config = tiny(optim={"clip": clip})
    ranks = connect(config)
    state = fresh_state(config, ranks)
    accumulate_gradients(state.model, config, Inputs.of_text(*sequences(1)), ranks)
    norm = apply_gradients(state.optimizer, state.layers, config, ranks, 1e-2)
    moments = [state.optimizer.first_moment(name) for name in state.parameters]
    return norm, float(torch.stack([m.double().square().sum() for m in moments]).sum().sqrt())


def test_clipping_scales_the_whole_gradient():
    norm, moment = run_ranks(_clipped, 1, 0.05)[0]
    unclipped, full = run_ranks(_clipped, 1, 0.0)[0]
    assert norm == unclipped > 0.05
    # After the first step the first moment is (1 - beta1) times the gradient that AdamW saw.
    assert abs(moment / (0.1 * 0.05) - 1) < 1e-5
    assert abs(full / (0.1 * norm) - 1) < 1e-5


def _not_finite(rank: int, world: int):
    config = tiny()
    ranks = connect(config)
    state = fresh_state(config, ranks)
    before = [parameter.full_tensor().clone() for parameter in state.parameters.values()]
    accumulate_gradients(state.model, config, Inputs.of_text(*sequences(1)), ranks)
    next(iter(state.optimizer.gradients().values())).view(-1)[0] = float("nan")
    norm = apply_gradients(state.optimizer, state.layers, config, ranks, 1e-2)
    same = [torch.equal(a, b.full_tensor()) for a, b in zip(before, state.parameters.values(), strict=True)]
    return norm, all(same)


def test_a_gradient_that_is_not_finite_changes_nothing():
    norm, unchanged = run_ranks(_not_finite, 1)[0]
    assert norm != norm and unchanged
