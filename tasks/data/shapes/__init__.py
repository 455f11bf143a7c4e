"""Shapes of rows in other people's files: how each becomes a preference, a prompt or a text."""
