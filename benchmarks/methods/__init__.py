"""The five methods against each other at equal budgets: `python -m benchmarks.methods run|page`."""
