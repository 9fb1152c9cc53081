"""What ours costs beside a plain loop, and how fast the command line starts: `python -m benchmarks`."""
