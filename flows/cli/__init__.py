"""``rounds``: the command line."""
