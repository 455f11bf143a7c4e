"""What of a machine and a home is fit for runs, and what to do about the rest."""

from flows.doctor.examination import examine
from flows.doctor.finding import OK, PROBLEM, WARNING, Finding
from flows.doctor.machine import free_memory, gib, num_cores

__all__ = ["OK", "PROBLEM", "WARNING", "Finding", "examine", "free_memory", "gib", "num_cores"]
