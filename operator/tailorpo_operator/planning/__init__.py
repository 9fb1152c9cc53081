"""Pure decisions: from a job, what there is of it and the time, to what should exist and what its status says."""
