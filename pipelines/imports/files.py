"""Files of measures: CSV, Parquet, and the per-image CLIP-IQA files in safetensors.

The published CLIP-IQA files hold tensors `CLIP-IQA`, `CLIP-IQA-512` … `CLIP-IQA-32` (N or N x 1),
in the order of the images' names, and `hash`: of each image the SHA-256 of its pixels, channels
first, as float64 in 0..1, written as four int64. They are distributed as pickles too, which are
not read: a pickle runs whatever code it holds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from schemas.errors import BadInput

SAMPLE_ID, URL, NAME, PIXELS, ORDER = "sample_id", "url", "name", "pixels", "order"
KEY_KINDS = (SAMPLE_ID, URL, NAME, PIXELS, ORDER)
# Columns that are taken for the key where none is named, and what they hold.
_USUAL_KEYS = {
    "sample_id": SAMPLE_ID,
    "url": URL,
    "source_uri": URL,
    "file_name": NAME,
    "filename": NAME,
    "file": NAME,
    "path": NAME,
    "name": NAME,
}
_CLIP_IQA, _HASH = "CLIP-IQA", "hash"
_INTS_A_HASH = 4


@dataclass(frozen=True)
class Listing:
    """What a file says, a row an image.

    Attributes:
        path: of the file.
        digest: 16 hex digits of the SHA-256 of its bytes.
        key_kind: one of KEY_KINDS.
        keys: (N,) the key of each row; for ORDER the number of the row.
        columns: name to (N,) Arrow array, in the file's own types.
    """

    path: Path
    digest: str
    key_kind: str
    keys: Sequence[Any]
    columns: dict[str, pa.Array]

    def __len__(self) -> int:
        return len(self.keys)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column as float64 (N,); null becomes NaN.

        Raises:
            BadInput: there is no such column, or it holds something else.
        """
        if name not in self.columns:
            raise BadInput(f"{self.path} has no column {name!r}; it has {sorted(self.columns)}")
        try:
            values = self.columns[name].cast(pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            said = str(error).splitlines()[0]
            raise BadInput(f"{self.path}: column {name!r} holds no numbers: {said}") from error
        return np.asarray(values.to_numpy(zero_copy_only=False), np.float64)

    def nulls(self, name: str) -> NDArray[np.bool_]:
        """Return which rows of a column say nothing, bool (N,)."""
        return np.asarray(pc.is_null(self.columns[name]).to_numpy(zero_copy_only=False), bool)


def read_listing(path: Path, key_column: str | None = None, key_kind: str | None = None) -> Listing:
    """Read a file of measures.

    Args:
        path: .csv, .tsv, .parquet or .safetensors.
        key_column: column that names the image; None: the first of the usual names.
        key_kind: what that column holds; None: by its name.

    Raises:
        BadInput: the file cannot be read, is empty, or names no images.
    """
    suffix = path.suffix.lower()
    if key_kind is not None and key_kind not in KEY_KINDS:
        raise BadInput(f"keys of kind {key_kind!r} are not known; there are {list(KEY_KINDS)}")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if suffix == ".safetensors":
            return _published(path, digest, key_kind)
        if suffix == ".parquet":
            table = pq.read_table(path)
        elif suffix in (".csv", ".tsv"):
            table = _delimited(path, "\t" if suffix == ".tsv" else ",", key_column)
        else:
            raise BadInput(_other_kind(path))
    except (OSError, pa.ArrowException) as error:
        said = " ".join(str(error).split())[:300]
        raise BadInput(f"{path} cannot be read: {said}") from error
    return _from_table(path, digest, table, key_column, key_kind)


def _other_kind(path: Path) -> str:
    if path.suffix.lower() in (".pkl", ".pickle", ".pt", ".pth"):
        return (
            f"{path} is a pickle, which runs code when it is opened; save its tensors with "
            "safetensors.torch.save_file and import that"
        )
    return f"{path}: .csv, .tsv, .parquet and .safetensors are read"


def _delimited(path: Path, delimiter: str, key_column: str | None) -> pa.Table:
    # Keys stay text: a file named 007 is no number.
    text = dict.fromkeys([*_USUAL_KEYS, *([key_column] if key_column else [])], pa.string())
    return pacsv.read_csv(
        path,
        parse_options=pacsv.ParseOptions(delimiter=delimiter),
        convert_options=pacsv.ConvertOptions(column_types=text, null_values=["", "null", "NULL"]),
    )


def _from_table(
    path: Path, digest: str, table: pa.Table, key_column: str | None, key_kind: str | None
) -> Listing:
    names = table.column_names
    if len(set(names)) < len(names):
        raise BadInput(f"{path}: a column name stands twice in {names}")
    if key_kind == ORDER:
        keys: Sequence[Any] = range(table.num_rows)
    else:
        column = key_column or next((n for n in _USUAL_KEYS if n in names), None)
        if column is None or column not in names:
            wanted = key_column or "the usual names " + ", ".join(_USUAL_KEYS)
            raise BadInput(f"{path} has no key column ({wanted}); it has {names}; name one")
        key_kind = key_kind or _USUAL_KEYS.get(column, NAME)
        keys = table[column].cast(pa.string()).to_pylist()
        table = table.drop_columns([column])
        if None in keys:
            raise BadInput(f"{path}: row {keys.index(None) + 1} has no {column}")
    if not len(keys):
        raise BadInput(f"{path} has no rows")
    columns = {name: table[name].combine_chunks() for name in table.column_names}
    return Listing(path, digest, key_kind, keys, columns)


def _published(path: Path, digest: str, key_kind: str | None) -> Listing:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise BadInput(f"{path} needs `pip install safetensors`") from error
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise BadInput(f"{path} cannot be read: {error}") from error
    columns = {n: t.reshape(-1) for n, t in tensors.items() if n.startswith(_CLIP_IQA)}
    counts = {len(values) for values in columns.values()}
    if len(counts) != 1 or 0 in counts:
        raise BadInput(f"{path} holds no tensors {_CLIP_IQA}, {_CLIP_IQA}-512 … of one length")
    [count] = counts
    kind = key_kind or (PIXELS if _HASH in tensors else ORDER)
    keys: Sequence[Any] = range(count)
    if kind == PIXELS:
        if _HASH not in tensors or tensors[_HASH].size != _INTS_A_HASH * count:
            raise BadInput(f"{path} has no tensor {_HASH!r} of {_INTS_A_HASH} numbers an image")
        words = np.ascontiguousarray(tensors[_HASH].reshape(count, _INTS_A_HASH), "<i8")
        keys = [row.tobytes().hex() for row in words]
    elif kind != ORDER:
        raise BadInput(f"{path} names images by {PIXELS} or {ORDER}, not by {kind}")
    arrays = {_column_of(name): pa.array(values) for name, values in columns.items()}
    return Listing(path, digest, kind, keys, arrays)


def _column_of(tensor: str) -> str:
    """CLIP-IQA-256 is what the pack `clip` calls clip_iqa_256."""
    return tensor.lower().replace("-", "_")


def pixel_hash(pixels_HWC: NDArray[np.uint8]) -> str:
    """Return the key that the published files give an image, hex."""
    scaled = np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)) / 255.0
    return hashlib.sha256(scaled.tobytes()).hexdigest()
