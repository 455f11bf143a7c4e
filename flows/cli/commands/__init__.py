"""The commands of ``rounds``."""
