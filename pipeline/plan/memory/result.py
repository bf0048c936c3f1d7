"""The result of a memory estimate, and whether it fits a device and a machine.

Only what torch allocates is counted. On a GPU a process also holds the CUDA context, libraries and fragments of the
allocator (`BESIDE_TORCH`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

BESIDE_TORCH = 1 << 30
# host memory for the system and all other programs
BESIDE_TRAINING = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device by purpose; parts that never exist at the same time are not added up.

    Attributes:
        parts: part -> bytes, in the order in which they are printed.
        peak: largest number of bytes at one time.
        host: bytes of host memory, all processes of the machine together; 0 if not estimated.
        host_parts: part -> bytes of host memory, like `parts`.
    """

    parts: Mapping[str, int]
    peak: int
    host: int = 0
    host_parts: Mapping[str, int] = field(default_factory=dict)

    def fits(self, device_bytes: int) -> bool:
        """Whether a device of that size is large enough."""
        return self.peak + BESIDE_TORCH <= device_bytes

    def fits_host(self, host_bytes: int) -> bool:
        """Whether a machine with that much memory is large enough."""
        return self.host + BESIDE_TRAINING <= host_bytes
