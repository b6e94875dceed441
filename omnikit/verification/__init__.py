"""Proofs on a user's own recipe and data: `omnikit verify`.

A law is a function of a Trial and the name of a stage; it gives a Finding, with a figure of how far off it is (0 is
best). What it looks at is the code that trains: whole runs of it, seen through torch's own hooks, and the very steps,
batches and ranks that it would make.
"""

from omnikit.verification.laws import LAWS, verify
from omnikit.verification.results import Finding, Verdict
from omnikit.verification.shrinking import shrunk

__all__ = ["LAWS", "Finding", "Verdict", "shrunk", "verify"]
