"""A stage reads the same batches from every container that holds the same samples."""

import io
import itertools
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from omnikit.data import Position, StageData, layouter_of


@pytest.fixture(scope="module")
def containers(world, tmp_path_factory):
    """The world's pictures as JSON lines, in parquet, as a saved data set, in tar shards and in a folder."""
    folder = tmp_path_factory.mktemp("containers")
    rows = []
    for line in (world / "image.jsonl").read_text().splitlines()[:24]:
        record = json.loads(line)
        [picture, question], answer = record["turns"][0]["content"], record["turns"][1]["content"]
        rows.append((record["id"], world / picture["image"], question["text"], answer))
    said = [{"id": id, "image": str(path), "question": ask, "answer": answer} for id, path, ask, answer in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    held = [{**row, "image": {"bytes": path.read_bytes(), "path": None}} for row, (_, path, *_) in zip(said, rows)]  # noqa: B905
    pq.write_table(pa.Table.from_pylist(held), folder / "rows.parquet")
    (folder / "saved").mkdir()
    table = pa.Table.from_pylist(held)
    with pa.OSFile(str(folder / "saved/a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    (folder / "saved/state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number, (id, path, ask, answer) in list(enumerate(rows))[shard * 12 : shard * 12 + 12]:
                about = json.dumps({"id": id, "question": ask, "answer": answer}).encode()
                for name, content in ((f"{number:03}.png", path.read_bytes()), (f"{number:03}.json", about)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "plain").mkdir()
    table = [{"id": id, "file_name": str(path), "question": ask, "answer": answer} for id, path, ask, answer in rows]
    (folder / "plain/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return {
        "jsonl": folder / "rows.jsonl",
        "parquet": folder / "rows.parquet",
        "hf_dataset": folder / "saved",
        "webdataset": folder / "{0..1}.tar",
        "folder": folder / "plain",
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_every_container_trains_alike(recipe_of, parts, containers, small_windows, workers):
    seen = {}
    for type, path in containers.items():
        recipe = recipe_of(
            {"one": parts.stage({"image": 1}, {"rest": 1e-3}, batch={"length": 96, "packs": 2, "micro": 1})},
            data={"image": {"type": type, "path": str(path), "modalities": ["image"]}},
            run={"workers": workers},
        )
        data = StageData(recipe, "one", layouter_of(recipe))
        assert data.sources["image"].described() == "questions and answers, 24 records"
        seen[type] = list(itertools.islice(data.steps(Position()), 3))
    first = seen.pop("jsonl")
    assert any(len(batch.labels) for step in first for batch in step.batches)
    for type, steps in seen.items():
        for one, other in zip(first, steps, strict=True):
            for a, b in zip(one.batches, other.batches, strict=True):
                assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels), type
                assert torch.equal(a.segments, b.segments)
                for x, y in zip(a.media["image"].items, b.media["image"].items, strict=True):
                    assert torch.equal(x.value, y.value) and x.grid == y.grid, type
