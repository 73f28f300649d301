"""One peer on one row, on the GPU: ``python -m tests.gpu.worker ROW THREADS DATA``; see tests.benchmarks.worker."""

from __future__ import annotations

import sys

from tests.benchmarks.worker import serve
from tests.gpu.timed import row_named

if __name__ == "__main__":
    serve("tests.gpu.peers", row_named(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
