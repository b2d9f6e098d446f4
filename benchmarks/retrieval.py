"""Region search at the size of VOC 2012: 10,582 + 1,449 images x 15 regions, on simulated features.

    python benchmarks/retrieval.py [--dims 2048] [--threads 2] [--kind spectrum|isotropic]

The features are unit vectors with a common direction that holds 69% of their energy and, in random directions,
variances that fall like i^-1.5: the spectrum of 4,575 CamVid regions of a ResNet-18 pretrained on photos. They are
drawn independently, so that the nearest region is farther away (cosine about 0.93) than among real images (0.98), which
makes the exact search harder. ``isotropic`` has no structure at all; then all pairs are multiplied.

Printed and written to benchmarks/results/: seconds of the search, processor seconds, peak memory of the process, and
whether a sample of queries found what comparing all pairs finds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from datetime import date
from pathlib import Path

TRAIN_IMAGES, TEST_IMAGES = 10_582, 1_449
MEAN_SHARE, DECAY = 0.69, -1.5


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--dims", type=int, default=2048, help="length of a descriptor (ResNet-50: 2048)")
    words.add_argument("--regions", type=int, default=15, help="regions per image")
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--kind", choices=("spectrum", "isotropic"), default="spectrum")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--checked", type=int, default=256, help="queries compared with all pairs")
    words.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "retrieval.json")
    options = words.parse_args()
    # Read when the libraries are loaded.
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    result = measure(options)
    width = max(map(len, result))
    for key, value in result.items():
        print(f"{key:<{width}}  {value}")
    from polyscene.runtime.files import write_text
    from polyscene.runtime.run import environment

    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, json.dumps({**result, "environment": environment()}, indent=2) + "\n")
    print(f"written: {options.out}")


def measure(options: argparse.Namespace) -> dict:
    import faiss
    import numpy as np

    from polyscene.downstream.segments.search import most_similar, nearest_regions
    from polyscene.runtime.run import processor

    faiss.omp_set_num_threads(options.threads)
    generator = np.random.default_rng(options.seed)
    scales = spectrum(options.dims, options.kind)
    mirrors = generator.standard_normal((3, options.dims)).astype(np.float32)
    bank, queries = (
        draw(images * options.regions, scales, mirrors, generator) for images in (TRAIN_IMAGES, TEST_IMAGES)
    )
    before, load = peak_gb(), os.getloadavg()[0]
    start, start_cpu = time.perf_counter(), time.process_time()
    scores, found = nearest_regions(queries, bank)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    after = peak_gb()
    sample = np.linspace(0, len(queries) - 1, options.checked).astype(int)
    expected_scores, expected = most_similar(queries[sample], bank, 1)
    return {
        "date": date.today().isoformat(),
        "kind": options.kind,
        "queries": len(queries),
        "bank": len(bank),
        "dims": options.dims,
        "seed": options.seed,
        "threads": options.threads,
        "search_seconds": round(seconds, 2),
        "search_processor_seconds": round(cpu, 2),
        "peak_memory_gb": round(after, 2),
        "peak_memory_before_search_gb": round(before, 2),
        "median_similarity": round(float(np.median(scores)), 3),
        "sample_equals_all_pairs": bool((expected[:, 0] == found[sample]).all()),
        "sample_similarity_error": float(np.abs(expected_scores[:, 0] - scores[sample]).max()),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load_before_search": round(load, 2),
        "faiss": faiss.__version__,
    }


def spectrum(dims: int, kind: str):
    """Standard deviation along every direction, and the length of the mean."""
    import numpy as np

    if kind == "isotropic":
        return np.full(dims, dims**-0.5, dtype=np.float32), 0.0
    variances = np.arange(1, dims + 1) ** DECAY
    variances *= (1 - MEAN_SHARE) / variances.sum()
    return np.sqrt(variances).astype(np.float32), MEAN_SHARE**0.5


def draw(count: int, scales, mirrors, generator):
    """(count, dims) float32 unit vectors, turned by a few reflections so that no axis is special."""
    import numpy as np

    deviations, length = scales
    dims = len(deviations)
    vectors = np.empty((count, dims), dtype=np.float32)
    for start in range(0, count, 8192):
        part = generator.standard_normal((min(8192, count - start), dims), dtype=np.float32) * deviations
        for mirror in mirrors:
            part -= np.outer(part @ mirror, 2 * mirror / (mirror @ mirror))
        part += np.float32(length / dims**0.5)
        vectors[start : start + 8192] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def peak_gb() -> float:
    """Largest resident memory of this process so far, in GB (2^30 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if platform.system() == "Darwin" else 2**20)


if __name__ == "__main__":
    main()
