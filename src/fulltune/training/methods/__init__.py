"""How weights are adapted: one file a method."""
