"""Test 30: many steps with mixed media: memory does not grow, open files and threads stay as many as they were."""

import json

import numpy as np
import pytest


@pytest.mark.parametrize("size", [1, 2])
def test_many_steps_take_no_more_memory_files_or_threads(ranks, toy, parts, tmp_path, count, size):
    steps = count(240, 2000 if size == 1 else 600)
    stages = {
        "omni": parts.stage(
            {"text": 1, "image": 1, "video": 1, "audio": 1, "mixed": 1},
            {"encoders.vision": "frozen", "rest": 1e-4},
            steps=steps,
            batch={"length": 48, "packs": 2, "micro": 1},
        )
    }
    recipe = toy(f"soak-{size}", stages, run={"save": 50})
    fault = ("watch_resources", {"path": str(tmp_path / "seen"), "every": 10})
    ranks.run("train", recipe, "--out", tmp_path / "run", ranks=size, faults=[fault], timeout=1500, limit=1600)
    for rank in range(size):
        lines = [json.loads(line) for line in (tmp_path / f"seen-{rank}.jsonl").read_text().splitlines()]
        assert lines[-1]["step"] == steps
        # What is allocated once (first checkpoints, pools, the allocator's own slack) is in the first part.
        later = lines[len(lines) // 3 :]
        at = np.array([line["step"] for line in later])
        memory = np.array([line["memory"] for line in later]) / 1e6
        slope = float(np.polyfit(at, memory, 1)[0]) * 100
        files, threads = ({line[what] for line in later} for what in ("files", "threads"))
        print(
            f"injected: {steps} steps on {size} ranks; rank {rank}: {memory[0]:.0f} to {memory[-1]:.0f} MB, "
            f"{slope:+.3f} MB per 100 steps; open files {sorted(files)}, threads {sorted(threads)}"
        )
        assert slope < 1.0
        assert max(files) - min(files) <= 4, "a checkpoint being written has some open"
        assert max(threads) - min(threads) <= 2 and len(later) > 10
