"""Files of a cache of activations: rows as arrow tables, written a shard at a time, then joined.

A shard is a saved dataset with one file. It is written beside its place and renamed, so that a
folder named `shard_*` is always a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens.activations.cache import BFLOAT16_BITS, TOKEN_IDS_COLUMN
from sae_lens.atomic_files import atomic_write_json
from sae_lens.constants import dtype_name

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

SHARD_FOLDERS = "shard_*"
UNFINISHED = ".tmp_shards"
RUN_FILENAME = "run.json"
_PLAN_FILENAME = "consolidation.json"
_SHARD_FILE = "data-00000-of-00001.arrow"
# What tells an unfinished run from a foreign folder stays until all else is gone.
_DELETED_LAST = (_PLAN_FILENAME, RUN_FILENAME)

# The offsets of arrow's lists are 32 bits wide; and a reader maps one record batch at a time.
_LARGEST_BATCH_ELEMENTS = 2**30
_RECORD_BATCH_BYTES = 32_000_000


def shard_name(index: int) -> str:
    """The folder of a shard: `shard_00003`."""
    return f"shard_{index:05d}"


def cache_features(
    widths: Mapping[str, int], n_positions: int, dtype: torch.dtype, with_token_ids: bool = False
) -> Features:
    """The columns of a cache: one a hook, rows of [n_positions, width], and maybe token ids.

    Arrow has no bfloat16, so its bits are stored as unsigned integers of the same size.
    """
    from datasets import Array2D, Features, Sequence, Value

    stored = BFLOAT16_BITS if dtype == torch.bfloat16 else dtype_name(dtype)
    columns: dict[str, Any] = {
        hook: Array2D(shape=(n_positions, width), dtype=stored) for hook, width in widths.items()
    }
    if with_token_ids:
        columns[TOKEN_IDS_COLUMN] = Sequence(Value("int32"), length=n_positions)
    return Features(columns)


def rows_as_table(columns: Mapping[str, Tensor], features: Features) -> pa.Table:
    """Tensors as the columns of an arrow table, which shares their memory.

    Args:
        columns: hook name -> [row, position, width], on the CPU, in the dtype of the cache; and
            token ids [row, position].
        features: the columns to make.
    """
    import pyarrow as pa

    schema = features.arrow_schema
    kinds = {name: schema.field(name).type for name in features}
    arrays = [pa.chunked_array(_arrow_chunks(columns[n], kind), kind) for n, kind in kinds.items()]
    return pa.table(arrays, schema=schema)


@contextmanager
def new_shard(folder: Path, features: Features) -> Iterator[ShardWriter]:
    """Write a shard: all of it is at `folder` when the body is through, or nothing.

    Yields:
        What takes the shard's rows.
    """
    unfinished = folder.parent / f".unfinished-{folder.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        writer = ShardWriter(unfinished / _SHARD_FILE, features)
        yield writer
        writer.close()
        _write_dataset_info(unfinished, features)
        (unfinished / "state.json").write_text(
            json.dumps(_state([_SHARD_FILE], folder.name), indent=2)
        )
        for file in unfinished.iterdir():
            _flush(file)
        _flush(unfinished)
        os.replace(unfinished, folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


class ShardWriter:
    """Takes tables and writes them as record batches of a size that suits memory-mapped reading."""

    def __init__(self, file: Path, features: Features):
        import pyarrow as pa

        self._sink = pa.OSFile(str(file), "wb")
        self._stream = pa.ipc.new_stream(self._sink, features.arrow_schema)
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0

    def write(self, table: pa.Table) -> None:
        """Add rows; small tables wait until they make up a record batch."""
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= _RECORD_BATCH_BYTES:
            self._write_waiting()

    def close(self) -> None:
        """Write what still waits and end the file."""
        self._write_waiting()
        self._stream.close()
        self._sink.close()

    def _write_waiting(self) -> None:
        import pyarrow as pa

        if len(self._waiting) > 1:
            self._waiting = [pa.concat_tables(self._waiting).combine_chunks()]
        for table in self._waiting:
            self._stream.write_table(table)
        self._waiting, self._waiting_bytes = [], 0


def rows_in_shard(folder: Path) -> int:
    """How many rows a whole shard has."""
    import pyarrow as pa

    n_rows = 0
    for name in _data_files(folder):
        with pa.memory_map(str(folder / name)) as mapped, pa.ipc.open_stream(mapped) as stream:
            n_rows += sum(batch.num_rows for batch in stream)
    return n_rows


def consolidate_shards(source: Path, output: Path, copy_files: bool) -> Dataset:
    """Join the shards in `source` to one saved dataset in `output`, without rewriting rows.

    Moving (`copy_files=False`) can be interrupted and called again: what is to become which file
    is written down before the first file moves. It removes `source` in the end.

    Raises:
        NotADirectoryError: when one of the two is no folder.
        FileExistsError: when `output` holds anything but unfinished shards.
        FileNotFoundError: when there is no first shard, or a file of a shard is missing.
    """
    from datasets import load_from_disk

    for folder in (source, output):
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder.")
    plan = read_plan(source)
    ours = {UNFINISHED, "dataset_info.json", "state.json", *plan.values()} if plan else {UNFINISHED}
    foreign = sorted(file.name for file in output.iterdir() if file.name not in ours)
    if foreign:
        raise FileExistsError(f"{output} is not empty: it has {', '.join(foreign[:5])}.")
    if not plan:
        plan = _new_plan(source)
        if not copy_files:
            atomic_write_json(source / _PLAN_FILENAME, plan, indent=2)
    if not (output / "state.json").exists():
        _join(source, output, plan, copy_files)
    if not copy_files:
        remove_unfinished(source)
    return cast("Dataset", load_from_disk(str(output)))


def _join(source: Path, output: Path, plan: Mapping[str, str], copy_files: bool) -> None:
    """Do as planned; `state.json`, without which nothing is a dataset, comes last."""
    from datasets import Dataset, concatenate_datasets
    from datasets.fingerprint import generate_fingerprint

    for name, target in plan.items():
        if copy_files:
            shutil.copy2(source / name, output / target)
        elif (source / name).exists():
            shutil.move(source / name, output / target)
        elif not (output / target).exists():
            raise FileNotFoundError(f"{source / name} is missing; the cache cannot be completed.")
    info = json.loads((source / shard_name(0) / "dataset_info.json").read_text())
    _place_json(source, output / "dataset_info.json", info)
    files = list(plan.values())
    parts = [Dataset.from_file(str(output / name)) for name in files]
    _flush(output)
    fingerprint = generate_fingerprint(concatenate_datasets(parts))
    _place_json(source, output / "state.json", _state(files, fingerprint))
    _flush(output)


def read_plan(source: Path) -> dict[str, str]:
    """Which file of a shard becomes which file of the dataset, once moving has begun; else {}."""
    file = source / _PLAN_FILENAME
    return json.loads(file.read_text()) if file.is_file() else {}


def remove_unfinished(source: Path) -> None:
    """Delete a folder of shards."""
    last = [source / name for name in _DELETED_LAST if (source / name).exists()]
    for entry in source.iterdir():
        if entry in last:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for file in last:
        file.unlink()
    source.rmdir()


def _new_plan(source: Path) -> dict[str, str]:
    if not (source / shard_name(0)).is_dir():
        raise FileNotFoundError(f"{source} has no {shard_name(0)}: there are no shards to join.")
    files = [
        f"{shard.name}/{name}"
        for shard in sorted(source.glob(SHARD_FOLDERS))
        if shard.is_dir()
        for name in _data_files(shard)
    ]
    return {name: f"data-{k:05d}-of-{len(files):05d}.arrow" for k, name in enumerate(files)}


def _data_files(shard: Path) -> list[str]:
    state = json.loads((shard / "state.json").read_text())
    return [entry["filename"] for entry in state["_data_files"]]


def _state(files: Iterable[str], fingerprint: str) -> dict[str, Any]:
    """The content of a saved dataset's `state.json`."""
    return {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }


def _write_dataset_info(folder: Path, features: Features) -> None:
    from datasets import DatasetInfo

    DatasetInfo(features=features).write_to_directory(str(folder))


def _place_json(source: Path, target: Path, value: Any) -> None:
    """Write JSON in `source` and move it to `target`: no temporary file lies beside that."""
    atomic_write_json(source / target.name, value, indent=2)
    shutil.move(source / target.name, target)


def _arrow_chunks(rows: Tensor, kind: pa.DataType) -> list[pa.Array]:
    import pyarrow as pa

    n_rows = max(1, _LARGEST_BATCH_ELEMENTS // max(1, rows[0].numel())) if len(rows) else 1
    make = _token_id_array if pa.types.is_fixed_size_list(kind) else _activation_array
    return [make(part, kind) for part in rows.split(n_rows)] if len(rows) else []


def _activation_array(rows: Float[Tensor, "row pos d_in"], kind: Any) -> pa.Array:
    import pyarrow as pa

    n_rows, n_positions, width = rows.shape
    rows = rows.contiguous()
    if rows.dtype == torch.bfloat16:
        rows = rows.view(torch.int16)
        flat = rows.numpy().view(np.uint16).reshape(-1)
    else:
        flat = rows.numpy().reshape(-1)
    positions = pa.ListArray.from_arrays(_offsets(n_rows * n_positions, width), pa.array(flat))
    prompts = pa.ListArray.from_arrays(_offsets(n_rows, n_positions), positions)
    return pa.ExtensionArray.from_storage(kind, prompts)


def _token_id_array(rows: Int[Tensor, "row pos"], kind: Any) -> pa.Array:
    import pyarrow as pa

    flat = pa.array(rows.to(torch.int32).contiguous().numpy().reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _offsets(n: int, step: int) -> pa.Array:
    import pyarrow as pa

    return pa.array(np.arange(0, (n + 1) * step, step, dtype=np.int32))


def _flush(path: Path) -> None:
    """Have the operating system put a file or folder on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
