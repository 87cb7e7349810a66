"""Generate the example data that fulltune ships: clauses, tales, and databases with questions.

The same seed gives the same rows. ``PYTHONPATH=tools python -m demo.make`` writes them where the package reads them.
"""
