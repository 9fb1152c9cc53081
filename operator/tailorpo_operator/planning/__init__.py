"""Pure decisions: from a job, what was observed of it, and the time, to a plan of what to create, delete and report."""
