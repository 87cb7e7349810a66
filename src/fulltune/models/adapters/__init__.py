"""Inject, extract, merge and store adapters: small trained parts of a model."""
