"""Experiments that train several times: learning rates, sweeps, methods, amounts of data, averages."""
