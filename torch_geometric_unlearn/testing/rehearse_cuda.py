from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch_geometric
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ._claimed import CLAIMED, INNER, ClaimedTensor, is_claimed
from ._claimed_runtime import ClaimedGenerator, check_generators, runtime
from ._device_rules import operator


class Wait(NamedTuple):
    r"""A place where the host waits for the device.

    Attributes:
        operator (str): What it waits for.
        place (str): The innermost function outside of torch and PyG, as
            :obj:`file.py:function`.
        in_step (bool): Whether it was inside a training step.
    """

    operator: str
    place: str
    in_step: bool


class Rehearsal(TorchDispatchMode):
    r"""What :meth:`rehearse_cuda` has seen.

    Attributes:
        waits (list): Every :class:`Wait`, in order.
    """

    def __init__(self, allow: Collection[str] = ()) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.in_step = False
        self._allow = frozenset(allow)

    def note_wait(self, operator: str) -> None:
        r"""Keeps that the host waits here, and raises inside a training step."""
        wait = Wait(operator, _place(), self.in_step)
        self.waits.append(wait)
        fails = sys.exc_info()[1] is not None  # Which must not be hidden.
        if self.in_step and not fails and wait.place not in self._allow:
            raise RuntimeError(
                f"The host waits for the device inside a training step: '{operator}' "
                f"in '{wait.place}'. Keep the value on the device, or permit it with "
                f'rehearse_cuda(allow=[{wait.place!r}]).'
            )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, facts = kwargs or {}, operator(func)
        if facts.is_composite:  # As a whole, it would hide what it is made of.
            with self:
                return func.decompose(*args, **kwargs)
        outer: dict[int, ClaimedTensor] = {}
        plain_args = [_unwrap(x, outer) for x in args]
        plain_kwargs = {key: _unwrap(x, outer) for key, x in kwargs.items()}
        to = kwargs.get('device')
        arrives = bool(outer) if to is None else to.type != 'cpu'
        check_generators((*args, *kwargs.values()), arrives)
        if not outer and not arrives:
            return func(*args, **kwargs)
        custom = OPDEFS.get(func._schema.name)
        if custom is not None:
            with self, _Names():  # What it runs inside is looked at as well.
                return custom._init_fn(*args, **kwargs)
        values = facts.values(args, kwargs)
        _leave_number(facts.name, values)
        facts.check_devices(values)
        if facts.waits(values):
            self.note_wait(str(func))
        if to is not None:
            plain_kwargs['device'] = torch.device('cpu')
        out = func(*plain_args, **plain_kwargs)
        if facts.is_inplace_view:
            with torch._C._ExcludeDispatchKeyGuard(_PYTHON):
                func(*args, **kwargs)  # The claim as well changes its shape.
        return _claim(out, outer, facts.name) if arrives else out


_PYTHON = torch._C.DispatchKeySet(torch._C.DispatchKey.Python)


def _unwrap(x: Any, outer: dict[int, ClaimedTensor]) -> Any:
    r"""Returns what an operator of the CPU gets, and notes what it has been taken from
    by its id.
    """
    if type(x) is ClaimedTensor:
        outer[id(x.value)] = x
        return x.value
    if isinstance(x, (list, tuple)):
        return [_unwrap(each, outer) for each in x]
    return x


def _claim(x: Any, outer: dict[int, ClaimedTensor], name: str) -> Any:
    r"""Returns what an operator has returned as on the device."""
    if isinstance(x, (list, tuple)):
        return type(x)(_claim(each, outer, name) for each in x)
    if not isinstance(x, Tensor):
        return x
    if id(x) not in outer:
        return ClaimedTensor(x, is_number=name == 'scalar_tensor')
    out = outer[id(x)]
    if out.size() != x.size():
        raise RuntimeError(
            f"'{name}' has changed the shape of a tensor in place, which a rehearsal "
            f"can't follow"
        )
    return out


def _leave_number(name: str, values: dict[str, Any]) -> None:
    r"""In the assignment of a number, has it on the host, where CUDA gets it from."""
    key = {'index_put': 'values', 'index_put_': 'values', 'copy_': 'src'}.get(name)
    if key is None or (name == 'copy_' and values['self'].dim() > 0):
        return
    if is_claimed(values[key]) and values[key].is_number:
        values[key] = values[key].value


# Of a tensor without data, torch does not look at the values that it is to hold.
_FROM_VALUES = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}


class _Names(TorchFunctionMode):
    r"""Has torch, which may be without CUDA, take the name of the device."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0].to(INNER, *args[2:], **kwargs)
        if func in _FROM_VALUES:
            device = kwargs.pop('device', None)
            if device is None and func is Tensor.new_tensor:
                device = args[0].device
            if device is None and is_claimed(args[0]):
                device = CLAIMED
            if device is None or torch.device(device).type == 'cpu':
                return func(*args, **kwargs, device=device)
            if func is Tensor.new_tensor:
                dtype = kwargs.pop('dtype', None) or args[0].dtype
                kwargs['dtype'], args, func = dtype, args[1:], torch.tensor
            x = args[0]
            if not is_claimed(x):
                x = func(*args, **kwargs)
            return x.to(INNER, kwargs.get('dtype') or x.dtype)
        if func is Tensor.to:
            args = [_inner(x) for x in args]
        if 'device' in kwargs:
            kwargs['device'] = _inner(kwargs['device'])
        return func(*args, **kwargs)


def _inner(x: Any) -> Any:
    is_name = isinstance(x, str) and x.partition(':')[0] == 'cuda'
    is_name = is_name or (isinstance(x, torch.device) and x.type == 'cuda')
    return INNER if is_name else x


_LIBRARIES = tuple(x.__path__[0] for x in (torch, torch_geometric))
_OWN = {
    os.path.join(os.path.dirname(__file__), f'{name}.py')
    for name in ('rehearse_cuda', '_claimed', '_claimed_runtime')
}


def _place() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARIES) and file not in _OWN:
            break
        frame = frame.f_back
    return f'{os.path.basename(frame.f_code.co_filename)}:{frame.f_code.co_name}'


@contextmanager
def rehearse_cuda(allow: Collection[str] = ()) -> Iterator[Rehearsal]:
    r"""Has torch, on a machine without a GPU, answer inside the block as if it had one
    [ours]: finds what would fail or stall on CUDA before there is CUDA.

    What is moved or made there keeps its values on the CPU, gives the results of the
    CPU, and says that it is on :obj:`cuda:0`. As on CUDA, an operator that mixes
    devices raises, where CUDA permits no mixture (it permits host tensors as indices,
    and in pointwise operators host tensors without dimensions), and so does a
    generator of the wrong device, and :obj:`.numpy()`.

    Where the host waits for the device is noted as
    :meth:`torch.cuda.set_sync_debug_mode` has it: :obj:`.item()`, :obj:`.tolist()`,
    :obj:`bool(x)`, printing, :obj:`nonzero` and indexing by masks, :obj:`unique`,
    blocking copies and the like. Inside a training step, which is what an optimizer of
    torch does between :obj:`zero_grad` and the end of :obj:`step`, it raises.

    It tells nothing of speed, memory and rounding, and runs no kernel of CUDA.
    Autocast and :obj:`torch.compile` do nothing for its tensors, random numbers are
    those of the CPU, a loop that never calls :obj:`zero_grad` has no steps, and
    :obj:`module.cuda()` makes new parameters: move a model before you build its
    optimizer. One thread at a time can rehearse.

    Args:
        allow (collection, optional): Places where a training step may wait, as
            :obj:`'file.py:function'`. (default: :obj:`()`)

    Returns:
        Rehearsal: Its :obj:`waits` are all places where the host has waited.

    Raises:
        RuntimeError: Inside the block, where CUDA would raise, where a training step
            waits at another place, or where a tensor is resized in place, which is not
            followed.
        TypeError: Inside the block, for :obj:`.numpy()` of a device tensor.

    Example:
        >>> data = SyntheticMultimodal('tiny')[0]
        >>> with rehearse_cuda() as rehearsal:
        ...     model = MGCN.from_data(data, hidden_channels=16).cuda()
        ...     result = fit(model, data, num_epochs=1)
        >>> any(wait.in_step for wait in rehearsal.waits)
        False
    """
    rehearsal = Rehearsal(allow)
    zero_grad = Optimizer.zero_grad

    def begin_step(optimizer: Any, set_to_none: bool = True) -> None:
        zero_grad(optimizer, set_to_none)
        rehearsal.in_step = True

    def end_step(*args: Any) -> None:
        rehearsal.in_step = False

    functions = runtime(rehearsal.note_wait)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **functions))
        stack.enter_context(mock.patch.object(torch, 'Generator', ClaimedGenerator))
        stack.enter_context(mock.patch.object(Optimizer, 'zero_grad', begin_step))
        stack.callback(register_optimizer_step_post_hook(end_step).remove)
        stack.enter_context(_Names())
        stack.enter_context(rehearsal)
        yield rehearsal
