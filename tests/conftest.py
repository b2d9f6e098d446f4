"""One thread a process, for all tests and the programs they start; helpers of several folders are in `shared/`.

Sums in another order differ in the last bits, so bit-identity holds between equal numbers of threads only; and for
networks as small as these, threads cost more than they gain.
"""

import os
import sys
from pathlib import Path

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{library}_NUM_THREADS"] = "1"  # before anything imports torch

sys.path.insert(0, str(Path(__file__).parent / "shared"))
