"""What people look at after a training: the report of a run, and the table of all runs. Reads a run's files only."""
