"""Provide what a run needs of its environment: machine, processes, files and terminal."""
