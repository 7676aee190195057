"""Stated rates of devices and links: data sheets, no measurements."""

from __future__ import annotations

from dataclasses import dataclass

from nt_pretrain.observe.meters import peak_tflops


@dataclass(frozen=True)
class Machine:
    """A device and what connects it to others, in SI units per second; links one way, per device.

    Attributes:
        memory: bytes of the device.
        memory_rate: bytes per second between the device and its memory.
        link: bytes per second to a device of the same node.
        network: bytes per second to a device of another node.
        devices_per_node: devices that ``link`` connects.
    """

    name: str
    memory: float
    memory_rate: float
    link: float
    network: float
    devices_per_node: int = 8

    @property
    def peak(self) -> float:
        """Dense bf16 operations per second."""
        found = peak_tflops(self.name.split("-")[0].upper())
        assert found is not None
        return found * 1e12


MACHINES = {
    machine.name: machine
    for machine in (
        # name, memory, memory rate, NVLink or Infinity Fabric one way, network (400 or 200 Gbit/s a device)
        Machine("a100-40g", 40e9, 1.555e12, 300e9, 25e9),
        Machine("a100-80g", 80e9, 2.039e12, 300e9, 25e9),
        Machine("h100-80g", 80e9, 3.35e12, 450e9, 50e9),
        Machine("h200-141g", 141e9, 4.8e12, 450e9, 50e9),
        Machine("b200-180g", 180e9, 7.7e12, 900e9, 50e9),
        Machine("l40s-48g", 48e9, 0.864e12, 32e9, 25e9),
        Machine("mi300x-192g", 192e9, 5.3e12, 448e9, 50e9),
    )
}
