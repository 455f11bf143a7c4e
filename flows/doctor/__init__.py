"""What is installed, reachable and mismatched on this machine."""

from flows.doctor.checks import Check, examine

__all__ = ["Check", "examine"]
