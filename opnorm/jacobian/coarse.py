"""Rows of Jacobians in bfloat16, several times cheaper where the hardware multiplies such matrices.

The forward pass is the model's own, so every ReLU is on or off as it is there: that is what a forward pass in bfloat16
would get wrong most. Only what goes backward is rounded, in the operations that take most of the time; all others are
called as autograd would call them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opnorm._core.surrogate import has_bf16
from opnorm.jacobian.products import Jacobian

__all__ = ["CoarseRows", "usable"]

NARROW = torch.bfloat16
MOVES = ("ConstantPadNdBackward0", "SliceBackward0", "ViewBackward0")  # no arithmetic, so right in any type

Step = Callable[[Tensor], tuple[Tensor | None, ...]]


def usable(J: Jacobian) -> bool:
    """Whether rows in bfloat16 are cheaper: on a CPU made for it, in float32, with convolutions.

    Not with an ``autograd.Function`` of the user's own, which only autograd can call.
    """
    nodes = _in_order(J.outputs)
    floats = J.inputs.dtype == J.outputs.dtype == torch.float32
    convolutions = any(type(node).__name__ == "ConvolutionBackward0" for node in nodes)
    on_cpu = J.inputs.device.type == "cpu"
    own = any(isinstance(node, torch._C._FunctionBase) for node in nodes)
    return floats and convolutions and not own and on_cpu and has_bf16(J.inputs.device)


class CoarseRows:
    """J_bᵀ u_b of a graph that exists already, with convolutions, ReLUs, sums and batch norms in bfloat16.

    A batch norm after a convolution is multiplied into its weights. What comes out is within about 1 % of Jᵀu, much less in
    its length.

    Args:
        J: the maps; see :func:`usable`. Their graph is kept.
    """

    def __init__(self, J: Jacobian) -> None:
        self.outputs = J.outputs
        self.nodes = _in_order(J.outputs)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self.end = next(i for i, node in enumerate(self.nodes) if getattr(node, "variable", None) is J.inputs)
        self.edges = [[self._edge(*to) for to in node.next_functions] for node in self.nodes]
        self.feeders: dict[int, list[str]] = {i: [] for i in range(len(self.nodes))}
        for node, edges in zip(self.nodes, self.edges, strict=True):
            for edge in edges:
                if edge:
                    self.feeders[edge[0]].append(type(node).__name__)
        self.scales: dict[int, Tensor] = {}  # of convolutions that a batch norm follows
        with torch.no_grad():
            self.steps = [self._step(i, node) for i, node in enumerate(self.nodes)]

    @torch.no_grad()
    def adjoint(self, u: Tensor) -> Tensor:
        """(B, *out) -> (B, *in), float32."""
        waiting: list[dict[int, Tensor]] = [{} for _ in self.nodes]  # gradients of the outputs of each node
        waiting[0][self.outputs.output_nr] = u
        for i, step in enumerate(self.steps[: self.end]):
            given, waiting[i] = waiting[i], {}
            if not given:
                continue
            back = step(_laid_out(given[0].to(NARROW))) if step else _called(self.nodes[i], given)
            for edge, grad in zip(self.edges[i], back, strict=True):
                if edge is None or grad is None:
                    continue
                to, place, shape = edge
                grad = _laid_out(grad if grad.shape == shape else grad.sum_to_size(shape))
                before = waiting[to].get(place)
                waiting[to][place] = grad if before is None else before + grad
        return waiting[self.end][0].float()

    def _edge(self, to: Any, place: int) -> tuple[int, int, torch.Size] | None:
        """Where a gradient goes, and what was broadcast from: autograd sums over that between nodes."""
        return None if to is None else (self.index[to], place, torch.Size(to._input_metadata[place].shape))

    def _step(self, i: int, node: Any) -> Step | None:
        """What does a node's work in bfloat16; None where the node itself has to."""
        match type(node).__name__:
            case "ConvolutionBackward0" if node._saved_weight.dtype == torch.float32:
                return _convolution(node, self.scales.get(i))
            case "ReluBackward0" if node._saved_result.dtype == torch.float32:
                return _relu(node, in_place=self._is_sole_owner(i))
            case "AddBackward0" if node._saved_alpha == 1:
                return lambda grad: (grad, grad)
            case "NativeBatchNormBackward0" if not node._saved_training:
                return self._batch_norm(node)
        return None

    def _is_sole_owner(self, i: int) -> bool:
        """Whether nobody else looks at what arrives: the new result of a convolution, or a sum of several."""
        names = self.feeders[i]
        return set(names) <= {"ConvolutionBackward0", "AddBackward0"} and names != ["AddBackward0"]

    def _batch_norm(self, node: Any) -> Step:
        scale = (node._saved_running_var + node._saved_eps).rsqrt()
        if node._saved_weight is not None:
            scale = scale * node._saved_weight
        before = node.next_functions[0][0]
        if type(before).__name__ == "ConvolutionBackward0" and len(self.feeders[self.index[before]]) == 1:
            self.scales[self.index[before]] = scale
            return lambda grad: (grad, None, None)
        return lambda grad: (grad * _spread(scale.to(NARROW), grad.ndim), None, None)


def _convolution(node: Any, scale: Tensor | None) -> Step:
    weight = node._saved_weight if scale is None else node._saved_weight * _spread_out(scale, node)
    weight = _laid_out(weight.to(NARROW))
    like = node._saved_input
    like = _laid_out(torch.empty_like(like, dtype=NARROW))  # its shape is all that is needed
    settings = (
        list(node._saved_stride),
        list(node._saved_padding),
        list(node._saved_dilation),
        node._saved_transposed,
        list(node._saved_output_padding),
        node._saved_groups,
    )
    wanted = (True, False, False)
    return lambda grad: torch.ops.aten.convolution_backward(grad, like, weight, None, *settings, wanted)


def _relu(node: Any, in_place: bool) -> Step:
    # all bits where the unit is on, none where it is off: several times quicker than to compare each time
    mask = _laid_out(node._saved_result.to(NARROW)).view(torch.int16).neg_().bitwise_right_shift_(15)
    cut = torch.Tensor.bitwise_and_ if in_place else torch.Tensor.bitwise_and
    return lambda grad: (cut(grad.view(torch.int16), mask).view(NARROW),)


def _called(node: Any, given: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """The node's own work, in its own type."""
    grads = []
    for place, like in enumerate(node._input_metadata):
        grad = given.get(place)
        if grad is None:
            grad = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        grads.append(grad if type(node).__name__ in MOVES else grad.to(like.dtype))
    back = node(*grads)
    return back if isinstance(back, tuple) else (back,)


def _in_order(outputs: Tensor) -> list[Any]:
    """The nodes of the graph, each before those that it feeds in a backward pass."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(outputs.grad_fn, False)]
    while stack:
        node, left = stack.pop()
        if left:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack += [(node, True), *((to, False) for to, _ in node.next_functions if to is not None)]
    return order[::-1]


def _laid_out(t: Tensor) -> Tensor:
    """Channels last, for which no convolution has to reorder anything."""
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t.contiguous()


def _spread(scale: Tensor, ndim: int) -> Tensor:
    return scale.view(-1, *(1,) * (ndim - 2))


def _spread_out(scale: Tensor, node: Any) -> Tensor:
    """Over the output channels of a convolution's weight."""
    weight = node._saved_weight
    if not node._saved_transposed:
        return scale.view(-1, *(1,) * (weight.ndim - 1))
    inputs, each = weight.shape[:2]
    groups = node._saved_groups
    return (
        scale.view(groups, 1, each)
        .expand(-1, inputs // groups, -1)
        .reshape(inputs, each, *(1,) * (weight.ndim - 2))
    )
