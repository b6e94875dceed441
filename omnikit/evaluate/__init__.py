"""What a run is worth: benchmarks, their metrics, and what they are graded with."""
