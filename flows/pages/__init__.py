"""The pages that people look at: a reader of homes, which writes nothing into a run."""

from flows.pages.application import application
from flows.pages.site import Site

__all__ = ["Site", "application"]
