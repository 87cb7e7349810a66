"""The JSON records that runs and experiments leave."""
