"""python run_pipeline.py extract | train-head | evaluate | ground | manifest | cache | lmms | …  (--help says more)."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
