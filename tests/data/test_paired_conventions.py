"""The same edits, written as every trainer's users write them, are read back as the same samples."""

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hywu_core.data.paired import Options, PairedDataset
from hywu_core.errors import HywuError

from .paired_writers import ANY_COUNT, SAME_COUNT, Edit, image, imagefolder_jsonl, normal, text

PROMPTS = st.text(st.characters(blacklist_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), min_size=1, max_size=40)
NAMES = st.from_regex(r"[a-z猫é0-9](?:[a-zA-Z猫é0-9 .,_-]{0,10}[a-zé猫-])?", fullmatch=True)
EDITS = st.lists(
    st.builds(Edit, NAMES, st.integers(1, 4), PROMPTS.map(str.strip).filter(bool)),
    min_size=1,
    max_size=6,
    unique_by=lambda edit: edit.name.casefold(),
)
CONVENTION = {
    "plain": "folders",
    "ai_toolkit": "ai-toolkit",
    "simpletuner": "simpletuner",
    "musubi_folders": "musubi-tuner",
    "musubi_jsonl": "musubi-tuner",
    "diffsynth_json": "diffsynth",
    "diffsynth_csv": "diffsynth",
    "imagefolder_csv": "huggingface",
    "imagefolder_jsonl": "huggingface",
}


@pytest.mark.parametrize("write", [*SAME_COUNT, *ANY_COUNT], ids=lambda write: write.__name__)
@settings(max_examples=25, deadline=None)
@given(edits=EDITS)
def test_what_is_written_is_read_back(write, edits):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        path, expected = write(root, edits)
        data = PairedDataset.load(path)
        assert data.convention == CONVENTION[write.__name__]
        assert normal(data, root) == expected
        assert not data.samples.orphans.count


@pytest.mark.parametrize("write", [*SAME_COUNT, *ANY_COUNT], ids=lambda write: write.__name__)
def test_a_control_that_is_gone_is_an_error_unless_allowed(write, tmp_path):
    path, expected = write(tmp_path, [Edit("one", 1, "a"), Edit("two", 1, "b")])
    (tmp_path / expected[0][1][0]).unlink()
    with pytest.raises(HywuError, match=r"1 of 2 samples lack a control image.*--allow-missing-controls"):
        PairedDataset.load(path)
    data = PairedDataset.load(path, Options(allow_missing_controls=True))
    assert sorted(len(sample.controls) for sample in data) == [0, 1]


@pytest.mark.parametrize("write", ANY_COUNT[1:], ids=lambda write: write.__name__)
def test_a_target_that_is_gone_is_an_error(write, tmp_path):
    path, expected = write(tmp_path, [Edit("one", 1, "a"), Edit("two", 1, "b")])
    (tmp_path / expected[0][0]).unlink()
    with pytest.raises(HywuError, match=r"1 of 2 edited images are missing, such as .*one"):
        PairedDataset.load(path)


def two_folders(root, names=("cat",)):
    for name in names:
        image(root / "targets" / f"{name}.png")
        text(root / "targets" / f"{name}.txt", f"edit {name}")
        image(root / "sources" / f"{name}.png")
    return root / "targets", root / "sources"


def job(root, **settings):
    process = {"trigger_word": settings.pop("process_trigger", None), "datasets": [settings]}
    return text(root / "job.json", json.dumps({"config": {"name": "run", "process": [process]}}))


def test_ai_toolkit_searches_targets_in_depth_and_controls_by_name_in_its_order_of_endings(tmp_path):
    image(tmp_path / "targets" / "deep" / "cat.PNG")
    text(tmp_path / "targets" / "deep" / "cat.caption", "a [trigger] cat")
    image(tmp_path / "targets" / ".thumbs" / "cat.png")
    image(tmp_path / "targets" / "_controls" / "cat.png")
    for ending in (".webp", ".jpg", ".bmp"):
        image(tmp_path / "sources" / f"cat{ending}")
    image(tmp_path / "sources" / "dog.jpg")
    path = job(
        tmp_path,
        folder_path="targets",
        control_path="sources",
        caption_ext="caption",
        num_repeats=3,
        process_trigger="tok",
    )
    data = PairedDataset.load(path)
    assert normal(data, tmp_path) == [("targets/deep/cat.PNG", ["sources/cat.jpg"], "a tok cat")]
    assert list(data.samples.repeats) == [3]
    assert sorted(map(Path, data.samples.orphans.examples)) == [
        tmp_path / "sources" / "cat.webp",
        tmp_path / "sources" / "dog.jpg",
    ]


def test_ai_toolkit_captions_trigger_default_and_numbered_controls(tmp_path):
    targets, sources = two_folders(tmp_path, ("cat", "dog"))
    (targets / "dog.txt").unlink()
    image(tmp_path / "style" / "cat.png"), image(tmp_path / "style" / "dog.png")
    path = job(
        tmp_path,
        folder_path=str(targets),
        control_path="",
        control_path_1=str(sources),
        control_path_2=str(tmp_path / "style"),
        trigger_word="tok",
        default_caption="do it",
    )
    assert normal(PairedDataset.load(path), tmp_path) == [
        ("targets/cat.png", ["sources/cat.png", "style/cat.png"], "tok edit cat"),
        ("targets/dog.png", ["sources/dog.png", "style/dog.png"], "tok do it"),
    ]


def test_ai_toolkit_captions_in_json(tmp_path):
    targets, sources = two_folders(tmp_path)
    captions = text(tmp_path / "captions.json", json.dumps({str(targets / "cat.png"): {"caption": "said"}}))
    path = job(tmp_path, dataset_path=str(captions), control_path=[str(sources)])
    assert normal(PairedDataset.load(path), tmp_path) == [("targets/cat.png", ["sources/cat.png"], "said")]


def toml(root, *lines):
    return text(root / "set.toml", "\n".join(["[[datasets]]", *lines]))


def test_musubi_gives_controls_to_the_longer_name_and_sorts_by_number(tmp_path):
    for name in ("a", "a_1"):
        image(tmp_path / "i" / f"{name}.jpg"), text(tmp_path / "i" / f"{name}.txt", name)
    for name in ("a_0010", "a_2", "a", "a_1", "a_1_0", "a_mask", "b"):
        image(tmp_path / "c" / f"{name}.png")
    image(tmp_path / "i" / "layer.png")
    path = toml(tmp_path, 'image_directory = "i"', 'control_directory = "c"', "num_repeats = 2")
    data = PairedDataset.load(path)
    assert normal(data, tmp_path) == [
        ("i/a.jpg", ["c/a.png", "c/a_2.png", "c/a_0010.png"], "a"),
        ("i/a_1.jpg", ["c/a_1.png", "c/a_1_0.png"], "a_1"),
    ]
    assert [Path(path).name for path in data.samples.orphans.examples] == ["a_mask.png", "b.png"]
    assert list(data.samples.repeats) == [2, 2]
    assert data.samples.notes == {"images without a caption file (.txt) are no samples of musubi-tuner": 1}


def test_musubi_takes_metadata_from_toml_beside_it_or_where_it_runs(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    row = {"image_path": "t.png", "control_path_1": "b.png", "control_path_0": "a.png", "caption": " c "}
    text(tmp_path / "data.jsonl", json.dumps(row) + "\n\n")
    for name in ("t.png", "a.png", "b.png"):
        image(tmp_path / name)
    path = toml(tmp_path, 'image_jsonl_file = "data.jsonl"', 'cache_directory = "cache"')
    expected = [("t.png", ["a.png", "b.png"], "c")]
    monkeypatch.chdir(tmp_path / "run")
    assert normal(PairedDataset.load(path), tmp_path) == expected
    image(tmp_path / "run" / "t.png")  # where a trainer that runs here would look
    assert normal(PairedDataset.load(path), tmp_path) == [("run/t.png", ["a.png", "b.png"], "c")]


def backends(root, *entries):
    return text(root / "multidatabackend.json", json.dumps(entries))


def test_simpletuner_phrasings_repeats_prefix_and_source_by_id(tmp_path):
    targets, sources = two_folders(tmp_path)
    text(targets / "cat.txt", "first\r\n\nsecond\n")
    path = backends(
        tmp_path,
        {"id": "e", "instance_data_dir": str(targets), "caption_strategy": "textfile", "repeats": 4,
         "prepend_instance_prompt": True, "instance_prompt": "tok"},
        {"id": "c", "dataset_type": "conditioning", "instance_data_dir": str(sources),
         "source_dataset_id": "e", "conditioning_type": "reference_strict"},
        {"id": "off", "disabled": True, "type": "aws"},
    )  # fmt: skip
    data = PairedDataset.load(path)
    assert normal(data, tmp_path) == [("targets/cat.png", ["sources/cat.png"], "tok first")]
    assert data[0].also == ("tok second",)
    assert [data[0].phrasing(draw) for draw in (0, 0.49, 0.5, 0.99)] == ["tok first"] * 2 + ["tok second"] * 2
    assert list(data.samples.repeats) == [5]


def test_simpletuner_prefers_captions_of_the_only_conditioning_data_set(tmp_path):
    targets, sources = two_folders(tmp_path)
    text(sources / "cat.txt", "of the source")
    path = backends(
        tmp_path,
        {"id": "e", "instance_data_dir": str(targets), "caption_strategy": "textfile",
         "conditioning_data": "c"},
        {"id": "c", "conditioning_type": "reference_loose", "instance_data_dir": str(sources),
         "caption_strategy": "textfile"},
    )  # fmt: skip
    assert normal(PairedDataset.load(path), tmp_path)[0][2] == "of the source"


def test_simpletuner_file_names_are_captions_without_a_strategy(tmp_path):
    targets, sources = two_folders(tmp_path, ("make_it_rain",))
    (targets / "make_it_rain.txt").unlink()
    path = backends(
        tmp_path,
        {"id": "e", "instance_data_dir": str(targets), "conditioning_data": ["c"]},
        {"id": "c", "conditioning_type": "reference_loose", "instance_data_dir": str(sources)},
    )
    data = PairedDataset.load(path)
    assert data[0].prompt == "make it rain"
    assert sum(data.samples.notes.values()) == 1


def test_folders_are_told_apart_by_captions_then_by_names(tmp_path):
    two_folders(tmp_path)
    image(tmp_path / "aaa" / "cat.jpg")
    assert normal(PairedDataset.load(tmp_path), tmp_path) == [
        ("targets/cat.png", ["aaa/cat.jpg", "sources/cat.png"], "edit cat")
    ]
    (tmp_path / "targets" / "cat.txt").unlink()
    assert PairedDataset.load(tmp_path)[0].target.path == str(tmp_path / "targets" / "cat.png")


def test_a_folder_of_targets_with_control_folders_inside(tmp_path):
    image(tmp_path / "cat.png"), text(tmp_path / "cat.txt", "x")
    image(tmp_path / "control_2" / "cat.png"), image(tmp_path / "control_10" / "cat.png")
    expected = [("cat.png", ["control_2/cat.png", "control_10/cat.png"], "x")]
    assert normal(PairedDataset.load(tmp_path), tmp_path) == expected


def test_a_folder_of_targets_with_control_folders_that_are_named(tmp_path):
    image(tmp_path / "set" / "cat.png"), text(tmp_path / "set" / "cat.md", "x")
    image(tmp_path / "elsewhere" / "cat_1.png"), image(tmp_path / "elsewhere" / "cat_0.png")
    options = Options(control_folders=(tmp_path / "elsewhere",), caption_ending=".md")
    expected = [("set/cat.png", ["elsewhere/cat_0.png", "elsewhere/cat_1.png"], "x")]
    assert normal(PairedDataset.load(tmp_path / "set", options), tmp_path) == expected


def test_a_control_folder_inside_may_be_named_from_elsewhere(tmp_path, monkeypatch):
    image(tmp_path / "set" / "cat.png"), text(tmp_path / "set" / "cat.txt", "x")
    image(tmp_path / "set" / "deep" / "cat.png")
    monkeypatch.chdir(tmp_path)
    options = Options(control_folders=(Path("set/deep"),))
    (edit,) = PairedDataset.load(tmp_path / "set", options)
    assert Path(edit.target.path) == tmp_path / "set" / "cat.png"
    assert [Path(control.path).resolve() for control in edit.controls] == [
        tmp_path / "set" / "deep" / "cat.png"
    ]


def test_an_ending_of_captions_needs_no_dot(tmp_path):
    two_folders(tmp_path)
    options = Options(control_folders=(tmp_path / "sources",), caption_ending="txt")
    assert options == replace(options, caption_ending=".txt")
    assert PairedDataset.load(tmp_path / "targets", options)[0].prompt == "edit cat"


def test_a_data_set_without_any_words_is_known(tmp_path):
    targets, sources = two_folders(tmp_path, ("cat", "dog"))
    options = Options(control_folders=(sources,))
    (targets / "cat.txt").unlink()
    assert not PairedDataset.load(targets, options).wordless
    (targets / "dog.txt").unlink()
    assert PairedDataset.load(targets, options).wordless


@pytest.mark.parametrize("write", [*SAME_COUNT, *ANY_COUNT], ids=lambda write: write.__name__)
def test_what_macos_leaves_beside_every_file_is_not_read(write, tmp_path):
    path, expected = write(tmp_path, [Edit("one", 1, "a"), Edit("two", 1, "b")])
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7\0\2\xff")
    assert normal(PairedDataset.load(path), tmp_path) == expected
    folder = path if path.is_dir() else path.parent
    assert normal(PairedDataset.load(folder), tmp_path) == expected


@pytest.mark.parametrize("name", ["metadata.json", "metadata.jsonl", "data.jsonl"])
def test_half_a_character_is_left_out_of_a_caption(name, tmp_path):
    for file in ("t.png", "s.png"):
        image(tmp_path / file)
    row = {
        "metadata.json": {
            "image": "t.png",
            "edit_image": "s.png",
            "prompt": ["cut \ud83d", "\udc4d whole 👍"],
        },
        "metadata.jsonl": {
            "file_name": "t.png",
            "source": "s.png",
            "prompt": ["cut \ud83d", "\udc4d whole 👍"],
        },
        "data.jsonl": {"image_path": "t.png", "control_path": "s.png", "caption": "a cut 👍\ud83d"},
    }[name]
    path = text(tmp_path / name, json.dumps([row] if name.endswith(".json") else row))
    data = PairedDataset.load(path)
    expected = {"data.jsonl": ("a cut 👍",)}.get(name, ("cut ", " whole 👍"))
    assert (data[0].prompt, *data[0].also) == expected
    assert data.samples.notes == {"captions with half a character, which is left out": 1}


def test_settings_of_ai_toolkit_whose_names_are_no_text_are_passed_over(tmp_path):
    targets, sources = two_folders(tmp_path)
    data = f"{{folder_path: {json.dumps(str(targets))}, control_path: {json.dumps(str(sources))}, 1: 2}}"
    path = text(tmp_path / "job.yaml", f"config: {{process: [{{datasets: [{data}]}}]}}")
    assert normal(PairedDataset.load(path), tmp_path) == [
        ("targets/cat.png", ["sources/cat.png"], "edit cat")
    ]


def test_metadata_may_point_anywhere_and_links_are_followed(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "store"
    for name in ("t.png", "s.png"):
        image(outside / name)
    inside.mkdir()
    try:
        (inside / "link.png").symlink_to(outside / "s.png")
    except OSError:
        pytest.skip("no links here")
    rows = [{"image": "../store/t.png", "prompt": "p", "edit_image": ["link.png", str(outside / "s.png")]}]
    text(inside / "metadata.json", json.dumps(rows))
    [sample] = PairedDataset.load(inside)
    assert sample.target.read() == b"image"
    assert [control.read() for control in sample.controls] == [b"image"] * 2


def test_a_split_is_the_folder_with_metadata_of_its_own(tmp_path):
    path, expected = imagefolder_jsonl(tmp_path, [Edit("one", 1, "a")])
    text(path / "metadata.jsonl", "of something else")
    assert normal(PairedDataset.load(path, Options(split="train")), tmp_path) == expected


@pytest.mark.parametrize("write", ANY_COUNT, ids=lambda write: write.__name__)
def test_relative_paths_of_metadata_start_from_the_base_that_is_named(write, tmp_path):
    store = tmp_path / "store"
    path, expected = write(store, [Edit("one", 1, "a")])
    [metadata] = [path] if path.is_file() else path.rglob("metadata.*")
    content = metadata.read_text(encoding="utf-8").replace(json.dumps(str(store) + os.sep)[1:-1], "")
    moved = text(tmp_path / "elsewhere" / metadata.name, content)
    data = PairedDataset.load(moved, Options(base=metadata.parent))
    assert normal(data, store) == expected


def test_columns_are_named_by_the_user_where_names_tell_nothing(tmp_path):
    for name in ("x.png", "y.png", "z.png"):
        image(tmp_path / name)
    text(
        tmp_path / "metadata.jsonl", json.dumps({"file_name": "x.png", "u": "y.png", "v": "z.png", "w": "do"})
    )
    with pytest.raises(
        HywuError, match=r"the controls cannot be told; name it with --control-column.*image, u"
    ):
        PairedDataset.load(tmp_path)
    options = Options(control_columns=("v", "u"), prompt_column="w")
    assert normal(PairedDataset.load(tmp_path, options), tmp_path) == [("x.png", ["z.png", "y.png"], "do")]
    with pytest.raises(HywuError, match="no column 'q'"):
        PairedDataset.load(tmp_path, Options(control_columns=("q",), prompt_column="w"))


@pytest.mark.parametrize("name", ["metadata.json", "any.jsonl"])
def test_any_table_can_be_read_by_naming_its_columns(name, tmp_path):
    for file in ("x.png", "y.png"):
        image(tmp_path / file)
    row = json.dumps({"new": "x.png", "old": "y.png", "todo": ["do", "make"]})
    path = text(tmp_path / name, f"[{row}]" if name.endswith(".json") else row)
    with pytest.raises(
        HywuError, match=r"the columns new, old, todo are of no known convention; .*--target-column"
    ):
        PairedDataset.load(path)
    data = PairedDataset.load(
        path, Options(target_column="new", control_columns=("old",), prompt_column="todo")
    )
    assert normal(data, tmp_path) == [("x.png", ["y.png"], "do")]
    assert data[0].also == ("make",)
