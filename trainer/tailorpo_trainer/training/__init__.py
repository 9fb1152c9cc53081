"""Training runs: `loop.py` is the algorithm, `setup.py` makes the session that it works on, `launch.py` starts it."""
