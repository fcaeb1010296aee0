"""Matrices in the order that oneDNN multiplies fastest, laid out once instead of at every product. As many bytes, and no bit changes.

For serving on a CPU alone: there is no gradient through them. Where it would not pay, or is not offered, matrices stay as they are.
For a GPU what is small lies in float32 instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FEWEST_WEIGHTS = 1 << 17  # of a matrix: below, starting a product an expert costs more than a better order saves


class BlockedStack(Tensor):
    """Stands where a stack (num_rows, width out, width in) stood. Its shape, dtype and size can be asked for; no operation takes it."""

    matrices: tuple[Tensor, ...]

    @staticmethod
    def __new__(cls, matrices: Sequence[Tensor]) -> BlockedStack:
        size = (len(matrices), *matrices[0].shape)
        made = Tensor._make_wrapper_subclass(cls, size, dtype=matrices[0].dtype, device=matrices[0].device)
        made.matrices = tuple(matrices)
        return made

    def __init__(self, matrices: Sequence[Tensor]) -> None:
        super().__init__()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"BlockedStack({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func}: matrices laid out for products are no ordinary tensors")


def can_block(matrix: Tensor) -> bool:
    """Whether laying this matrix out is offered and pays."""
    return (
        _is_offered(matrix.dtype)
        and matrix.device.type == "cpu"
        and matrix.numel() >= FEWEST_WEIGHTS
        and not matrix.requires_grad
        and not matrix.is_mkldnn
    )


def _is_offered(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def blocked(matrix: Tensor) -> Tensor:
    """(width out, width in) laid out, or as it is."""
    if not can_block(matrix):
        return matrix
    with torch.inference_mode(False), torch.no_grad():
        return torch.ops.mkldnn._reorder_linear_weight(matrix, None)  # type: ignore[no-any-return]


def widened(tensor: Tensor) -> Tensor:
    """A norm, bias or router, which is used in float32: so on a GPU, where converting it takes as long as using it; else as it is."""
    return tensor.float() if tensor.is_cuda else tensor


def blocked_stack(stack: Tensor) -> Tensor:
    """An ordinary stack (num_rows, width out, width in) laid out, or as it is."""
    if isinstance(stack, BlockedStack) or not can_block(stack[0]):
        return stack
    return BlockedStack([blocked(matrix) for matrix in stack.unbind(0)])


def row_of(stack: Tensor, row: int) -> Tensor:
    """One matrix, laid out where its stack is."""
    return stack.matrices[row] if isinstance(stack, BlockedStack) else stack[row]


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """`x @ matrix.T`, in their common dtype."""
    return torch.ops.mkldnn._linear_pointwise(x, matrix, None, "none", [], "")  # type: ignore[no-any-return]


def rectified_product(x: Tensor, matrix: Tensor) -> Tensor:
    """`relu(x @ matrix.T)`, in one call."""
    return torch.ops.mkldnn._linear_pointwise(x, matrix, None, "relu", [], "")  # type: ignore[no-any-return]
