"""Optimizer and schedule of a trial, as transformers' `Trainer` (5.23) and PEFT's LoRA+ (0.21) make them.

Classes, settings, parameter groups and their order are equal, so that either loads the other's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from trials.config import Hyperparameters, TrialConfig
from trials.schedule import TrialLength, schedule_arguments, warmup_steps

NamedParameters = Sequence[tuple[str, nn.Parameter]]


def build_optimizer(
    named_parameters: NamedParameters, config: TrialConfig, length: TrialLength
) -> tuple[torch.optim.Optimizer, LRScheduler]:
    """Build them for LoRA's A and B, named and ordered as in PEFT. Clipping the gradient is left to the caller."""
    hp = config.hyperparameters
    groups = _plain_groups(named_parameters, hp) if hp.loraplus_ratio == 1.0 else _loraplus_groups(named_parameters, hp)
    settings: dict[str, Any] = {"lr": hp.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8}
    if hp.optimizer.startswith("adamw_torch"):
        optimizer = _torch_adamw(groups, settings, hp)
    else:
        optimizer = _bitsandbytes_adamw(groups, settings, hp)
    scheduler: LRScheduler = get_scheduler(
        hp.scheduler,
        optimizer=optimizer,
        num_warmup_steps=warmup_steps(hp, length),
        num_training_steps=length.steps,
        scheduler_specific_kwargs=schedule_arguments(hp),
    )
    return optimizer, scheduler


def _plain_groups(named_parameters: NamedParameters, hp: Hyperparameters) -> list[dict[str, Any]]:
    """Return `Trainer`'s two groups; the second, for biases and norms without weight decay, is empty in an adapter."""
    return [
        {"params": [parameter for _, parameter in named_parameters], "weight_decay": hp.weight_decay},
        {"params": [], "weight_decay": 0.0},
    ]


def _loraplus_groups(named_parameters: NamedParameters, hp: Hyperparameters) -> list[dict[str, Any]]:
    """Return PEFT's four LoRA+ groups: A, embeddings, B, and B without weight decay.

    An adapter of linear layers has parameters in the first and the third only.
    """
    a = [parameter for name, parameter in named_parameters if "lora_B" not in name]
    b = [parameter for name, parameter in named_parameters if "lora_B" in name]
    rate_of_b = hp.learning_rate * hp.loraplus_ratio
    return [
        {"params": a, "weight_decay": hp.weight_decay, "lr": hp.learning_rate},
        {"params": [], "weight_decay": hp.weight_decay, "lr": 1e-6},
        {"params": b, "weight_decay": hp.weight_decay, "lr": rate_of_b},
        {"params": [], "weight_decay": 0.0, "lr": rate_of_b},
    ]


def _torch_adamw(groups: list[dict[str, Any]], settings: dict[str, Any], hp: Hyperparameters) -> torch.optim.Optimizer:
    """Return torch's AdamW; on a GPU always the fused one, which does the same arithmetic in fewer kernel launches."""
    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
    fused = True if on_gpu or hp.optimizer == "adamw_torch_fused" else None
    return torch.optim.AdamW(groups, fused=fused, **settings)


def _bitsandbytes_adamw(
    groups: list[dict[str, Any]], settings: dict[str, Any], hp: Hyperparameters
) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW; on a GPU never paged: the state is small, and paging waits for the GPU every step."""
    from bitsandbytes.optim import AdamW

    class Unwaiting(AdamW):  # type: ignore[misc]
        """AdamW without bitsandbytes' (0.50) wait for the GPU after every parameter: kernels run in order anyway."""

        @torch.no_grad()
        def step(self, closure: None = None) -> None:
            for group_index, group in enumerate(self.param_groups):
                for index, parameter in enumerate(group["params"]):
                    if not self.state[parameter]:
                        self.init_state(group, parameter, group_index, index)
                    self.update_step(group, parameter, group_index, index)

    on_gpu = any(parameter.is_cuda for group in groups for parameter in group["params"])
    kind = Unwaiting if on_gpu else AdamW
    optimizer: torch.optim.Optimizer = kind(
        groups,
        optim_bits=8 if "8bit" in hp.optimizer else 32,
        is_paged=hp.optimizer.startswith("paged") and not on_gpu,
        **settings,
    )
    return optimizer
