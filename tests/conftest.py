"""One thread a process, for all tests and the programs they start.

Sums in another order differ in the last bits, so bit-identity holds between equal numbers of threads only; and for
networks as small as these, threads cost more than they gain.
"""

import os

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{library}_NUM_THREADS"] = "1"  # before anything imports torch
