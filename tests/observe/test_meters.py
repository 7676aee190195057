from __future__ import annotations

import pytest
import torch

from nt_pretrain.observe.meters import Meter, memory_total_bytes, peak_memory_bytes, peak_tflops

CPU = torch.device("cpu")


class Clock:
    """Seconds that go up only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_speed_wait_and_pause_are_told_apart() -> None:
    clock = Clock()
    meter = Meter(device=CPU, world=2, remaining_steps=10, clock=clock)
    for _ in range(4):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        meter.step(samples=1000)
    with meter.paused():
        clock.now += 100.0  # a validation
    values = meter.read()
    assert values["time/step_seconds"] == pytest.approx(2.0)
    assert values["time/data_fraction"] == pytest.approx(0.25)
    assert values["throughput/tokens_per_second"] == pytest.approx(500.0)
    assert values["tokens/total"] == 4000
    assert values["time/hours"] == pytest.approx(108 / 3600)
    assert values["memory/peak_bytes"] > 2**20
    assert "throughput/mfu" not in values  # no known peak of a CPU


def test_each_reading_covers_its_own_steps() -> None:
    clock = Clock()
    meter = Meter(device=CPU, world=1, remaining_steps=10, clock=clock)
    clock.now += 8.0
    meter.step(samples=100)
    meter.read()
    clock.now += 1.0
    meter.step(samples=100)
    assert meter.read()["time/step_seconds"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"before any meter\.step"):
        meter.read()


def test_earlier_processes_count() -> None:
    clock = Clock()
    meter = Meter(device=CPU, world=1, remaining_steps=10, samples_before=5000, hours_before=1.5, clock=clock)
    clock.now += 3600.0
    meter.step(samples=100)
    values = meter.read()
    assert (values["tokens/total"], values["time/hours"]) == (5100, pytest.approx(2.5))
    assert (meter.samples_total, meter.hours) == (5100, pytest.approx(2.5))


def test_time_left_leaves_out_the_first_step_and_counts_pauses() -> None:
    clock = Clock()
    meter = Meter(device=CPU, world=1, remaining_steps=12, clock=clock)
    clock.now += 60.0  # the first step starts the readers
    meter.step(samples=1)
    assert meter.eta_seconds() is None
    clock.now += 1.0
    meter.step(samples=1)
    with meter.paused():
        clock.now += 1.0
    assert meter.eta_seconds() == pytest.approx(2.0 * 10)


def test_mfu_with_a_given_peak() -> None:
    clock = Clock()
    meter = Meter(device=CPU, world=4, remaining_steps=1, flops_per_sample=6e9, peak=100.0, clock=clock)
    clock.now += 2.0
    meter.step(samples=40_000)
    # 6e9 * 20,000 tokens/s = 1.2e14 of 4 * 1e14
    assert meter.read()["throughput/mfu"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA A10G", None),
        ("", None),
    ],
)
def test_peaks_by_device_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_memory_of_a_cpu_has_no_total() -> None:
    assert memory_total_bytes(CPU) is None
    assert peak_memory_bytes(CPU) > 2**20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_of_a_gpu() -> None:
    device = torch.device("cuda", 0)
    kept = torch.zeros(2**24, device=device)
    total = memory_total_bytes(device)
    assert total is not None
    assert kept.numel() * 4 <= peak_memory_bytes(device) < total
