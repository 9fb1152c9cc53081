"""The operator with thousands of jobs."""
