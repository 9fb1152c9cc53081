"""Tensors to bytes and back, and nested states to flat tensors: the only module here that needs torch."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

from tailorpo_trainer.checkpoint.format import CorruptError


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in host memory, contiguous and sharing nothing: training may go on while they are written."""
    copies = {}
    for name, tensor in tensors.items():
        copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        copies[name].copy_(tensor.detach())
    return copies


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file."""
    return _save(dict(tensors), metadata={"format": "pt"})  # diffusers refuses files without this mark


def unpack(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; `CorruptError` if it is none."""
    try:
        # Cloned, because tensors that an optimiser adopts must be aligned as torch aligns its own: some CPU
        # kernels choose their path, and so their rounding, by alignment.
        return {name: tensor.clone() for name, tensor in _load(data).items()}
    except SafetensorError as error:
        raise CorruptError(f"{where}: is not a safetensors file: {error}") from None


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """A nested state, such as `optimizer.state_dict()`, as tensors by name and JSON that refers to them.

    What JSON does not have is written as an object with one key: `{"$tensor": NAME}`, `{"$tuple": [...]}`,
    `{"$items": [[KEY, VALUE], ...]}` for mappings with other keys than text, `{"$float": "inf"}`.
    Raises `TypeError` for anything else and `ValueError` if two tensors would get one name.
    """
    tensors: dict[str, Tensor] = {}

    def visit(node: Any, path: str) -> Any:
        def below(key: object) -> str:
            return f"{path}.{key}" if path else str(key)

        match node:
            case Tensor():
                if path in tensors:
                    raise ValueError(f"two tensors would be named {path!r}")
                tensors[path] = node
                return {"$tensor": path}
            case None | bool() | int() | str():
                return node
            case float():
                return node if math.isfinite(node) else {"$float": repr(node)}
            case tuple():
                return {"$tuple": [visit(value, below(index)) for index, value in enumerate(node)]}
            case list():
                return [visit(value, below(index)) for index, value in enumerate(node)]
            case Mapping() if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {key: visit(value, below(key)) for key, value in node.items()}
            case Mapping() if all(isinstance(key, str | int) for key in node):
                return {"$items": [[key, visit(value, below(key))] for key, value in node.items()]}
        raise TypeError(f"{path or 'state'}: cannot keep a {type(node).__name__} in a checkpoint")

    return tensors, visit(tree, "")


def unflatten(tensors: Mapping[str, Tensor], tree: Any) -> Any:
    """The nested state that `flatten` took apart, exactly."""
    match tree:
        case {"$tensor": str(name)}:
            return tensors[name]
        case {"$tuple": list(values)}:
            return tuple(unflatten(tensors, value) for value in values)
        case {"$items": list(items)}:
            return {key: unflatten(tensors, value) for key, value in items}
        case {"$float": str(text)}:
            return float(text)
        case dict():
            return {key: unflatten(tensors, value) for key, value in tree.items()}
        case list():
            return [unflatten(tensors, value) for value in tree]
    return tree
