"""The tiny random pipeline of the trainer's tests, and the root of the repository on the import path."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder of about 100k random weights."""
    from tests.trainer.conftest import make_pipeline

    return make_pipeline(tmp_path_factory.mktemp("pipeline"))
