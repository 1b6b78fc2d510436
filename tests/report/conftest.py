"""Runs that several tests of the report look at."""

from tests.studied import runs, studied

__all__ = ["runs", "studied"]
