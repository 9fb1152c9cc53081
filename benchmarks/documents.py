"""The document that several benchmarks run with different sizes."""

from typing import Any

from tailorpo_trainer.spec.job import API_VERSION, KIND


def tiny_animals(name: str, **sections: Any) -> dict[str, Any]:
    """TailorPO as in the demo, with only colourfulness and no evaluations; `sections` replace those of `spec`."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "tiny-animals"},
            "prompts": {"builtin": "tiny-animals"},
            "rewards": [{"name": "colourfulness"}],
            "method": {"name": "tailorpo"},
            "sampling": {"steps": 20, "trainedSteps": {"count": 5}, "guidanceScale": 3.0},
            "evaluation": {"everyIterations": 0},
            **sections,
        },
    }
