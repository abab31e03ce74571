"""Many independent tasks of any function: in this process, in workers of this machine, or on a Ray cluster."""

from subeight.sweep.crew import Crew, Job, Where
from subeight.sweep.hiring import hire

__all__ = ["Crew", "Job", "Where", "hire"]
