"""Config files in the shapes that the CoT-NLI guide's have, written for a test."""

from __future__ import annotations

from pathlib import Path

BY_PACKAGE = "from train.configs.default import *\n\n"
BY_PATH = """\
import os
import sys

current_dir = os.path.dirname(os.path.abspath(__file__))
default_path = os.path.join(current_dir, "default.py")
sys.path.insert(0, os.path.dirname(current_dir))
from configs.default import *

"""
ABLATION = """\
output_dir = "models/ablation"
batch_size = 8
grad_accumulation_steps = 4  # effective batch: 32
learning_rate = 3e-4
lora_r = 32
lora_alpha = 64
max_grad_norm = 1.0
use_packing = False
gradient_checkpointing = False
use_wandb = True
wandb_project = "mine"
wandb_name = "ablation"
"""
DEFAULT = """\
seed = 7
num_epochs = 3
batch_size = 4
grad_accumulation_steps = 2
gradient_checkpointing = True
eval_steps = 10
logging_steps = 25
save_steps = 500
gpu_id = 1
max_grad_norm = None
wandb_run_name = None
distributed_training = False
"""


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
