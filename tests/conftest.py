"""What all tests need: the project's folder on the import path, no network, one thread."""

import os
import sys
from pathlib import Path

os.environ["WANDB_MODE"] = "disabled"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # threads on tensors this small only wait for each other; inherited by the scripts under test
)
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
