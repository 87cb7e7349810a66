"""Small trained parts of a model: how they are put into it, taken out of it, merged and stored."""
