"""Private names of libraries, which a release may drop without notice: each is known, and there."""

import ast
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_LIBRARIES = {"tailorpo_trainer", "tailorpo_operator", *sys.stdlib_module_names}

KNOWN = {
    # torch has no public names for these two; its own `FlopCounterMode` imports from the same modules.
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._pytree.tree_leaves",
    # The public attention function takes an unfused kernel on the meta device.
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
}


def private_names(path: Path) -> Iterator[str]:
    """Names of other packages with a part that begins with one `_`, as `package.module.name`."""
    modules: dict[str, str] = {}
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
    used = set(modules.values())
    used |= {f"{modules[name]}.{rest}" for node in nodes for name, rest in dotted(node) if name in modules}
    for name in used:
        parts = name.split(".")
        if parts[0] not in NOT_LIBRARIES and any(part[0] == "_" and part[:2] != "__" for part in parts):
            yield name


def dotted(node: ast.AST) -> Iterator[tuple[str, str]]:
    """`a.b.c` as `("a", "b.c")`, if that is what a node is."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if names and isinstance(node, ast.Name):
        yield node.id, ".".join(names)


def test_no_other_private_name_of_a_library_is_used() -> None:
    files = [*ROOT.glob("trainer/tailorpo_trainer/**/*.py"), *ROOT.glob("operator/tailorpo_operator/**/*.py")]
    assert len(files) > 100
    assert {name for file in files for name in private_names(file)} == KNOWN


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_each_private_name_is_there(name: str) -> None:
    assert pkgutil.resolve_name(name) is not None
