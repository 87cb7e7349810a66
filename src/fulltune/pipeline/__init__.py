"""One run from its config to its record. Start reading at :mod:`fulltune.pipeline.run`."""
