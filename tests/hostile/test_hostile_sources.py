"""Data sets of strangers: nothing is written outside, unpickled or run, and each fault is one line that names it."""

import io
import json
import os
import random
import tarfile
import time
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from omnikit.builtin.sources import Folder, HFDataset, Jsonl, Parquet, WebDataset
from omnikit.builtin.sources.tar import members_of
from omnikit.media import source_of

MODALITIES = ("image", "audio")
CANARY = b"cos\nsystem\n(S'touch canary'\ntR."
"""A pickle (protocol 0) that writes a file when it is loaded."""


def member(name, content=b"x", type=tarfile.REGTYPE, link="", size=None):
    about = tarfile.TarInfo(name)
    about.type, about.linkname = type, link
    about.size = (len(content) if size is None else size) if type == tarfile.REGTYPE else 0
    return about, content


GOOD = [member("good.jpg", b"JPEG"), member("good.txt", b"a cat")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, in which a data set may not leave anything."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def shard(tmp_path):
    """shard(members) -> a WebDataset of one tar with these members."""

    def call(members, **options):
        path = tmp_path / "bad.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for about, content in members:
                tar.addfile(about, io.BytesIO(content) if about.isreg() else None)
        return WebDataset(path=str(path), modalities=MODALITIES, **options)

    return call


SPARSE = tarfile.TarInfo("s.jpg")
SPARSE.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1099511627776"}

STRANGE = {
    "a way out": ([member("../s.jpg"), member("../s.txt")], r"'\.\./s\.jpg', a name that leads out of the shard"),
    "a way out, within": ([member("a/../../s.jpg")], r"'a/\.\./\.\./s\.jpg', a name that leads out"),
    "an absolute name": ([member("/absolute/s.jpg")], r"'/absolute/s\.jpg', a name that leads out"),
    "a symbolic link": ([member("s.jpg", type=tarfile.SYMTYPE, link="/etc/passwd")], "'s.jpg', a symbolic link"),
    "a hard link": ([member("s.jpg", type=tarfile.LNKTYPE, link="good.jpg")], "'s.jpg', a hard link"),
    "a link without a key": ([member("s", type=tarfile.SYMTYPE, link="/")], "'s', a symbolic link"),
    "a device": ([member("s.jpg", type=tarfile.CHRTYPE)], "'s.jpg', a character device"),
    "a block device": ([member("s.jpg", type=tarfile.BLKTYPE)], "'s.jpg', a block device"),
    "a pipe": ([member("s.jpg", type=tarfile.FIFOTYPE)], "'s.jpg', a pipe"),
    "an unknown type": ([member("s.jpg", type=b"Z")], r"'s\.jpg', a member of type b'Z'"),
    "a part twice": ([member("s.jpg", b"one"), member("s.jpg", b"two")], r"'s\.jpg' twice; which one is meant\?"),
    "a part twice, later": ([member("s.jpg"), *[member("t.jpg")], member("./s.jpg")], r"'s\.jpg' twice"),
    "a sparse file": ([(SPARSE, b"")], "'s.jpg', a sparse file"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_member_that_no_shard_should_hold_makes_its_sample_bad_and_no_other(shard, here, name):
    members, message = STRANGE[name]
    data = shard([*members, *GOOD]).open()
    bad, found = [], []
    for index in range(len(data)):
        try:
            found.append(data[index])
        except ValueError as error:
            bad.append(str(error))
    assert any("\n" not in line for line in bad) and [sample.id for sample in found] == ["bad.tar/good"]
    with pytest.raises(ValueError, match=rf"bad\.tar/.*: holds {message}"):
        data[0]
    assert list(here.iterdir()) == [] and list(here.parent.glob("s.*")) == []


@pytest.mark.parametrize("end", ["pkl", "pickle", "pyd", "pth", "pt", "npy"])
def test_a_pickle_is_never_loaded_and_cannot_be_asked_for(shard, here, end):
    data = shard([member(f"good.{end}", CANARY), *GOOD]).open()
    [sample] = data
    assert [name for turn in sample.turns for name, _ in turn.content] == ["image", "text"]
    with pytest.raises(ValueError, match=rf"columns: answer: '{end}' may hold a pickle, which is never loaded"):
        shard(GOOD, columns={"answer": end})
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "path", ["pipe:touch canary", "pipe: cat a.tar", "https://host/a.tar", "s3://bucket/{0..9}.tar"]
)
def test_an_address_is_no_path(here, path):
    with pytest.raises(ValueError, match="is an address; give the path of files on this machine"):
        WebDataset(path=path)
    assert list(here.iterdir()) == []


def test_a_shard_that_is_cut_anywhere_is_an_error_that_names_it(shard):
    source = shard([member(f"{number}.{end}", b"x" * 700) for number in range(4) for end in ("jpg", "txt")])
    with open(source.path, "rb") as file:
        whole = file.read()
    used = 8 * (512 + 1024)
    assert len(source.open()) == 4 and not whole[used:].strip(b"\0")
    for length in [0, 1, 511, 512, 513, 1000, 1536, 2000, used - 1, used]:
        with open(source.path, "wb") as file:
            file.write(whole[:length])
        with pytest.raises(ValueError, match=r"bad\.tar: (was cut|is empty)"):
            source.open()


def test_a_broken_header_in_the_middle_does_not_pass_for_the_end(shard):
    source = shard([member(f"{number}.jpg", b"x" * 700) for number in range(4)])
    with open(source.path, "r+b") as file:
        file.seek(2 * 1536 + 20)
        file.write(b"\xff")
    with pytest.raises(ValueError, match=r"bad\.tar: has no tar header at byte 3,072; replace the file"):
        source.open()


def header(name=b"a.jpg", size=b"00000000010\0", flag=b"0"):
    block = bytearray(512)
    block[: len(name)], block[124:136], block[156:157], block[148:156] = name, size, flag, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (header(size=b"-0000000010\0"), "has no size in the header at byte 0"),
        (header(size=b"0000000_010\0"), "has no size in the header"),
        (header(size=b"\xff" * 12), "has no size in the header"),
        (header(size=b"\x80" + b"\xff" * 11), "was cut: a member at byte 0 has"),
        (header(size=b"77777777777\0"), "was cut: a member at byte 0 has 8,589,934,591 bytes"),
        (header(flag=b"x") + b"99999999 path=a\n".ljust(512, b"\0"), "has a broken header at byte 512"),
        (header(flag=b"x") + b"0 path=a\n".ljust(512, b"\0"), "has a broken header at byte 512"),
        (header(flag=b"x", size=b"00000000013\0") + b"11 size=-1\n".ljust(512, b"\0") + header(), "has no size"),
        (b"\x1f\x8b" + b"x" * 510, "has no tar header at byte 0; give an uncompressed tar file"),
        (b"x" * 512, "has no tar header at byte 0"),
        (b"\0" * 1024, "holds no sample"),
    ],
)
def test_headers_that_lie_are_one_line(tmp_path, blocks, message):
    path = tmp_path / "bad.tar"
    path.write_bytes(blocks + b"\0" * 1024)
    with pytest.raises(ValueError, match=rf"bad\.tar: {message}"):
        WebDataset(path=str(path), modalities=MODALITIES).open()


def test_a_header_of_a_header_is_not_read_into_memory(tmp_path):
    path = tmp_path / "bad.tar"
    path.write_bytes(header(flag=b"x", size=b"02000000000\0"))
    os.truncate(path, 300 * 2**20)  # with a hole, for nothing
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bad\.tar: has a header of 268,435,456 bytes"):
        list(members_of(path))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_text_in_a_shard_has_a_limit(shard, monkeypatch):
    monkeypatch.setattr("omnikit.builtin.sources.webdataset.LONGEST", 100)
    data = shard([member("a.jpg"), member("a.txt", b"x" * 101)]).open()
    with pytest.raises(ValueError, match=r"bad\.tar/a\.txt: has 101 bytes, over the limit of 100 for texts"):
        data[0]


def test_a_json_in_a_shard_reaches_no_other_sample_and_no_other_place(shard, tmp_path):
    turns = [{"role": "user", "content": [{"image": "b.jpg"}]}, {"role": "assistant", "content": "x"}]
    data = shard([member("a.jpg"), member("a.json", json.dumps({"turns": turns}).encode()), member("b.jpg")]).open()
    [(_, medium)] = data[0].turns[0].content
    assert medium.member is None and medium.source == str(tmp_path / "b.jpg"), (
        "a path beside the shard, as of any record"
    )


def test_a_shard_that_changes_while_it_is_open_is_an_error(shard):
    source = shard(GOOD)
    data = source.open()
    [(_, medium), *_] = data[0].turns[0].content
    with open(source.path, "r+b") as file:
        file.truncate(600)
    with pytest.raises(ValueError, match=r"bad\.tar/good\.txt: the shard has changed since it was opened"):
        data[0]
    with pytest.raises(ValueError, match=r"bad\.tar: was cut"):
        source.open()
    with open(source.path, "r+b") as file:
        file.truncate(513)
    with pytest.raises(ValueError, match=r"bad\.tar/good\.jpg: should be bytes 512 to 516 of a file of 513"):
        source_of(medium, 100)


def test_numbers_in_braces_are_not_made_without_end():
    begin = time.monotonic()
    with pytest.raises(ValueError, match="means more than 100,000 files"):
        WebDataset(path="{0..9}{0..999999999}/{0..999999}.tar").open()
    assert time.monotonic() - begin < 20


# ------------------------------------------------------------------------------------------------ bits flipped anywhere


def table():
    rows = [
        {"id": str(n), "image": {"bytes": b"JPEG" * 20, "path": "a"}, "text": f"a cat {n}", "tags": ["x"] * (n % 3)}
        for n in range(40)
    ]
    return pa.Table.from_pylist(rows)


def write_parquet(folder):
    pq.write_table(table(), folder / "a.parquet", row_group_size=11)
    return Parquet(path=str(folder), modalities=MODALITIES), folder / "a.parquet"


def write_saved(folder):
    with pa.OSFile(str(folder / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table().schema) as stream:
        stream.write_table(table(), max_chunksize=11)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    return HFDataset(path=str(folder), modalities=MODALITIES), folder / "a.arrow"


def write_tar(folder):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(8):
            for about, content in [member(f"{number}.jpg", b"J" * 100), member(f"{number}.txt", b"a cat")]:
                tar.addfile(about, io.BytesIO(content))
    return WebDataset(path=str(folder), modalities=MODALITIES), folder / "a.tar"


def write_lines(folder):
    (folder / "a.jsonl").write_text("".join('{"image": "a.png", "text": "a cat"}\n' for _ in range(20)))
    return Jsonl(path=str(folder / "a.jsonl"), modalities=MODALITIES), folder / "a.jsonl"


def write_list(folder):
    (folder / "a.json").write_text(json.dumps([{"image": "a.png", "text": "a cat"}] * 20))
    return Jsonl(path=str(folder / "a.json"), modalities=MODALITIES), folder / "a.json"


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_tar, write_lines, write_list])
def test_flipped_bits_and_cuts_are_errors_that_name_the_file_or_samples(tmp_path, monkeypatch, write):
    monkeypatch.setenv("OMNIKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    source, file = write(tmp_path / "data")
    whole, chance, noticed = file.read_bytes(), random.Random(0), 0
    for number in range(60):
        broken = bytearray(whole)
        if number % 3:
            for _ in range(1 + number % 4):
                broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        else:
            del broken[chance.randrange(len(broken)) :]
        file.write_bytes(broken)
        try:
            data = source.open()
            length = len(data)
        except ValueError as error:
            assert file.name in str(error) and "\n" not in str(error)
            noticed += 1
            continue
        for index in range(length):
            try:
                assert data[index].turns
            except ValueError as error:
                assert file.name in str(error) and "\n" not in str(error), str(error)
                noticed += 1
    assert noticed >= 10


def test_an_arrow_file_whose_offsets_lie_is_an_error_and_is_not_followed(tmp_path):
    source, file = write_saved(tmp_path)
    data = bytearray(file.read_bytes())
    texts = pa.array([f"a cat {n}" for n in range(11)])
    offsets = texts.buffers()[1].to_pybytes()[: 4 * 12]
    at = bytes(data).index(offsets)
    data[at + 8 : at + 12] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(data)
    opened = source.open()
    with pytest.raises(ValueError, match=r"a\.arrow: row 2: cannot be read \("):
        opened[1]
    assert opened[20].turns


def test_an_arrow_file_that_lacks_its_end_is_not_taken_for_whole(tmp_path):
    source, file = write_saved(tmp_path)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"a\.arrow: does not end as an Arrow stream does; the file was cut"):
        source.open()


@pytest.mark.parametrize(
    "name", ["../a.arrow", "/etc/passwd", "x/a.arrow", "..", "a\0b", "", None, 7, ["a.arrow"], {"filename": "a.arrow"}]
)
def test_a_state_that_names_files_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(ValueError, match=r"state\.json: names no data files beside it"):
        HFDataset(path=str(tmp_path)).open()


def test_a_caption_has_a_limit_and_must_be_text(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"x" * (2**20 + 1))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    data = Folder(path=str(tmp_path), modalities=MODALITIES).open()
    with pytest.raises(ValueError, match=r"a\.txt: has more than 1,048,576 bytes"):
        data[0]
    with pytest.raises(ValueError, match=r"b\.txt: is no UTF-8 \(byte 1\)"):
        data[1]


def test_a_folder_that_leads_to_itself_ends(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.txt").write_text("a cat")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(Folder(path=str(tmp_path), modalities=MODALITIES).open()) == 1


def test_a_record_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("omnikit.builtin.sources.jsonl.LONGEST", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "a", "image": "a"}\n{"text": "' + "b" * 100 + '"}\n')
    data = Jsonl(path=str(tmp_path / "a.jsonl"), modalities=MODALITIES).open()
    assert data[0]
    with pytest.raises(ValueError, match=r"a\.jsonl:2: has 112 bytes, over the limit of 100; keep media in files"):
        data[1]
