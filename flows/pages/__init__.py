"""The pages that people look at: a reader of homes, which writes nothing into a run."""
