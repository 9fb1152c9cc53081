"""The folder that a run leaves, and where it is published."""
