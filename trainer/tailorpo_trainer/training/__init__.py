"""How a run goes: `loop.py` is the algorithm; beside it setup, session, updater, recorder, checkpointing and launch."""
