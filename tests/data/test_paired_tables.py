"""Tables as Hugging Face `datasets` writes them: the same samples and the same pixels come back."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from hywu_core.data.paired import Options, PairedDataset
from hywu_core.data.paired import tables as our_tables
from hywu_core.data.paired.file_hashes import FileHashes
from hywu_core.errors import HywuError


def colour(index: int, number: int = 0) -> tuple[int, int, int]:
    return (40 * index + 5, 60 * number + 3, 77)


def png(rgb) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), rgb).save(file, "PNG")
    return file.getvalue()


def seen(picture) -> tuple[int, int, int]:
    """The colour of a picture that has one."""
    pixels = np.asarray(picture.rgb())
    assert pixels.shape == (4, 6, 3)
    assert (pixels == pixels[0, 0]).all()
    return tuple(int(value) for value in pixels[0, 0])


@pytest.fixture
def written():
    """Five edits in the columns of diffusers' InstructPix2Pix script."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        input_image=datasets.Image(), edit_prompt=datasets.Value("string"), edited_image=datasets.Image()
    )
    rows = [
        {
            "input_image": {"bytes": png(colour(i, 1)), "path": None},
            "edit_prompt": f"edit {i}",
            "edited_image": {"bytes": png(colour(i)), "path": None},
        }
        for i in range(5)
    ]
    return datasets.Dataset.from_list(rows, features=features)


def check(data: PairedDataset, indices=(0, 1, 2, 3, 4)) -> None:
    assert data.convention == "huggingface"
    assert [sample.prompt for sample in data] == [f"edit {i}" for i in indices]
    for index, sample in zip(indices, data, strict=True):
        assert sample.target.size() == (6, 4)
        assert seen(sample.target) == colour(index)
        assert [seen(control) for control in sample.controls] == [colour(index, 1)]


def test_parquet_of_several_row_groups(written, tmp_path):
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    written.to_parquet(path, batch_size=2)
    check(PairedDataset.load(tmp_path))
    check(PairedDataset.load(path))
    data = PairedDataset.load(path)
    assert [seen(data[i].target) for i in (4, 0, 3, 1, 2)] == [colour(i) for i in (4, 0, 3, 1, 2)]
    assert len({FileHashes().of(sample.target) for sample in data}) == 5


def test_hashes_of_cells_are_remembered_until_their_table_is_touched(written, tmp_path, monkeypatch):
    monkeypatch.setattr("hywu_core.data.paired.file_hashes._SETTLED_NS", -(10**12))  # the table is new
    path, memory = tmp_path / "train.parquet", tmp_path / "memory"
    written.to_parquet(path)
    pictures = [sample.target for sample in PairedDataset.load(path)]
    first = FileHashes(memory)
    known = [first.of(picture) for picture in pictures]
    first.save()
    assert len(set(known)) == 5
    monkeypatch.delattr("hywu_core.data.paired.pictures.Picture.read")
    again = FileHashes(memory)
    assert [again.of(picture) for picture in pictures] == known
    os.utime(path, ns=(10**18, 10**18))
    with pytest.raises(AttributeError, match="read"):
        again.of(pictures[0])


def test_a_row_group_is_decoded_once_however_many_images_an_edit_has(tmp_path, monkeypatch):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    names = ("edited_image", "source_image_0", "source_image_1")
    images = {
        name: [{"bytes": png(colour(i, n)), "path": None} for i in range(6)] for n, name in enumerate(names)
    }
    table = pyarrow.table({**images, "prompt": [f"edit {i}" for i in range(6)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    data = PairedDataset.load(tmp_path)
    decoded = []
    read = parquet.ParquetFile.read_row_group

    def counted(file, group, columns, **options):
        decoded.append((group, *columns))
        return read(file, group, columns=columns, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    for index, sample in enumerate(data):
        assert seen(sample.target) == colour(index)
        assert [seen(control) for control in sample.controls] == [colour(index, 1), colour(index, 2)]
    assert sorted(decoded) == sorted((group, name) for group in range(3) for name in names)


def test_the_ending_of_a_table_may_be_in_capitals(written, tmp_path):
    written.to_parquet(tmp_path / "train.PARQUET")
    check(PairedDataset.load(tmp_path / "train.PARQUET"))
    check(PairedDataset.load(tmp_path))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("train-00000-of-00001-9fd9f23e2b1cb397.parquet", "test-00000-of-00001-0123456789abcdef.parquet"),
    ],
)
def test_other_splits_are_not_trained_on(train, test, written, tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    written.to_parquet(tmp_path / "data" / train)
    datasets.Dataset.from_list([written[0]], features=written.features).to_parquet(tmp_path / "data" / test)
    check(PairedDataset.load(tmp_path))
    check(PairedDataset.load(tmp_path, Options(split="train")))
    check(PairedDataset.load(tmp_path, Options(split="test")), [0])


def test_what_save_to_disk_writes(written, tmp_path):
    written.save_to_disk(tmp_path / "set", num_shards=2)
    check(PairedDataset.load(tmp_path / "set"))


def test_of_several_splits_one_is_read(written, tmp_path):
    import datasets

    parts = {"train": written.select([0, 3, 4]), "test": written.select([1, 2])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    check(PairedDataset.load(tmp_path / "set"), (0, 3, 4))
    check(PairedDataset.load(tmp_path / "set", Options(split="test")), (1, 2))
    with pytest.raises(HywuError, match=r"no split 'dev'; choose one with --split: train, test"):
        PairedDataset.load(tmp_path / "set", Options(split="dev"))


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_lists_of_controls_and_empty_cells(kind, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {
            "target": {"bytes": png(colour(i)), "path": "t.png"},
            "control_images": [{"bytes": png(colour(i, n)), "path": None} for n in range(1, 1 + i)] or None,
            "prompt": None if i == 2 else f"p{i}",
        }
        for i in range(3)
    ]
    features = datasets.Features(
        target=datasets.Image(),
        control_images=datasets.Sequence(datasets.Image()),
        prompt=datasets.Value("string"),
    )
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(tmp_path / "a.parquet") if kind == "parquet" else table.save_to_disk(tmp_path)
    with pytest.raises(HywuError, match="1 of 3 samples lack a control image"):
        PairedDataset.load(tmp_path)
    data = PairedDataset.load(tmp_path, Options(allow_missing_controls=True))
    assert [[seen(c) for c in sample.controls] for sample in data] == [
        [],
        [colour(1, 1)],
        [colour(2, 1), colour(2, 2)],
    ]
    assert [sample.prompt for sample in data] == ["p0", "p1", ""]


def test_tables_that_name_files(tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in ("t.png", "s.png"):
        (tmp_path / name).write_bytes(png(colour(0, name == "s.png")))
    row = {"file_name": "t.png", "source_image_file_name": "s.png", "text": "edit 0"}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "metadata.parquet")
    check(PairedDataset.load(tmp_path), [0])


@pytest.mark.parametrize("inside", ["", "data"])
def test_what_macos_leaves_beside_a_table_is_no_table(inside, written, tmp_path):
    (tmp_path / inside).mkdir(exist_ok=True)
    written.to_parquet(tmp_path / inside / "train.parquet")
    (tmp_path / inside / "._train.parquet").write_bytes(b"\0\5\x16\7\0\2")
    check(PairedDataset.load(tmp_path))


def test_a_table_may_be_elsewhere_than_the_files_it_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "store").mkdir()
    for name in ("t.png", "s.png"):
        (tmp_path / "store" / name).write_bytes(png(colour(0, name == "s.png")))
    row = {"file_name": "t.png", "source_image_file_name": "s.png", "text": "edit 0"}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")
    check(PairedDataset.load(tmp_path / "a.parquet", Options(base=tmp_path / "store")), [0])


def save_table(table, path, kind):
    """As parquet or as an Arrow file that `save_to_disk` might have written; returns what to load."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if kind == "parquet":
        parquet.write_table(table, path / "a.parquet", row_group_size=1)
        return path / "a.parquet"
    with pyarrow.ipc.new_file(str(path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    (path / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}', encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_images_that_are_only_paths_are_looked_for_where_the_user_says(kind, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    (tmp_path / "store").mkdir()
    for name, number in (("t", 0), ("s", 1)):
        for i in (0, 1):
            (tmp_path / "store" / f"{name}{i}.png").write_bytes(png(colour(i, number)))
    columns = {
        "target": [{"bytes": None, "path": f"t{i}.png"} for i in (0, 1)],
        "source": [[{"bytes": None, "path": f"s{i}.png"}] for i in (0, 1)],
        "text": [f"edit {i}" for i in (0, 1)],
    }
    image = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    types = {"target": image, "source": pyarrow.list_(image), "text": pyarrow.string()}
    where = save_table(pyarrow.table(columns, pyarrow.schema(types)), tmp_path, kind)
    check(PairedDataset.load(where, Options(base=tmp_path / "store")), [0, 1])
    with pytest.raises(HywuError, match=r"2 of 2 edited images are missing, such as .*t0\.png"):
        PairedDataset.load(where)
    columns["target"][1]["bytes"] = png(colour(1))  # of some the bytes are there
    (tmp_path / "mixed").mkdir()
    where = save_table(pyarrow.table(columns, pyarrow.schema(types)), tmp_path / "mixed", kind)
    (tmp_path / "mixed" / "t0.png").write_bytes(png(colour(0)))
    check(PairedDataset.load(where, Options(base=tmp_path / "store")), [0, 1])


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_of_every_type_that_holds_texts_and_images(kind, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    images = {number: [png(colour(i, number)) for i in range(3)] for number in (0, 1, 2)}
    pairs = [list(pair) for pair in zip(images[1], images[2], strict=True)]
    table = pyarrow.table(
        {
            "target": pyarrow.array(images[0], pyarrow.binary_view()),
            "source": pyarrow.array(pairs, pyarrow.list_(pyarrow.binary(), 2)),
            "prompt": pyarrow.array(["a", "b", "a"], pyarrow.string_view()),
            "caption": pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        }
    )
    where = save_table(table, tmp_path, kind)
    for column in ("prompt", "caption"):
        data = PairedDataset.load(where, Options(prompt_column=column))
        assert [sample.prompt for sample in data] == ["a", "b", "a"]
        for i, sample in enumerate(data):
            assert [seen(p) for p in (sample.target, *sample.controls)] == [colour(i, n) for n in (0, 1, 2)]


def test_options_that_say_nothing_about_a_table_are_refused(written, tmp_path):
    path = tmp_path / "a.parquet"
    written.to_parquet(path)
    for options, said in (
        (Options(control_folders=(tmp_path,)), r"--control-folder says nothing about .*a\.parquet \(hugging"),
        (Options(convention="diffsynth"), r"a\.parquet is a table; --convention diffsynth has none"),
        (Options(split="train"), r"--split says nothing about"),
    ):
        with pytest.raises(HywuError, match=said):
            PairedDataset.load(path, options)
    with pytest.raises(HywuError, match=r"has no splits; leave out --split test"):
        PairedDataset.load(tmp_path, Options(split="test"))
    written.save_to_disk(tmp_path / "set")
    with pytest.raises(HywuError, match=r"has no splits; leave out --split test"):
        PairedDataset.load(tmp_path / "set", Options(split="test"))


def test_a_damaged_table_is_one_sentence(written, tmp_path):
    path = tmp_path / "a.parquet"
    written.to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(HywuError, match="is not a complete parquet file"):
        PairedDataset.load(path)


def test_without_the_package_it_is_said_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(our_tables, "find_spec", lambda name: None)
    with pytest.raises(HywuError, match="pip install pyarrow"):
        PairedDataset.load(tmp_path)
