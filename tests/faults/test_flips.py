"""Test 6: single-bit flips over all files of a checkpoint of two ranks, files cut short, and files gone."""

import random
import shutil

import pytest

from omnikit.checkpoint import COMMIT, RunFolder, verify


@pytest.fixture(scope="module")
def run(ranks, toy, parts, tmp_path_factory):
    """The run of two ranks, with two checkpoints of which one has the optimizer's state."""
    stages = {"omni": parts.stage({"text": 1, "image": 1}, {"encoders": "frozen", "rest": 3e-3}, steps=4)}
    folder = tmp_path_factory.mktemp("flips") / "run"
    ranks.run("train", toy("flips", stages), "--out", folder)
    return RunFolder(folder)


def files_of(run):
    found = [path for checkpoint in run.committed("omni") for path in sorted(checkpoint.folder.iterdir())]
    held = sorted({path.name for path in found})
    assert sum(path.suffix == ".safetensors" for path in found) >= 6 and {COMMIT, "state.json"} <= set(held), held
    return found


def test_every_flipped_bit_is_found(run, count):
    files, chance, flips = files_of(run), random.Random(6), count(200, 3000)
    for number in range(flips):
        # every file as often as another: the small ones hold what matters most
        path = files[number % len(files)]
        content = path.read_bytes()
        broken, place, bit = bytearray(content), chance.randrange(len(content)), chance.randrange(8)
        broken[place] ^= 1 << bit
        path.write_bytes(broken)
        fault = verify(path.parent)
        path.write_bytes(content)
        assert fault is not None, f"bit {bit} of byte {place} of {path}"
        assert "\n" not in fault and str(path.parent) in fault
    print(f"injected: {flips} flips over {len(files)} files, all found")
    assert all(verify(path.parent) is None for path in files)


def test_every_bit_of_a_commit_is_found(run):
    """All of it, not a sample: it is what the others are checked by."""
    path = run.committed("omni")[-1].folder / COMMIT
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            broken = bytearray(content)
            broken[place] ^= 1 << bit
            path.write_bytes(broken)
            assert verify(path.parent) is not None, f"bit {bit} of byte {place}: {bytes(broken)}"
    path.write_bytes(content)
    print(f"injected: {8 * len(content)} flips in {COMMIT}, all found")
    assert verify(path.parent) is None


def test_every_cut_and_every_missing_file_is_found(run, count):
    chance, cuts = random.Random(7), 0
    for path in files_of(run):
        content = path.read_bytes()
        last = len(content) - (2 if path.name == COMMIT else 1)  # after its list comes a line's end, which says nothing
        for length in {0, last, *(chance.randrange(last) for _ in range(count(6, 60)))}:
            path.write_bytes(content[:length])
            assert verify(path.parent) is not None, f"{path} cut to {length} of {len(content)} bytes"
            cuts += 1
        path.write_bytes(content + b"\0")
        assert verify(path.parent) is not None, f"{path} with a byte more"
        path.unlink()
        assert verify(path.parent) is not None, f"{path} gone"
        path.write_bytes(content)
        assert verify(path.parent) is None
    print(f"injected: {cuts} cuts, a byte more and no file, each of {len(files_of(run))} files")


@pytest.mark.parametrize("name", [COMMIT, "state.json", "model-00001-of-00001.safetensors", "shard"])
def test_ranks_fall_back_to_the_checkpoint_before_and_end_the_same(ranks, run, tmp_path, name):
    """The whole way: two ranks, a damaged newest checkpoint, one warning, and the same end."""
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    newest = RunFolder(folder).committed("omni")[-1].folder
    path = newest / name
    if not path.is_file():
        path = sorted(newest.glob("*.safetensors"))[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content)
    started = ranks.run("train", folder)
    told = started.told()
    print(f"injected: a flipped bit in {path.name}\n{told}")
    assert told.count("warning:") == 1 and "the checkpoint before it is used" in told and "Traceback" not in told
    assert RunFolder(folder).latest("omni").hash() == run.latest("omni").hash()
