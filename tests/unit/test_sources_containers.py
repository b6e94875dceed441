"""Every container gives the same samples, by index, from disk."""

import csv
import io
import json
import random
import tarfile
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnikit import cache
from omnikit.builtin.sources import Folder, HFDataset, Jsonl, Parquet, WebDataset
from omnikit.builtin.sources.lines import places_of
from omnikit.component import Medium, Member, Pixels
from omnikit.media import MediaError, MediaLimits, image_size, limited, load_audio, load_image, open_video, source_of
from omnikit.reading import Reading
from omnikit.registry import Registry
from omnikit.testing import films, pictures, sounds

PICTURES = ("image",)


def parts(sample):
    return [part for turn in sample.turns for part in turn.content]


# ----------------------------------------------------------------------------------------------------------------- json

VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\{}[],\n é'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", '"', "\\"]), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


RECORDS = st.lists(st.dictionaries(st.sampled_from(["a", "b"]), VALUES), min_size=1, max_size=6)
LINES = st.lists(st.sampled_from([b"", b" \t", b"{}", b'{"a": 1}\r', b" {} "]), max_size=8)
PIECES = st.sampled_from([1, 2, 5, 2**20])


@settings(deadline=None, max_examples=50)
@given(RECORDS, PIECES, st.booleans(), st.booleans())
def test_a_list_is_cut_where_its_elements_lie_however_the_pieces_fall(scratch, records, piece, indent, escaped):
    path = scratch / "list.json"
    path.write_text(json.dumps(records, indent=2 if indent else None, ensure_ascii=escaped), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnikit.builtin.sources.lines.PIECE", piece)
        places = places_of(path).table.tolist()
    data = path.read_bytes()
    assert [json.loads(data[begin : begin + length]) for _, begin, length in places] == records
    assert [number for number, _, _ in places] == list(range(1, len(records) + 1))


@settings(deadline=None, max_examples=50)
@given(LINES, st.booleans(), st.booleans(), PIECES)
def test_lines_are_numbered_as_an_editor_does(scratch, lines, ends, bom, piece):
    path = scratch / "lines.jsonl"
    text = b"\n".join(lines) + (b"\n" if ends else b"")
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text)
    wanted = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnikit.builtin.sources.lines.PIECE", piece)
        if not wanted:
            with pytest.raises(ValueError, match=r"lines\.jsonl: holds no record"):
                places_of(path)
            return
        places = places_of(path).table.tolist()
    data = path.read_bytes()
    assert [(number, data[begin : begin + length]) for number, begin, length in places] == wanted


def test_llavas_own_layout_is_read_and_named_by_record(tmp_path):
    said = [{"from": "human", "value": '<image>\n[{what}] is "it"?\\'}, {"from": "gpt", "value": "a cat"}]
    records = [{"id": str(n), "image": f"{n}.png", "conversations": said} for n in range(3)]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([*records[:2], {"id": "x"}], indent=1))
    data = Jsonl(path=str(path), modalities=PICTURES).open()
    assert [sample.id for sample in data[:2]] == ["0", "1"] and data.described() == "llava conversations, 3 records"
    assert parts(data[1])[:2] == [("image", Medium(str(tmp_path / "1.png"))), ("text", '[{what}] is "it"?\\')]
    with pytest.raises(ValueError, match=r"llava\.json: record 3: has no list"):
        data[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[{"a": 1}, {"a"', r"a\.json: ends within record 2 of its list; the file was cut"),
        (b'[{"a": "[}', r"a\.json: ends within record 1"),
        (b'[{"a": 1} {"a": 2}]', r"a\.json: has 0 commas between 2 records"),
        (b'[{"a": 1}, 7, {"a": 2}]', r"a\.json: holds b'7' between records"),
        (b'[{"a": 1}] {"a": 2}', r"a\.json: holds b'\{\"\"\}' between|a\.json: holds"),
        (b'[{"a": 1}]]', r"a\.json: has more closing brackets"),
        (b"[]", r"a\.json: holds no record"),
    ],
)
def test_a_broken_list_is_one_line_that_names_the_file(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        len(Jsonl(path=str(path)).open())


def test_lines_in_a_json_file_are_named_as_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n{"image": "a", "caption": "b"}\n\n{"image": "a"}\n')
    data = Jsonl(path=str(path), modalities=PICTURES).open()
    assert len(data) == 2 and data[0].id == f"{path}:2"
    with pytest.raises(ValueError, match=r"a\.json:4: has no list"):
        data[1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"turns": []}\n'.encode(encoding))
    with pytest.raises(ValueError, match=r"a\.jsonl: is UTF-16 or UTF-32; save it as UTF-8"):
        len(Jsonl(path=str(path)).open())


def test_bytes_that_are_no_utf8_name_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "image": "a"}\n{"text": "gr\xfcn", "image": "a"}\n')
    data = Jsonl(path=str(path), modalities=PICTURES).open()
    with pytest.raises(ValueError, match=r"a\.jsonl:2: is no JSON \(byte 13 is 0xfc, no UTF-8\); save it as UTF-8"):
        data[1]


def test_a_file_that_changes_while_it_is_open_is_an_error_and_is_indexed_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "image": "a"}\n' * 3)
    source = Jsonl(path=str(path), modalities=PICTURES)
    data, before = source.open(), source.fingerprint()
    assert len(data) == 3 and data[2]
    path.write_text('{"text": "bb", "image": "a"}\n' * 5)
    with pytest.raises(ValueError, match=r"a\.jsonl:3: the file had 84 bytes when it was opened and has 145 now"):
        data[2]
    again = source.open()
    assert len(again) == 5 and parts(again[4])[1] == ("text", "bb") and source.fingerprint() != before


def test_of_a_large_file_nothing_but_places_is_held(tmp_path):
    import tracemalloc

    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "{"a" * 1000}", "image": "a"}}\n' * 20_000)
    data = Jsonl(path=str(path), modalities=PICTURES).open()
    tracemalloc.start()
    assert len(data) == 20_000 and data[19_999]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20, f"{peak:,} bytes for a file of {path.stat().st_size:,}"
    assert isinstance(data.rows._places[0].table, np.memmap)


# ----------------------------------------------------------------------------------------------- parquet and hf_dataset


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows as Hugging Face keeps them: pictures as bytes, by a path, absent; two in one row; text with parts."""
    files = [Path(str(one.source)) for one in pictures(tmp_path_factory.mktemp("pictures"))[:3]]
    held = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    told = [{"bytes": None, "path": str(files[0])}]
    shown = [[held[0]], [held[1], held[2]], told, [], *([held[0]] for _ in range(50))]
    return [
        {
            "id": number,
            "images": images,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "text": None} for _ in images),
                        {"type": "text", "text": f"what is it? {number}"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
            ],
            "embedding": [0.5, None],
        }
        for number, images in enumerate(shown)
    ]


def expected(rows):
    """The same rows as JSON-like records would give them."""
    for row in rows:
        media = [Medium(one["bytes"] or one["path"]) for one in row["images"]]
        yield (
            str(row["id"]),
            [*(("image", one) for one in media), ("text", f"what is it? {row['id']}"), ("text", "a cat")],
        )


def shards(folder, rows, write):
    """The rows in three files of unequal length."""
    folder.mkdir()
    bounds = [0, 1, 30, len(rows)]
    names = [f"part-{number}" for number in range(3)]
    for name, first, last in zip(names, bounds, bounds[1:], strict=False):
        write(pa.Table.from_pylist(rows[first:last], schema=pa.Table.from_pylist(rows).schema), folder / name)
    return folder


def write_stream(table, path):
    with pa.OSFile(f"{path}.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=7)


@pytest.fixture
def parquet(tmp_path, rows):
    return shards(tmp_path / "p", rows, lambda table, path: pq.write_table(table, f"{path}.parquet", row_group_size=9))


@pytest.fixture
def saved(tmp_path, rows):
    folder = shards(tmp_path / "hf", rows, write_stream)
    state = {"_data_files": [{"filename": f"part-{number}.arrow"} for number in range(3)], "_indices_files": []}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_rows_with_pictures_inside_become_samples_in_any_order(request, kind, rows):
    folder = request.getfixturevalue(kind)
    source = (Parquet if kind == "parquet" else HFDataset)(path=str(folder), modalities=PICTURES)
    data = source.open()
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    found = {index: (data[index].id, parts(data[index])) for index in order}
    assert [found[index] for index in range(len(rows))] == list(expected(rows))
    assert data.described() == f"openai messages, {len(rows)} records" and len(data) == len(rows)
    with pytest.raises(IndexError):
        data[len(rows)]


def test_a_row_is_named_by_its_file_and_its_place_in_it(saved, rows):
    broken = [{**row, "messages": row["messages"][:1]} for row in rows]
    shards(saved.parent / "broken", broken, write_stream)
    (saved.parent / "broken/state.json").write_text((saved / "state.json").read_text())
    data = HFDataset(path=str(saved.parent / "broken"), modalities=PICTURES).open()
    with pytest.raises(ValueError, match=r"part-1\.arrow: row 5: has no assistant turn"):
        data[5]


def test_parquet_is_converted_once_and_the_same_content_serves_another_name(parquet, monkeypatch):
    made = []
    monkeypatch.setattr(cache, "_made", lambda *args, made_=cache._made: made.append(args[1]) or made_(*args))
    assert len(Parquet(path=str(parquet / "*.parquet"), modalities=PICTURES).open()) == 54
    before = sorted(cache.folder().glob("parquet-*"))
    (parquet / "part-0.parquet").rename(parquet / "other.parquet")
    assert len(Parquet(path=str(parquet / "other.parquet"), modalities=PICTURES).open()) == 1
    assert sorted(cache.folder().glob("parquet-*")) == before and sum("parquet" in name for name in made) == 4


def test_parquet_is_converted_in_batches_that_are_small_for_large_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("omnikit.builtin.sources.arrow.BATCH_BYTES", 2**18)
    rows = [{"image": {"bytes": bytes([n]) * 2**14, "path": None}, "text": "a"} for n in range(64)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    Parquet(path=str(tmp_path / "a.parquet"), modalities=PICTURES).open()
    made = cache.folder() / f"parquet-1-{cache.digest(tmp_path / 'a.parquet')}.arrow"
    with pa.ipc.open_stream(pa.memory_map(str(made))) as stream:
        assert max(batch.num_rows for batch in stream) <= 16


@pytest.mark.parametrize("damage", ["cut", "grown"])
def test_a_file_that_changes_while_it_is_mapped_is_an_error_and_no_crash(saved, damage):
    data = HFDataset(path=str(saved), modalities=PICTURES).open()
    assert data[53]
    file = saved / "part-2.arrow"
    content = file.read_bytes()
    with file.open("r+b") as opened:
        opened.truncate(100) if damage == "cut" else (opened.seek(0, 2), opened.write(b"x"))
    with pytest.raises(ValueError, match=r"part-2\.arrow: row 24: .*has changed since it was opened"):
        data[53]
    assert data[0] and len(content) > 100


def test_a_folder_of_splits_says_which_folder_is_meant(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = HFDataset(path=str(tmp_path))
    assert source.missing() is None
    with pytest.raises(ValueError, match=r"holds several data sets \(\['train', 'test'\]\); give the folder of one"):
        source.open()


def test_a_selection_of_rows_is_refused_with_the_remedy(saved):
    state = json.loads((saved / "state.json").read_text()) | {"_indices_files": [{"filename": "i.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state\.json: is a selection of other rows; call flatten_indices"):
        HFDataset(path=str(saved)).open()


# ----------------------------------------------------------------------------------------------------------- webdataset


def tar_of(path, members, format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


LONG = "a-folder-with-a-name/" * 8


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_pythons_tarfile_finds_them(tmp_path, format):
    from omnikit.builtin.sources.tar import members_of

    names = ["a.jpg", "./b.jpg", f"{LONG}c.jpg", "ü/d.jpg", "empty.txt"]
    if format != tarfile.USTAR_FORMAT:
        names += [f"{LONG * 3}e.jpg"]
    path = tar_of(tmp_path / "a.tar", [(name, bytes(700 * number)) for number, name in enumerate(names)], format)
    with tarfile.open(path) as tar:
        wanted = [(one.name, "file", one.offset_data, one.size) for one in tar]
    assert [tuple(one) for one in members_of(path)] == wanted and len(wanted) == len(names)


def test_samples_are_the_files_of_one_key(tmp_path):
    (tmp_path / "shards").mkdir()
    tar_of(
        tmp_path / "shards/0.tar", [("README", b"x"), ("s/1.jpg", b"one"), ("s/1.txt", b"a cat\n"), ("./s/2.jpg", b"2")]
    )
    tar_of(tmp_path / "shards/1.tar", [("s/1.seg.png", b"seg"), ("s/1.wav", b"w"), ("s/1.json", b'{"caption": "b"}')])
    for path in ("shards", "shards/*.tar", "shards/{0..1}.tar", "shards/{0,1}.tar"):
        data = WebDataset(path=str(tmp_path / path), modalities=("image", "audio"), prompt="what?").open()
        assert data.described() == "captions, 3 records"
    assert data[0].id == "0.tar/s/1"
    where = str(tmp_path / "shards/0.tar")
    [image, asked, answer] = parts(data[0])
    assert image == ("image", Medium(where, member=Member("s/1.jpg", image[1].member.offset, 3)))
    assert (asked, answer) == (("text", "what?"), ("text", "a cat"))
    assert str(image[1]) == f"{where}/s/1.jpg" and source_of(image[1], 10).read() == b"one"
    assert [(name, source_of(one, 10).read()) for name, one in parts(data[2])[:2]] == [
        ("image", b"seg"),
        ("audio", b"w"),
    ]
    with pytest.raises(ValueError, match=r"0\.tar/s/2: has no list"):
        data[1]


def test_a_json_may_hold_any_shape_and_name_the_files_beside_it(tmp_path):
    said = [{"from": "human", "value": "<image>\nand <image>?"}, {"from": "gpt", "value": "b.jpg"}]
    turns = [{"role": "user", "content": [{"image": "1.b.jpg"}]}, {"role": "assistant", "content": "1.b.jpg"}]
    shown = {"type": "image_url", "image_url": {"url": "k/1.b.jpg"}}
    messages = [{"role": "user", "content": [shown]}, {"role": "assistant", "content": "a cat"}]
    for record, wanted in [
        ({"conversations": said}, ["a", "b"]),
        ({"conversations": said, "image": ["1.b.jpg", "1.a.jpg"]}, ["b", "a"]),
        ({"turns": turns}, ["b"]),
        ({"messages": messages}, ["a", "b"]),
    ]:
        members = [("k/1.a.jpg", b"a"), ("k/1.b.jpg", b"b"), ("k/1.json", json.dumps(record).encode())]
        path = tar_of(tmp_path / "a.tar", members)
        [sample] = WebDataset(path=str(path), modalities=PICTURES).open()
        assert [source_of(one, 9).read().decode() for name, one in parts(sample) if name == "image"] == wanted, record
        assert any(part[0] == "text" for part in parts(sample))


def test_columns_name_parts(tmp_path):
    path = tar_of(tmp_path / "a.tar", [("1.left.png", b"l"), ("1.right.png", b"r"), ("1.txt", b"no"), ("1.cls", b"7")])
    columns = {"image": "left.png", "question": "txt", "answer": "cls"}
    [sample] = WebDataset(path=str(path), modalities=PICTURES, columns=columns).open()
    assert [source_of(one, 9).read() for name, one in parts(sample) if name == "image"] == [b"l"]
    assert parts(sample)[1:] == [("text", "no"), ("text", "7")]


def test_media_in_a_shard_are_read_as_files_are(tmp_path):
    media = [*pictures(tmp_path)[:3], *sounds(tmp_path)[:2], *films(tmp_path)[:1]]
    files = [(Path(str(one.source)).name, Path(str(one.source)).read_bytes()) for one in media]
    path = tar_of(tmp_path / "a.tar", files)
    with tarfile.open(path) as tar:
        inside = [Medium(str(path), member=Member(one.name, one.offset_data, one.size)) for one in tar]
    for one, other in zip(media[:3], inside[:3], strict=True):
        assert image_size(other) == image_size(one)
        np.testing.assert_array_equal(load_image(other), load_image(one))
    for one, other in zip(media[3:5], inside[3:5], strict=True):
        np.testing.assert_array_equal(load_audio(other, 16_000), load_audio(one, 16_000))
        part = other._replace(start=0.01, end=0.05)
        np.testing.assert_array_equal(load_audio(part, 8_000), load_audio(one._replace(start=0.01, end=0.05), 8_000))
    with open_video(inside[5]) as film:
        assert sum(1 for _ in film.decode(video=0)) == 12


@pytest.mark.parametrize(("workers", "decoder"), [(0, "pyav"), (0, "decord"), (1, "pyav")])
def test_readers_and_their_workers_see_no_difference(tmp_path, workers, decoder):
    media = [*films(tmp_path)[:1], *pictures(tmp_path)[:1]]
    path = tar_of(
        tmp_path / "a.tar",
        [("f.mp4", Path(media[0].source).read_bytes()), ("p.png", Path(media[1].source).read_bytes())],
    )
    with tarfile.open(path) as tar:
        inside = [Medium(str(path), member=Member(one.name, one.offset_data, one.size)) for one in tar]
    reader = Registry.load().get("reader", "frames")(fps=2, decoder=decoder)
    reading, input = Reading(workers=workers), Pixels(size=32, patch=8)
    for one, other in zip(media, inside, strict=True):
        grids = reading.grids(reader, other, input)
        assert grids == reading.grids(reader, one, input)
        np.testing.assert_array_equal(
            reading.read(reader, other, input, grids[0]).value, reading.read(reader, one, input, grids[0]).value
        )


def test_a_member_travels_and_is_read_within_limits(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"0123456789")
    medium = Medium(str(path), member=Member("x.jpg", 3, 4))
    assert ForkingPickler.loads(ForkingPickler.dumps(medium)) == medium  # as media travel to the workers that read
    assert source_of(medium, 4).read() == b"3456"
    assert source_of(Medium(b"0123456789", member=Member("x", 3, 4)), 4).read() == b"3456"
    with pytest.raises(MediaError, match=r"a\.tar/x\.jpg: has 4 bytes, over the limit of 3"):
        source_of(medium, 3)
    with limited(MediaLimits(image_bytes=3)), pytest.raises(MediaError, match="over the limit of 3"):
        image_size(medium)
    for member in (Member("x.jpg", 7, 4), Member("x.jpg", -1, 4), Member("x.jpg", 2, -1), Member("x.jpg", 2**63, 1)):
        with pytest.raises(MediaError, match=r"a\.tar/x\.jpg: should be bytes .* of a file of 10; the shard was cut"):
            source_of(medium._replace(member=member), 100)
    with pytest.raises(MediaError, match=r"x\.jpg: is empty"):
        source_of(medium._replace(member=Member("x.jpg", 3, 0)), 100)


# --------------------------------------------------------------------------------------------------------------- folder


def test_captions_lie_beside_their_media(tmp_path):
    (tmp_path / "b").mkdir()
    files = {"a.png": "p", "a.wav": "w", "a.txt": "a cat\n", "c.jpg": "alone", "b/d.JPG": "x", "b/d.txt": "below"}
    for name, content in {**files, "e.txt": "no medium", ".f.png": "hidden", ".f.txt": "x"}.items():
        (tmp_path / name).write_text(content)
    source = Folder(path=str(tmp_path), modalities=("image", "audio"), prompt="what is it?")
    data = source.open()
    assert [sample.id for sample in data] == ["a", "b/d"] and data.described().startswith("captions, 2 records")
    assert parts(data[0]) == [
        ("image", Medium(str(tmp_path / "a.png"))),
        ("audio", Medium(str(tmp_path / "a.wav"))),
        ("text", "what is it?"),
        ("text", "a cat"),
    ]
    assert "1 media without a caption left out" in data.described()
    before = source.fingerprint()
    (tmp_path / "a.txt").write_text("a dog\n")
    assert source.fingerprint() != before and parts(data[0])[3] == ("text", "a dog")


@pytest.mark.parametrize("end", ["jsonl", "csv"])
def test_a_table_names_the_files(tmp_path, end):
    rows = [{"file_name": "x/1.png", "text": 'a "cat",\nsits'}, {"file_name": "2.png", "text": "a dog"}]
    with (tmp_path / f"metadata.{end}").open("w", newline="", encoding="utf-8") as file:
        if end == "csv":
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    data = Folder(path=str(tmp_path), modalities=PICTURES).open()
    assert [sample.id for sample in data] == ["x/1.png", "2.png"]
    assert parts(data[0]) == [("image", Medium(str(tmp_path / "x/1.png"))), ("text", 'a "cat",\nsits')]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("text\na\n", r"metadata\.csv:2: has no file_name"),
        ("file_name,text\na.xyz,b\n", r"metadata\.csv:2: file_name 'a\.xyz' tells of no modality"),
        ("file_name,text\na.png\n", r"metadata\.csv:2: has not as many columns"),
        ("file_name,text\na.png,b,c\n", r"metadata\.csv:2: has not as many columns"),
        ('file_name,text\n"a.png,b\n', r"metadata\.csv:.*: is no CSV"),
        ("file_name,text\n", r"metadata\.csv: holds no row"),
        ("file_name,image\na.png,a.png\n", r"metadata\.csv:2: has 'image' beside file_name, .*; remove one of them"),
    ],
)
def test_a_bad_row_of_a_table_is_named(tmp_path, table, message):
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        Folder(path=str(tmp_path), modalities=PICTURES).open()[0]


def test_a_row_that_names_no_file_is_named(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_names": [], "text": "a"}\n')
    with pytest.raises(ValueError, match=r"metadata\.jsonl:1: file_names is empty; name the media"):
        Folder(path=str(tmp_path), modalities=PICTURES).open()[0]


def test_a_record_of_a_shard_that_is_nested_beyond_reason_is_a_bad_record(tmp_path):
    """Deeper than Python calls go, and not so deep that its JSON parser refuses it."""
    found = set()
    for depth in (300, 480, 600, 900, 5000):
        path = tar_of(tmp_path / f"{depth}.tar", [("a.json", b'{"a": ' * depth + b"1" + b"}" * depth)])
        with pytest.raises(ValueError, match=r"\.tar/a") as raised:
            WebDataset(path=str(path), modalities=PICTURES).open()[0]
        found.add("nested too deeply" in str(raised.value))
    assert found == {False, True}


@pytest.mark.parametrize("source", [Jsonl, Parquet, HFDataset, WebDataset, Folder])
def test_what_is_not_there_is_said(tmp_path, source):
    missing = source(path=str(tmp_path / "gone")).missing()
    assert missing and missing.startswith(str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone"):
        len(source(path=str(tmp_path / "gone")).open())


def test_a_numbered_shard_that_is_missing_is_named(tmp_path):
    tar_of(tmp_path / "0.tar", [("1.txt", b"a")])
    source = WebDataset(path=str(tmp_path / "{0..3}.tar"))
    assert source.missing() == str(tmp_path / "1.tar")
    with pytest.raises(ValueError, match=r"1\.tar: cannot be read \(No such file"):
        source.open()
