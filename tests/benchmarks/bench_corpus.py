"""Preparing and reading a corpus: `python tests/benchmarks/bench_corpus.py --help`; see preparing.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    # Inside the condition, because worker processes import this file again and need none of what the command needs.
    from tests.benchmarks.preparing import main

    main()
