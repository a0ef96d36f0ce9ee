"""Parquet files and Arrow data sets, as Hugging Face `datasets` writes them, read with pyarrow alone.

Nothing is converted or copied to a cache: parquet is read a row group at a time, Arrow files are mapped.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import HywuError

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

_BATCH = 4096  # rows
_KEPT_GROUPS = 2  # row groups of which decoded columns are in memory; images of one are often hundreds of MB
_lock = threading.RLock()  # one row group is decoded at a time; several threads of a scan want the same one
_groups: OrderedDict[tuple[str, int], dict[str, pyarrow.ChunkedArray]] = OrderedDict()


def check_installed(path: Path) -> None:
    """HywuError saying what to install where tables cannot be read."""
    if find_spec("pyarrow") is None:
        raise HywuError(f"{path} is a table; reading tables needs one more package: pip install pyarrow")


def columns(path: Path) -> dict[str, str]:
    """Name of every column, with its kind: 'text', 'image', 'images' or 'other'."""
    schema = _open(path)[0]
    return {field.name: _kind(field.type) for field in schema}


def read_rows(path: Path, texts: Sequence[str], images: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows with the named columns: texts as they are; of images only what is there, never their bytes.

    An image cell is None, a path to a file outside the table, or True for an image inside it; a list of
    images is a list of those.
    """
    schema, source = _open(path)
    named = [*texts, *images]
    kinds = {name: schema.field(name).type for name in named}
    readers = {name: _reader(source, name, kinds[name]) for name in images}
    for batch in _batches(source, named, kinds):
        values = {name: batch.column(batch.schema.get_field_index(name)) for name in named}
        cells = {
            name: readers[name](column) if name in readers else column.to_pylist()
            for name, column in values.items()
        }
        for row in range(batch.num_rows):
            yield {name: cells[name][row] for name in named}


def read_image(path: Path, row: int, column: str, item: int = -1) -> bytes:
    """The bytes of one image of a table. HywuError where there are none."""
    value = _cell(path, row, column)
    if item >= 0:
        value = value[item]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        file = path.parent / value
        if not file.is_file():
            raise HywuError(f"{path}, row {row}: the image {file} named in column '{column}' is missing.")
        return file.read_bytes()
    if not value:
        raise HywuError(f"{path}, row {row}: there is no image in column '{column}'.")
    return value


@lru_cache(maxsize=64)
def _open(path: Path) -> tuple[pyarrow.Schema, pyarrow.parquet.ParquetFile | pyarrow.Table]:
    check_installed(path)
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            file = pyarrow.parquet.ParquetFile(path)
            return file.schema_arrow, file
        table = _mapped(path)
        return table.schema, table
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise HywuError(f"{path} is not a complete {path.suffix[1:]} file: {reason}.") from error


def _mapped(path: Path) -> pyarrow.Table:
    """An Arrow file of either kind; `datasets` writes streams, most others write files."""
    import pyarrow

    try:
        return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    except pyarrow.ArrowInvalid:
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


def _is(kind: Any, *names: str) -> bool:
    """Whether a type is one of these; views are unknown to older versions of pyarrow."""
    import pyarrow.types as of

    return any(test(kind) for name in names if (test := getattr(of, f"is_{name}", None)))


def _is_text(kind: Any) -> bool:
    """Categories are texts that are written once."""
    if _is(kind, "dictionary"):
        kind = kind.value_type
    return _is(kind, "string", "large_string", "string_view")


def _is_list(kind: Any) -> bool:
    return _is(kind, "list", "large_list", "fixed_size_list", "list_view", "large_list_view")


def _kind(kind: Any) -> str:
    if _is_text(kind):
        return "text"
    if _is(kind, "binary", "large_binary", "binary_view"):
        return "image"
    if _is(kind, "struct"):
        return (
            "image" if {kind.field(i).name for i in range(kind.num_fields)} >= {"bytes", "path"} else "other"
        )
    if _is_list(kind):
        return {"image": "images", "text": "texts"}.get(_kind(kind.value_type), "other")
    return "other"


def _reader(source: Any, name: str, kind: Any) -> Callable[[pyarrow.Array], list[Any]]:
    """How `read_rows` reads a column of images."""
    return _paths if _only_paths(source, name, kind) else partial(_presence, kind=kind)


def _only_paths(source: Any, name: str, kind: Any) -> bool:
    """Whether a column of images has bytes nowhere, so that all of them are files outside the table."""
    inner = kind.value_type if _is_list(kind) else kind
    if not _is(inner, "struct"):
        return False
    if hasattr(source, "iter_batches"):
        about = source.metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        return all(
            column.statistics is not None
            and column.statistics.has_null_count
            and column.statistics.null_count == column.num_values
            for column in columns
            if column.path_in_schema.startswith(f"{name}.") and column.path_in_schema.endswith(".bytes")
        )
    chunks = source.column(name).chunks
    structs = [chunk.flatten() if _is_list(kind) else chunk for chunk in chunks]
    return all(struct.field("bytes").null_count == len(struct) for struct in structs)


def _paths(column: pyarrow.Array) -> list[Any]:
    """The paths in cells of images, or of lists of images."""

    def path(cell: Any) -> Any:
        return [path(each) for each in cell] if isinstance(cell, list) else cell and cell["path"]

    return [path(cell) for cell in column.to_pylist()]


def _batches(source: Any, named: Sequence[str], kinds: Mapping[str, Any]) -> Iterator[pyarrow.RecordBatch]:
    """Batches of the named columns; of a parquet file's images only the paths are decoded."""
    if not hasattr(source, "iter_batches"):
        yield from source.select(list(named)).to_batches(max_chunksize=_BATCH)
        return
    leaves = [source.schema.column(i).path for i in range(len(source.schema.names))]
    wanted: list[str] = []
    for name in named:
        own = [leaf for leaf in leaves if leaf == name or leaf.startswith(f"{name}.")]
        light = [leaf for leaf in own if leaf.endswith(".path")] if "image" in _kind(kinds[name]) else []
        wanted += light or own
    yield from source.iter_batches(batch_size=_BATCH, columns=wanted, use_threads=False)


def _presence(column: pyarrow.Array, kind: Any) -> list[Any]:
    """What `read_rows` says of the images of a batch."""
    import pyarrow.compute

    if _is_text(kind):
        return column.to_pylist()
    if _is_list(kind):
        inner = _kind(kind.value_type)
        if inner == "text":
            return column.to_pylist()
        inside = column.is_valid().to_pylist()
        lengths = pyarrow.compute.list_value_length(column).to_pylist()
        return [
            [True] * (length or 0) if there else None for there, length in zip(inside, lengths, strict=True)
        ]
    return [True if there else None for there in column.is_valid().to_pylist()]


def _cell(path: Path, row: int, column: str) -> Any:
    _, source = _open(path)
    if not hasattr(source, "iter_batches"):
        return source.column(column)[row].as_py()
    with _lock:
        group = 0
        while row >= (rows := source.metadata.row_group(group).num_rows):
            row, group = row - rows, group + 1
        decoded = _groups.setdefault((str(path), group), {})
        _groups.move_to_end((str(path), group))
        while len(_groups) > _KEPT_GROUPS:
            _groups.popitem(last=False)
        if column not in decoded:
            decoded[column] = source.read_row_group(group, columns=[column], use_threads=False).column(column)
        return decoded[column][row].as_py()
