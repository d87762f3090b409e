"""The benchmarks are scripts in a folder of their own, which is put on the path here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import machine
import masking
import networks
import scaling

__all__ = ["gpu", "machine", "masking", "networks", "scaling"]
