"""One walk along the graph of a forward, for all that is known of its values: Lipschitz bounds, intervals, linear bounds."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from opnorm.errors import BoundError
from opnorm.norms.network.graph import ForwardGraph
from opnorm.norms.network.shared_memory import same_memory, storage_of
from opnorm.norms.network.trace import first_line, tensors_in

__all__ = ["RANDOM", "GraphWalk", "operation_of"]

RANDOM = frozenset((
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "poisson", "dropout", "alpha_dropout", "feature_alpha_dropout",
    "dropout1d", "dropout2d", "dropout3d",
))  # fmt: skip
IN_PLACE = frozenset(("iadd", "isub", "imul", "itruediv", "imatmul"))


class GraphWalk(fx.Interpreter):
    """Runs the graph on an example and keeps what is known of every value.

    Attributes:
        bounds: what is known of the nodes so far; a BoundError where nothing is.
        result: of the output.
        written: nodes whose values were written to later.
        overwritten: the reason, where the forward writes to a parameter, a buffer or a constant.
        follows_writes: whether more than a reason is known of values that are written to in part, or that were constant.
    """

    follows_writes = False

    def __init__(self, forward: ForwardGraph) -> None:
        super().__init__(nn.Module(), graph=forward.graph)
        self.extra_traceback = False  # it would be added to the reasons
        self.named, self.made_anew = forward.named, forward.made_anew
        self.bounds: dict[fx.Node, Any] = {}
        self.result: Any = None
        self.written: set[fx.Node] = set()
        self.overwritten = ""

    def known_of(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """What is known of a node, whose arguments have these values and whose output this one."""
        raise NotImplementedError

    def overwrite(self, m: fx.Node, by: fx.Node, whole: bool) -> None:
        """A later node wrote into the value of node m: all of it, or a part."""

    def partly(self, m: fx.Node, value: Any, n: fx.Node, output: Any, reason: BoundError) -> Any:
        """What is known of the value of node m after node n wrote into a part of its memory."""
        return reason

    def fetch_attr(self, target: str) -> Any:
        """The layer or constant that a node names; a copy of what the forward makes and writes to."""
        return self.named[target].clone() if target in self.made_anew else self.named[target]

    def layer_of(self, n: fx.Node) -> nn.Module | None:
        """The layer that a node calls; None where it calls a function."""
        return self.fetch_attr(str(n.target)) if n.op == "call_module" else None

    def run_node(self, n: fx.Node) -> Any:
        """The value of the node; what is known of it is kept in ``bounds``."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        versions = [(t, t._version) for t in tensors_in((*self.env.values(), args, kwargs))]
        if _in_place(operation_of(n)) and args and isinstance(args[0], Tensor):
            args = (args[0].clone(), *args[1:])  # rules take a constant as it was before
        try:
            output = super().run_node(n)
        except Exception as e:  # of the user's own network
            raise BoundError(f"its graph fails where the model need not, at {n.name}: {first_line(e)}") from e
        if any(t.layout != torch.strided for t in tensors_in(output)):
            raise BoundError(
                f"{n.name} ({operation_of(n)}) is sparse; bounds are known for dense tensors only"
            )
        bound = self.bounds[n] = self.known_of(n, args, kwargs, output)
        written = {storage_of(t) for t, version in versions if t._version != version}
        for m, value in [*self.env.items()] if written else ():
            if any(storage_of(t) in written for t in tensors_in(value)):
                self._rewrite(m, value, n, output)
        if n.op == "output":
            self.result = bound
        return output

    def _rewrite(self, m: fx.Node, value: Any, n: fx.Node, output: Any) -> None:
        """Node n wrote into the memory of the value of node m."""
        whole = same_memory(value, output)
        reason = BoundError(f"{n.name} ({operation_of(n)}) writes into {m.name}")
        self.written.add(m)
        self.overwrite(m, n, whole)
        self.bounds[m] = self.bounds[n] if whole else self.partly(m, value, n, output, reason)
        if m.op == "get_attr" and not (self.follows_writes and m.target in self.made_anew):
            self.overwritten = f"{n.name} writes into {m.target}"


def _in_place(operation: str) -> bool:
    """Whether an operation of this name writes into its first argument."""
    return (operation.endswith("_") and not operation.endswith("__")) or operation in IN_PLACE


def operation_of(n: fx.Node) -> str:
    """The name of the function or layer that a node calls; that of an operator of a library has the library before it.

    An own operator may have the name of a function of torch, and another meaning.
    """
    if isinstance(n.target, str):
        return n.target
    of_library = type(n.target).__module__ == "torch._ops"
    return str(n.target) if of_library else getattr(n.target, "__name__", str(n.target))
