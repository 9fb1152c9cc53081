"""Finding rewards by name: the built-in table and installed plug-ins."""

import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from tailorpo_trainer import rewards
from tailorpo_trainer.errors import ConfigurationError, ResourceError, UnavailableError
from tailorpo_trainer.rewards import registry
from tailorpo_trainer.rewards.base import Reward

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "rewards.md"

PLUGIN = """
    import torch
    from tailorpo_trainer.errors import UnavailableError

    class Darkness:
        name, differentiable, unit = "darkness", True, "minus the mean level"
        def __init__(self, parameters, device):
            self.parameters, self.device = dict(parameters), device
            self.factor = float(parameters.get("factor", "1"))
        def __call__(self, images, prompts):
            return -self.factor * images.mean((1, 2, 3))

    def unavailable(parameters, device): raise UnavailableError("the licence server is down")
    def full(parameters, device): raise torch.OutOfMemoryError("CUDA out of memory")
    def nothing(parameters, device): return object()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with entry points on the path, as pip would install it."""

    def put(package, *points, module="", source=PLUGIN):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[tailorpo.rewards]\n" + "\n".join(points) + "\n")
        if module:
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(tmp_path)

    return put


def test_nothing_here_loads_torch_or_a_plug_in():
    code = (
        "import sys; from tailorpo_trainer.rewards import base, registry; "
        "registry.names(); registry.find('clip-score'); "
        "print(sorted({'torch', 'transformers', 'httpx', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize("name", registry.BUILTIN)
def test_the_table_tells_the_truth(name, spec, clip_folder):
    model = str(clip_folder) if name == "clip-score" else None
    term = rewards.load([spec(name, model=model, endpoints=["http://127.0.0.1:9/"])], "cpu").terms[0]
    assert isinstance(term.reward, Reward)
    assert (term.reward.name, term.reward.differentiable) == (name, registry.BUILTIN[name].differentiable)
    assert term.reward.unit


def test_unknown_name_gets_the_nearest_and_all(spec):
    with pytest.raises(ConfigurationError) as caught:
        rewards.load([spec("colourfulness"), spec("colorfulness")], "cpu")
    assert str(caught.value).startswith(
        "spec.rewards[1].name: there is no reward 'colorfulness'; did you mean 'colourf"
    )
    assert all(name in str(caught.value) for name in registry.BUILTIN)


def test_names_no_neighbour_where_none_is_near(spec):
    with pytest.raises(
        ConfigurationError, match=r"spec.evaluation.rewards\[0\].name: there is no reward 'zzz' \(known"
    ):
        rewards.load([spec("zzz")], "cpu", path="spec.evaluation.rewards")


def test_plug_in(install, spec, pictures, prompts):
    install("dark", "darkness = dark_plugin:Darkness", module="dark_plugin")
    assert "darkness" in registry.names()
    loaded = rewards.load([spec("darkness", parameters={"factor": "2"}, model="m", batch_size=3)], "cpu")
    reward: Any = loaded.terms[0].reward
    assert reward.parameters == {"factor": "2", "model": "m"}
    assert reward.device == torch.device("cpu")
    torch.testing.assert_close(loaded(pictures(), prompts).total, -2 * pictures().mean((1, 2, 3)))


def test_the_plug_in_of_the_documentation(install, spec, pictures, prompts):
    text = DOCUMENTATION.read_text()
    toml, python = (re.findall(rf"^```{kind}\n(.*?)^```", text, re.S | re.M)[0] for kind in ("toml", "python"))
    points = tomllib.loads(toml)["project"]["entry-points"][registry.GROUP]
    install("sharp", *(f"{k} = {v}" for k, v in points.items()), module="tailorpo_sharpness", source=python)
    total = rewards.load([spec("sharpness", parameters={"axis": "horizontal"})], "cpu")
    images = torch.zeros(4, 3, 6, 6)
    images[1, :, :, ::2] = 1  # vertical stripes
    images[2, :, ::2, :] = 1
    assert total(images.requires_grad_(), prompts).total.tolist() == [0, 255, 0, 0]
    rewards.require_differentiable(total, "tailorpo-g")
    with pytest.raises(ConfigurationError, match="sharpness has no axis 'up'"):
        rewards.load([spec("sharpness", parameters={"axis": "up"})], "cpu")


@pytest.mark.parametrize(
    ("point", "error", "text"),
    [
        ("x = dark_plugin:unavailable", UnavailableError, "^the licence server is down$"),
        ("x = dark_plugin:full", ResourceError, "out of memory"),
        ("x = dark_plugin:nothing", ConfigurationError, "made a object, which is no reward"),
        ("x = dark_plugin:absent", ConfigurationError, "cannot be imported: AttributeError: .*absent"),
        (
            "x = no_such_module:x",
            ConfigurationError,
            "cannot be imported: ModuleNotFoundError: .*no_such_module",
        ),
    ],
)
def test_plug_in_that_does_not_start(install, spec, point, error, text):
    install("dark", point, module="dark_plugin")
    with pytest.raises(error, match=text):
        rewards.load([spec("x")], "cpu")


def test_plug_in_with_wrong_parameters(install, spec):
    install("dark", "darkness = dark_plugin:Darkness", module="dark_plugin")
    with pytest.raises(
        ConfigurationError, match=r"spec.rewards\[0\].name: the plug-in 'darkness' .* cannot start: Value"
    ):
        rewards.load([spec("darkness", parameters={"factor": "many"})], "cpu")


def test_plug_in_may_not_take_a_built_in_name(install, spec):
    install("dark", "clip-score = dark_plugin:Darkness", module="dark_plugin")
    with pytest.raises(ConfigurationError, match=r"is built in, and dark .* may not take its name"):
        rewards.load([spec("clip-score")], "cpu")
    assert rewards.load([spec("colourfulness")], "cpu").names == ("colourfulness",)


def test_two_plug_ins_of_one_name(install, spec):
    install("dark", "darkness = dark_plugin:Darkness", module="dark_plugin")
    install("gloom", "darkness = gloom:Darkness")
    with pytest.raises(
        ConfigurationError, match=r"defined twice: uninstall one of (dark .* and gloom|gloom .* and dark)"
    ):
        rewards.load([spec("darkness")], "cpu")
