"""A model in shards: each of several processes holds a part of every weight, and gathers a layer only while
it computes it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from preftune.errors import ConfigError
from preftune.model.kernels.recompute import layers_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How a model lies on several processes.

    Args:
        mode: "none" keeps it whole in each, and costs a sum of all gradients per step; "full" keeps 1/N of
            its weights, gradients and moments in each of N, and costs two gathers of the weights and a sum of
            the gradients per micro-batch.
        reshard: with "full": give a layer's weights back after its forward pass; false keeps them until
            backward is done, which saves one of the two gathers and costs the memory of the whole weights
            meanwhile.
        offload: with "full", on GPUs: keep weights, gradients and moments in the host's memory, which costs a
            copy over the bus for every gather, and updates on the host.
    """

    mode: Literal["none", "full"] = "none"
    reshard: bool = True
    offload: bool = False

    def __post_init__(self) -> None:
        if self.mode == "none" and (not self.reshard or self.offload):
            raise ConfigError(
                "shard.reshard and shard.offload have no effect",
                got="shard.mode none",
                do="Set --shard.mode full, or leave them out",
            )
        if self.mode == "full" and not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise ConfigError(
                "This torch cannot train a model in shards exactly",
                got=torch.__version__,
                expected="torch 2.13 or newer",
                do="Upgrade torch, or leave --shard.mode out",
            )


class _Root(nn.Module):
    """The unit of what lies outside the layers. Work in its forward pass finds embeddings, norm and heads
    gathered.

    The body and the head are called apart, so no forward pass of the model itself would gather both; and
    embeddings tied to the head are one parameter, which must be in one unit.
    """

    def __init__(self, model: nn.Module, value_head: nn.Module | None):
        super().__init__()
        self.model = model
        self.value_head = value_head

    def forward(self, work: Callable[[], T]) -> T:
        return work()


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards:
    """A model that was cut into shards. Every pass of it is one of all processes, which must make equally
    many.
    """

    root: _Root
    device: torch.device  # where it computes; with offload its shards lie elsewhere
    reshard: bool

    def run(self, work: Callable[[], T]) -> T:
        """Passes of the model, with what lies outside its layers gathered. Tensors that carry a gradient must
        be returned in
        tuples: backward gathers again when it comes to them.
        """
        made = self.root(work)
        if not self.reshard and not torch.is_grad_enabled():  # no backward pass will give the weights back
            for unit in self._units():
                unit.reshard()
        return made

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Gather all weights in each process within the context, for passes of its own without gradients."""
        for unit in self._units():
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self._units():
                unit.set_reshard_after_forward(self.reshard or unit is self.root, recurse=False)
                unit.reshard()

    def behind(self, passes: int) -> int:
        """By how many passes the process with most of them will be ahead of this one."""
        most = torch.tensor(passes)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most) - passes

    def _units(self) -> list[FSDPModule]:
        return [module for module in self.root.modules() if isinstance(module, FSDPModule)]


def cut_up(
    model: nn.Module, value_head: nn.Module | None, options: ShardOptions, device: torch.device, low: bool
) -> Shards:
    """Replace every parameter by this process's shard of it, in place; a unit for each layer and one for the
    rest.

    With `low`, layers are gathered and computed in bf16 while their shards stay as they are, and gradients
    are summed in fp32. The unit of the rest is given back after every pass: what is registered between passes
    is the shards, always.
    """
    if options.offload and device.type == "cpu":
        raise ConfigError(
            "shard.offload has no effect without a GPU", got=f"device {device}", do="Leave it out"
        )
    root = _Root(model, value_head)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Autocast is on in every pass and casts what it must: inputs stay as they are, so that residuals are
    # summed as without shards.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    where = CPUOffloadPolicy() if options.offload else OffloadPolicy()
    for layer in layers_of(model):
        _receive(layer, device)
        plain = policy if low else MixedPrecisionPolicy()
        fully_shard(
            layer, mesh=mesh, reshard_after_forward=options.reshard, mp_policy=plain, offload_policy=where
        )
    _receive(root, device)
    fully_shard(root, mesh=mesh, reshard_after_forward=True, offload_policy=where)
    shards = Shards(root=root, device=device, reshard=options.reshard)
    for unit in shards._units():  # gradients are sums: the loss is divided by the weight of the whole step
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    # A value head that a piece does not reach has a gradient of 0 there, and not none: processes must reduce
    # the same tensors.
    cast(FSDPModule, root).set_reduce_scatter_unused_params(True)
    return shards


@torch.no_grad()
def _receive(unit: nn.Module, device: torch.device) -> None:
    """Get the weights of a unit that no process has cut up yet from the first process, by all processes. The
    others held them on the meta device: none ever holds more than a unit whole.
    """
    for parameter in [p for p in unit.parameters() if not isinstance(p, DTensor)]:
        # NCCL sends from GPUs alone. Bytes: gloo does not know all types.
        sent = torch.empty_like(parameter, device=device)
        if dist.get_rank() == 0:
            sent.copy_(parameter)
        dist.broadcast(sent.view(-1).view(torch.uint8), src=0)
        if parameter.is_meta:
            whole = nn.Parameter(sent, requires_grad=parameter.requires_grad)
            torch.utils.swap_tensors(parameter, whole)


def full_tensors(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors put together, on the CPU; by all processes, of which those with `keep` get them. Tied ones
    stay one tensor.
    """
    found: dict[int, Tensor] = {}
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in found:
            whole = tensor.detach()
            whole = whole.full_tensor() if isinstance(whole, DTensor) else whole
            if keep:
                found[id(tensor)] = whole.cpu()
        if keep:
            named[name] = found[id(tensor)]
    return named


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor that all processes have as this process's part of it, if the parameter is in shards; on
    its device.
    """
    if not isinstance(parameter, DTensor):
        return value.to(parameter.device)
    mesh: Any = parameter.device_mesh
    part = distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    return torch.zeros_like(parameter.detach()).copy_(
        part
    )  # where the parameter lies, which with offload is not the mesh's device
