"""The frozen base divided over the processes of a trial (FSDP2, `torch.distributed.fsdp.fully_shard`).

Only decoder layers are divided, and of those only what is frozen: adapter and optimizer are small, and stay whole on
every rank. So checkpoints, clipping and 8-bit optimizers are as they are without it. A layer is put together while it
computes; what is taken up is a layer's weights, and what is saved is the rest of them over the number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trials.system.distributed import ProcessGroup

STORAGE = torch.bfloat16
"""Of packed 4-bit weights, two bytes a number."""


class FsdpCallback(TrainerCallback):  # type: ignore[misc]
    """Divides the base once DDP has the adapter, before the first micro-batch."""

    def __init__(self, ranks: ProcessGroup) -> None:
        self._ranks = ranks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called by the trainer."""
        shard_base_model(kwargs["model"], self._ranks.world_size)


def leave_base_out_of_ddp(model: PeftModel) -> None:
    """DDP then neither sends the base to all ranks, who have loaded it, nor keeps it when it has been divided."""
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in model.named_buffers()]
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, [*frozen, *buffers])


def shard_base_model(model: PeftModel, ranks: int) -> None:
    """Divides the decoder layers over so many ranks, all of which must call it and pass them as often from then on."""
    decoder = model.get_base_model().get_decoder()
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks,))
    for layer in decoder.layers:
        _keep_quantisation(layer)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # The root of the layers, with none of its own: it lets one be fetched while another computes.
    fully_shard(decoder, mesh=mesh, ignored_params={*whole, *_outside(decoder)})


def _outside(decoder: nn.Module) -> set[nn.Parameter]:
    """The parameters of a decoder that don't belong to its layers."""
    return {parameter for name, parameter in decoder.named_parameters() if not name.startswith("layers.")}


def _keep_quantisation(layer: nn.Module) -> None:
    """Packed weights become what can be divided: plain numbers of a floating-point type, their bits as they were.

    bitsandbytes (0.50) finds what it needs to unpack them beside them in the module. Until torch 2.12, FSDP2 can't hold
    bytes: it makes a parameter of them that wants a gradient, before it says that it doesn't.
    """
    for module in layer.modules():
        weight: Any = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            weight.data = weight.data.flatten().view(STORAGE).unsqueeze(1)
            module.quant_state = state
            module.quant_storage = STORAGE  # type: ignore[assignment]  # bitsandbytes has no types
