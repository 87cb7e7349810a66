"""Plans: the steps, memory and time of a run, before it begins."""
