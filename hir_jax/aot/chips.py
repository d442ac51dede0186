"""Published figures of accelerators, and the topologies that XLA compiles for without any of them."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from hir_jax.types import InputError

INSTALL = "pip install -r requirements-aot.txt"


class Chip(NamedTuple):
    """One device, as its maker publishes it. GB are 10^9 bytes."""

    name: str
    flops_per_s: float  # bfloat16, dense
    hbm_bytes: float
    hbm_bytes_per_s: float
    link_bytes_per_s: float  # to its neighbours, all links together, one direction
    source: str


# Links: v5e 1,600 and v5p 4,800 Gbit/s of inter-chip interconnect; v6e 800 GB/s and the H100's (SXM5) NVLink 900 GB/s in both
# directions together
CHIPS = {
    "v5e": Chip("TPU v5e", 197e12, 16e9, 819e9, 200e9, "cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip("TPU v5p", 459e12, 95e9, 2765e9, 600e9, "cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip("TPU v6e", 918e12, 32e9, 1638e9, 400e9, "cloud.google.com/tpu/docs/v6e"),
    "h100": Chip("NVIDIA H100 80GB", 989.5e12, 80e9, 3352e9, 450e9, "NVIDIA H100 Tensor Core GPU data sheet"),
}
DIMENSIONS = {"v5e": 2, "v5p": 3, "v6e": 2, "h100": 1}

# XLA compiles for an absent GPU from its facts: those of the H100 SXM5, under the names of XLA's GpuTargetConfigProto
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
"""

# To be set before jax is used: keeps jax on the CPU, and libtpu from asking the cloud's metadata server for its machine
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}  # fmt: skip


class Topology(NamedTuple):
    chip: Chip
    platform: str  # tpu | cuda
    sizes: tuple[int, ...]  # devices by dimension; of GPUs, those of one machine

    @property
    def count(self) -> int:
        return math.prod(self.sizes)


def parse(name: str) -> Topology:
    """The Topology that "v5e:4x4" or "h100:8" names. InputError for an unknown one."""
    chip, _, sizes = name.partition(":")
    if chip not in CHIPS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes):
        raise InputError(
            f"--topology={name}: give CHIP:SIZES, such as v5e:4x4, v5p:2x2x2, v6e:4x4 or h100:8; known chips: "
            + ", ".join(CHIPS)
        )
    found = Topology(CHIPS[chip], "cuda" if chip == "h100" else "tpu", tuple(map(int, sizes.split("x"))))
    if len(found.sizes) != (dimensions := DIMENSIONS[chip]):
        raise InputError(f"--topology={name}: {chip} has {dimensions} dimension{'s' if dimensions > 1 else ''}")
    return found


def devices(topology: Topology) -> Sequence:
    """Devices to compile for. InputError if the compiler's package is not installed."""
    package = "libtpu" if topology.platform == "tpu" else "jax_cuda13_plugin"
    if importlib.util.find_spec(package) is None:
        raise InputError(f"compiling for {topology.chip.name} needs the package {package}: {INSTALL}")
    from jax.experimental import topologies

    if topology.platform == "cuda":
        how = {"topology_name": "", "target_config": _H100, "topology": f"1x1x{topology.count}"}
    else:
        key = next(key for key, chip in CHIPS.items() if chip is topology.chip)
        how = {"topology_name": f"{key}:{'x'.join(map(str, topology.sizes))}"}
    try:
        return topologies.get_topology_desc(platform=topology.platform, **how).devices
    except Exception as error:  # jaxlib has its own RuntimeError for sizes that a chip does not come in
        raise InputError(f"--topology: XLA does not know {topology.chip.name} x {topology.sizes}: {error}") from None
