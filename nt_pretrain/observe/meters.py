"""Speed, waiting, memory and time left, measured over the steps since the last reading."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

# Dense bf16 peak of one device in TFLOP/s (data sheets; where those quote structured sparsity, half of it). The first
# entry whose words all stand in the device's name counts, so variants stand before the plain name.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GH200", 989.4),
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("H100 NVL", 835.5),
    ("H100 PCIe", 756.5),
    ("H100", 989.4),
    ("B200", 2250.0),
    ("A100", 312.0),
    ("A30", 165.0),
    ("A40", 149.7),
    ("L40S", 362.0),
    ("L4", 121.0),
    ("MI300X", 1307.4),
    ("MI250X", 191.5),  # one of its two dies, which is what a device is here
)


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak in TFLOP/s of a device by its name; None where it is not known (every CPU).

    >>> peak_tflops("NVIDIA H100 PCIe")
    756.5
    """
    words = device_name.replace("-", " ").split()
    return next((peak for name, peak in PEAK_TFLOPS if all(word in words for word in name.split())), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory in use so far: allocated on the GPU, or the resident size of this process right now on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def memory_total_bytes(device: torch.device) -> int | None:
    """Memory of the GPU; None on a CPU, whose memory is shared with others, so that a share of it would say little."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


class Meter:
    """Measures one rank's training loop::

        with meter.waiting():            # the time a rank waits for its data
            batch = next(batches)
        ...
        meter.step(samples)              # once per optimizer step, with the tokens or pictures of all ranks
        with meter.paused():             # validation, checkpoint: not part of the time of a step
            validate()
        values = meter.read()            # at log steps

    Args:
        world: number of ranks, for MFU.
        remaining_steps: steps this process still has to make, for the time left.
        samples: what is counted, "tokens", "pictures" or "rows": a word in the names of the values.
        flops_per_sample: executed floating point operations per trained sample; None leaves MFU out. It may be set
            anew where another model is trained from there on.
        peak: TFLOP/s of one device from the configuration; 0 looks the device up and leaves MFU out when it is unknown.
        samples_before, hours_before: what earlier processes of this run did.
        clock: seconds that only go up; tests give their own.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        world: int,
        remaining_steps: int,
        samples: str = "tokens",
        flops_per_sample: float | None = None,
        peak: float = 0.0,
        samples_before: int = 0,
        hours_before: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._world, self._clock = device, world, clock
        self._word, self.flops_per_sample = samples, flops_per_sample
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = peak or peak_tflops(name)
        self._remaining, self._done = remaining_steps, 0
        self._samples_total, self._hours_before = samples_before, hours_before
        self._peak_memory = 0
        self._start = self._window_start = clock()
        self._first_step_end: float | None = None
        self._steps = self._samples = 0
        self._waited = self._paused = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - begin

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    def step(self, samples: int) -> None:
        """Count one optimizer step over ``samples`` real tokens or pictures of all ranks."""
        self._steps += 1
        self._done += 1
        self._samples += samples
        self._samples_total += samples
        if self._first_step_end is None:
            self._first_step_end = self._clock()

    @property
    def samples_total(self) -> int:
        return self._samples_total

    @property
    def hours(self) -> float:
        """Hours of all processes of this run together."""
        return self._hours_before + (self._clock() - self._start) / 3600

    def eta_seconds(self) -> float | None:
        """Seconds left at the pace so far, validation and checkpoints included; None before the second step.

        The first step is left out of the pace: it starts reader processes and compiles.
        """
        if self._first_step_end is None or self._done < 2:
            return None
        return (self._clock() - self._first_step_end) / (self._done - 1) * (self._remaining - self._done)

    def read(self) -> dict[str, float]:
        """Values of the steps since the last reading. Seconds, samples of all ranks, bytes of this rank.

        Raises:
            ValueError: when no step was made since the last reading.
        """
        if self._steps == 0:
            raise ValueError("meter.read() before any meter.step(): there is nothing to average over")
        now = self._clock()
        busy = max(now - self._window_start - self._paused, 1e-9)
        self._peak_memory = max(self._peak_memory, peak_memory_bytes(self._device))
        values = {
            "time/step_seconds": busy / self._steps,
            "time/data_fraction": min(self._waited / busy, 1.0),
            "time/hours": self.hours,
            f"throughput/{self._word}_per_second": self._samples / busy,
            "memory/peak_bytes": float(self._peak_memory),
            f"{self._word}/total": float(self._samples_total),
        }
        if self._peak and self.flops_per_sample:
            flops_per_second = self.flops_per_sample * self._samples / busy
            values["throughput/mfu"] = flops_per_second / (self._world * self._peak * 1e12)
        self._window_start, self._steps, self._samples, self._waited, self._paused = now, 0, 0, 0.0, 0.0
        return values
