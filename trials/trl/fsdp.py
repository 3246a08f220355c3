"""Sharding of the frozen base over the processes of a trial (FSDP2, `torch.distributed.fsdp.fully_shard`).

Only the frozen weights of decoder layers are sharded. Adapter and optimizer are small, and stay whole on every rank. So
checkpoints, clipping and 8-bit optimizers work as without sharding. A layer's weights are gathered while it computes.
Of all other layers a rank holds its share: their size over the number of ranks.
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
"""Dtype in which packed 4-bit weights are held, two bytes a number."""


class FsdpCallback(TrainerCallback):  # type: ignore[misc]
    """Callback that shards the base after DDP has wrapped the adapter, before the first micro-batch."""

    def __init__(self, ranks: ProcessGroup) -> None:
        self._ranks = ranks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Shard the base; the trainer calls this before its first step."""
        shard_base_model(kwargs["model"], self._ranks.world_size)


def leave_base_out_of_ddp(model: PeftModel) -> None:
    """Exclude the base from DDP.

    DDP then doesn't broadcast the base, which every rank has loaded, and doesn't keep its weights once it is sharded.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in model.named_buffers()]
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, [*frozen, *buffers])


def shard_base_model(model: PeftModel, ranks: int) -> None:
    """Shard the decoder layers over `ranks` processes.

    All of them must call this, and must run the same number of forward and backward passes from then on.
    """
    decoder = model.get_base_model().get_decoder()
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad}
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (ranks,))
    for layer in decoder.layers:
        _keep_quantisation(layer)
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    # The root has no sharded weights of its own. It lets one layer be gathered while another computes.
    fully_shard(decoder, mesh=mesh, ignored_params={*whole, *_outside(decoder)})


def _outside(decoder: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of a decoder that don't belong to its layers."""
    return {parameter for name, parameter in decoder.named_parameters() if not name.startswith("layers.")}


def _keep_quantisation(layer: nn.Module) -> None:
    """View packed weights as plain floating-point numbers with the same bits, which can be sharded.

    bitsandbytes (0.50) finds what it needs to unpack them beside them in the module. Until torch 2.12, FSDP2 can't hold
    bytes: it makes a parameter of them that requires a gradient, before it turns that off.
    """
    for module in layer.modules():
        weight: Any = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            weight.data = weight.data.flatten().view(STORAGE).unsqueeze(1)
            module.quant_state = state
            module.quant_storage = STORAGE  # type: ignore[assignment]  # bitsandbytes has no types
