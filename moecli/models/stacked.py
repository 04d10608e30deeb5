"""L models of one shape as one: x (L N, *item), model after model -> Output over all L N tokens.

Every parameter of the L models becomes a view into one *leaf*, which is what autograd and an optimizer see, so the
models themselves go on being what is evaluated and saved.  What stands outside of the mixtures is mapped over the
lanes; experts and family hold the parameters of L E experts; routers see all tokens at once, each lane as a group.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from moecli.experts.experts import Experts
from moecli.families.family import Family
from moecli.mixture import together
from moecli.models.lanes import SparseLanes, in_lanes
from moecli.models.model import Model
from moecli.plan import Groups, Plan
from moecli.routing import Router, Routing, Tokens

Act = Callable[[Any, Tensor], Tensor]  # what is done with a part and its tokens


class Apart(Exception):
    """Why some models cannot be one, as half a sentence."""


class Stacked(nn.Module):
    """The models as one; afterwards their parameters are views of the leaves.  Raises Apart where they cannot be."""

    def __init__(self, models: Sequence[Model]):
        super().__init__()
        _refuse_other_shapes(models)
        self.lanes, self.leaves = len(models), list[tuple[nn.Parameter, list[nn.Parameter]]]()
        self.model = self._lifted(copy.deepcopy(models[0]), models).train()
        if len(self.leaves) < len(list(models[0].parameters())):
            raise Apart("a parameter of theirs lies outside of gates, experts and heads")

    def forward(self, x: Tensor, known: dict[str, Tensor] | None = None) -> Any:
        return self.model(x, known)

    def _lifted(self, template: nn.Module, parts: Sequence[nn.Module]) -> nn.Module:
        """The template with each child in the place of its L counterparts."""
        for name, child in template.named_children():
            setattr(template, name, self._together(child, [part.get_submodule(name) for part in parts]))
        return template

    def _together(self, template: nn.Module, parts: Sequence[nn.Module]) -> nn.Module:
        if isinstance(template, Experts):
            return self._experts(template, parts)
        if isinstance(template, Family):
            return self._wide(template, parts)
        if isinstance(template, Router):
            return _Router(self._lifted(template, parts), self.lanes)
        if any(isinstance(module, Experts) for module in template.modules()):
            return self._lifted(template, parts)
        own = {name: self._leaf(tensors, torch.stack) for name, tensors in _tensors(parts).items()}
        return _Mapped(template, own, self.lanes)

    def _experts(self, template: Experts, parts: Sequence[nn.Module]) -> _Experts:
        wide = self._wide(copy.deepcopy(template), parts)
        tensors = [*wide.named_parameters(), *wide.named_buffers()]
        own = {name: tensor.unflatten(0, (self.lanes, -1)) for name, tensor in tensors}
        return _Experts(wide, _Mapped(template, own, self.lanes))

    def _wide(self, template: Any, parts: Sequence[nn.Module]) -> Any:
        """One module of L E experts: their tensors end to end."""
        counted = [module for module in template.modules() if hasattr(module, "num_experts")]
        if len({module.num_experts for module in counted}) > 1:
            raise Apart("its experts are modules of several kinds")
        for name, own in _tensors(parts).items():
            owner, _, last = name.rpartition(".")
            setattr(template.get_submodule(owner), last, self._leaf(own, torch.cat))
        for module in counted:
            module.num_experts *= self.lanes
        return template

    def _leaf(self, own: Sequence[Tensor], join: Any) -> Tensor:
        """One tensor of L; parameters become views of it."""
        joined = join([tensor.detach() for tensor in own])
        if not isinstance(own[0], nn.Parameter):
            return joined
        leaf = nn.Parameter(joined, own[0].requires_grad)
        for parameter, view in zip(own, lanes_of(joined, own[0].shape), strict=True):
            parameter.data = view
        self.leaves.append((leaf, list(own)))  # type: ignore[arg-type]
        return leaf


def lanes_of(leaf: Tensor, shape: torch.Size) -> Tensor:
    """(L, *shape) or (L E, ...) -> (L, *shape)."""
    return leaf.view(-1, *shape)


def _tensors(parts: Sequence[nn.Module]) -> dict[str, list[Tensor]]:
    """Parameters and buffers by name, those of all counterparts together."""
    return {
        name: [
            part.get_parameter(name) if isinstance(tensor, nn.Parameter) else part.get_buffer(name) for part in parts
        ]
        for name, tensor in [*parts[0].named_parameters(), *parts[0].named_buffers()]
    }


def _refuse_other_shapes(models: Sequence[Model]) -> None:
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()} for model in models]
    if any(shape != shapes[0] for shape in shapes) or len({type(model) for model in models}) > 1:
        raise Apart("their shapes differ")


class _Mapped(nn.Module):
    """A gate, a head: each lane's tokens through its own parameters, x (L N, *item) -> (L N, *out)."""

    def __init__(self, part: nn.Module, tensors: dict[str, Tensor], lanes: int):
        super().__init__()
        self.lanes, self.tensors = lanes, {f"part.{name}": tensor for name, tensor in tensors.items()}
        called = _Called(part)

        def one(tensors: dict[str, Tensor], act: Act, x: Tensor) -> Tensor:
            return functional_call(called, tensors, (act, x))

        self.one = one  # the part itself is no child: its own parameters train no more

    def map(self, act: Act, x: Tensor) -> Tensor:
        own = x.unflatten(0, (self.lanes, -1))
        return torch.vmap(self.one, in_dims=(0, None, 0))(self.tensors, act, own).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(lambda part, own: part(own), x)

    def log_marginal(self, x: Tensor) -> Tensor:
        return self.map(lambda gate, own: gate.log_marginal(own), x)


class _Called(nn.Module):
    """Whatever is done with a module, as ``functional_call`` wants it."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, act: Act, x: Tensor) -> Tensor:
        return act(self.part, x)


class _Router(nn.Module):
    """One decision over the tokens of all lanes, none of which sees another's."""

    def __init__(self, router: nn.Module, lanes: int):
        super().__init__()
        self.router, self.lanes = router, lanes

    @property
    def gate(self) -> Any:
        return self.router.gate

    def forward(self, tokens: Tokens) -> Routing:
        size = len(tokens.x) // self.lanes
        lane = torch.arange(self.lanes, device=tokens.x.device).repeat_interleave(size)
        routing = self.router(replace(tokens, group=lane))
        plan = in_lanes(routing.plan, self.lanes)
        return replace(routing, plan=plan, asked=plan if routing.asked is routing.plan else routing.asked)


class _Experts(Experts):
    """Experts of all lanes: L E of them for the edges of a sparse plan, E for each lane where all serve every token."""

    def __init__(self, wide: Experts, each: _Mapped):
        super().__init__()
        self.wide, self.each, self.num_experts = wide, each, wide.num_experts // each.lanes

    def forward(self, rows: Tensor, groups: Groups) -> Tensor:
        return self.wide(rows, groups)

    def rows(self, plan: Plan, x: Tensor) -> Tensor:
        own = in_lanes(plan, self.each.lanes)
        return self.wide.rows(own.wide, x) if isinstance(own, SparseLanes) else self.each.map(_every, x)

    def blend(self, plan: Plan, x: Tensor) -> Tensor:
        own = in_lanes(plan, self.each.lanes)
        return self.wide.blend(own.wide, x) if isinstance(own, SparseLanes) else own.combine(self.rows(own, x))


def _every(experts: Experts, x: Tensor) -> Tensor:  # (N, D) -> (E N, Y)
    return experts.rows(together(experts, x), x)
