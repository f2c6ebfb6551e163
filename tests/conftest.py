"""Puts the project's folder on the import path, and keeps tests off the network and away from the user's W&B account."""
import os
import sys
from pathlib import Path

os.environ["WANDB_MODE"] = "disabled"
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
