"""The machine, the processes and the files under a run."""
