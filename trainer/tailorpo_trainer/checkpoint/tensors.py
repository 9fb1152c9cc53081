"""Tensors to bytes and back, and nested states to flat tensors: the only module of this package that needs torch."""

import json
import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load
from torch import Tensor

from tailorpo_trainer.checkpoint.format import CorruptError

NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32",
    torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
"""The types that a checkpoint may hold, and their names in safetensors."""


def pack(tensors: Mapping[str, Tensor]) -> memoryview:
    """A safetensors file in host memory that shares no memory with the tensors, so that training may continue.

    Each tensor is copied once. The library's `save` takes twice the memory and several times as long: see
    `docs/decisions/0008-safetensors-writer.md`. Raises `TypeError` for a type that safetensors does not know.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), str(item[1].dtype), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # diffusers refuses files without this mark
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise TypeError(f"{name}: cannot keep {tensor.dtype} in a checkpoint")
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that all data is aligned, the widest types first
    head = bytearray(len(text).to_bytes(8, "little") + text)
    file = torch.empty(len(head) + end, dtype=torch.uint8)
    file[: len(head)] = torch.frombuffer(head, dtype=torch.uint8)
    begin = len(head)
    for dtype, group in groupby((tensor.detach() for _, tensor in ordered), key=lambda tensor: tensor.dtype):
        sources = list(group)
        end = begin + sum(tensor.nbytes for tensor in sources)
        targets = file[begin:end].view(dtype).split([tensor.numel() for tensor in sources])
        for target, tensor in zip(targets, sources, strict=True):
            target.view(tensor.shape).copy_(tensor)
        begin = end
    return file.numpy().data


def unpack(data: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises `CorruptError` if it is not one."""
    try:
        # Cloned, because an optimiser's tensors must be aligned like torch's own: the alignment decides which path
        # some CPU kernels take, and so how they round.
        return {name: tensor.clone() for name, tensor in _load(data).items()}
    except SafetensorError as error:
        raise CorruptError(f"{where}: is not a safetensors file: {error}") from None


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """A nested state, such as `optimizer.state_dict()`, as tensors by name and JSON that refers to them.

    What JSON does not have is written as an object with one key: `{"$tensor": NAME}`, `{"$tuple": [...]}`,
    `{"$items": [[KEY, VALUE], ...]}` for mappings with other keys than text, `{"$float": "inf"}`.
    Raises `TypeError` for anything else and `ValueError` if two tensors would get one name.
    """
    tensors: dict[str, Tensor] = {}

    def visit(node: Any, path: str) -> Any:
        def child(key: object) -> str:
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
                return {"$tuple": [visit(value, child(index)) for index, value in enumerate(node)]}
            case list():
                return [visit(value, child(index)) for index, value in enumerate(node)]
            case Mapping() if all(isinstance(key, str) and not key.startswith("$") for key in node):
                return {key: visit(value, child(key)) for key, value in node.items()}
            case Mapping() if all(isinstance(key, str | int) for key in node):
                return {"$items": [[key, visit(value, child(key))] for key, value in node.items()]}
        raise TypeError(f"{path or 'state'}: cannot keep a {type(node).__name__} in a checkpoint")

    return tensors, visit(state, "")


def unflatten(tensors: Mapping[str, Tensor], state: Any) -> Any:
    """The inverse of `flatten`, exactly."""
    match state:
        case {"$tensor": str(name)}:
            return tensors[name]
        case {"$tuple": list(values)}:
            return tuple(unflatten(tensors, value) for value in values)
        case {"$items": list(items)}:
            return {key: unflatten(tensors, value) for key, value in items}
        case {"$float": str(text)}:
            return float(text)
        case dict():
            return {key: unflatten(tensors, value) for key, value in state.items()}
        case list():
            return [unflatten(tensors, value) for value in state]
    return state
