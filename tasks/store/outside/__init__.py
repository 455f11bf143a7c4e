"""Models that lie outside of the store, as references."""
