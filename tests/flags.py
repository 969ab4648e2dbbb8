"""What XLA is asked for in tests: in this process, and in those that tests start."""

import importlib.metadata

__all__ = ["xla"]

_OLDER = "--xla_cpu_use_fusion_emitters=false"
"""The older emitters of XLA's CPU compiler, from the same program in 35 to 70 % of the time.

Measured of a solve by L-BFGS (jaxlib 0.10.2): 0.4 of 1.3 s, and 1.1 of 1.6 s with optimizations.
jaxlib 0.11 has them no more, and XLA ends a process that gives it a flag it does not know.
"""


def xla(devices: int) -> str:
    """XLA_FLAGS of a process with this many fake devices."""
    known = importlib.metadata.version("jaxlib").startswith("0.10.")
    count = f"--xla_force_host_platform_device_count={devices}"
    return f"{_OLDER} {count}" if known else count
