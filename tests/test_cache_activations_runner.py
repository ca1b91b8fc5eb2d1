"""Caching: what is in the files, how a run is stopped and continued, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Array2D, Dataset, load_from_disk
from torch import Tensor

from sae_lens import cache_activations_runner
from sae_lens.activations import cache_folder
from sae_lens.activations.store import ActivationsStore
from sae_lens.cache_activations_runner import CacheActivationsRunner
from sae_lens.config import CacheActivationsRunnerConfig
from tests.helpers import D_IN, tiny_model

HOOK = "blocks.1.hook_resid_pre"
MLP = "blocks.0.mlp.hook_post"
CONTEXT = 8
BATCH = 4
N_ROWS = 24
# Three buffers of two batches each.
BUFFER_GB = 2 * BATCH * CONTEXT * D_IN * 4 / 1e9


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(autouse=True)
def _tiny_model_by_name(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_activations_runner, "load_model", lambda *_, **__: model)


@pytest.fixture(autouse=True, scope="module")
def _no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def token_rows(n: int = N_ROWS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 32, (n, CONTEXT), generator=generator)


def make_cfg(folder: Path, **fields: Any) -> CacheActivationsRunnerConfig:
    """A config for the tiny model; the dataset is written beside the cache on first use."""
    data = folder / "data"
    if not data.exists():
        Dataset.from_dict({"tokens": token_rows().tolist()}).save_to_disk(str(data))
    return CacheActivationsRunnerConfig(
        **{
            "dataset_path": str(data),
            "model_name": "tiny",
            "model_batch_size": BATCH,
            "hook_name": HOOK,
            "hook_layer": 1,
            "d_in": D_IN,
            "training_tokens": N_ROWS * CONTEXT,
            "context_size": CONTEXT,
            "new_cached_activations_path": str(folder / "cache"),
            "buffer_size_gb": BUFFER_GB,
            "shuffle": False,
            "device": "cpu",
            "streaming": False,
            **fields,
        }
    )


def reference(model: Any, tokens: Tensor, hook: str = HOOK) -> Tensor:
    """Activations [row, pos, width] straight from the model."""
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=[hook])[1][hook].flatten(2)


def rows_of(dataset: Dataset, hook: str = HOOK) -> Tensor:
    return dataset.with_format("torch", columns=[hook])[:][hook]


def order_of(dataset: Dataset, expected: Tensor) -> list[int]:
    """Which of the expected rows each row of the dataset is."""
    distances = torch.cdist(rows_of(dataset).flatten(1), expected.flatten(1))
    assert distances.min(dim=1).values.max() < 1e-4
    return distances.argmin(dim=1).tolist()


# -- what is written ------------------------------------------------------------------------------


def test_rows_are_the_models_activations_in_reading_order(tmp_path: Path, model: Any) -> None:
    cfg = make_cfg(tmp_path)
    dataset = CacheActivationsRunner(cfg).run()
    assert dataset.column_names == [HOOK]
    feature = dataset.features[HOOK]
    assert isinstance(feature, Array2D)
    assert (feature.shape, feature.dtype) == ((CONTEXT, D_IN), "float32")
    torch.testing.assert_close(rows_of(dataset), reference(model, token_rows()))
    assert sorted(file.name for file in (tmp_path / "cache").iterdir()) == [
        "data-00000-of-00003.arrow", "data-00001-of-00003.arrow", "data-00002-of-00003.arrow",
        "dataset_info.json", "state.json",
    ]  # fmt: skip
    again = load_from_disk(str(tmp_path / "cache"))
    assert again.features == dataset.features
    assert torch.equal(rows_of(again), rows_of(dataset))
    state = json.loads((tmp_path / "cache/state.json").read_text())
    assert len(state["_fingerprint"]) == 16
    assert {name: state[name] for name in state if name not in ("_data_files", "_fingerprint")} == {
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
        "_output_all_columns": False, "_split": None,
    }  # fmt: skip


def test_only_the_rows_asked_for_are_cached(tmp_path: Path, model: Any) -> None:
    cfg = make_cfg(tmp_path, training_tokens=19 * CONTEXT + 5)
    dataset = CacheActivationsRunner(cfg).run()
    torch.testing.assert_close(rows_of(dataset), reference(model, token_rows()[:19]))


def test_shuffling_is_on_disk_and_a_function_of_the_seed(tmp_path: Path, model: Any) -> None:
    expected = reference(model, token_rows())
    orders = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        cfg = make_cfg(
            tmp_path, shuffle=True, seed=seed, new_cached_activations_path=str(tmp_path / name)
        )
        dataset = CacheActivationsRunner(cfg).run()
        orders[name] = order_of(dataset, expected)
        assert order_of(load_from_disk(str(tmp_path / name)), expected) == orders[name]
        assert sorted(orders[name]) == list(range(N_ROWS))
    assert orders["a"] == orders["b"]
    assert orders["a"] != orders["c"]
    first_file = orders["a"][: 2 * BATCH]
    assert max(first_file) >= 2 * BATCH, "rows must also change places between files"


def test_slice_token_ids_and_several_hooks(tmp_path: Path, model: Any) -> None:
    cfg = make_cfg(
        tmp_path,
        seqpos_slice=(1, -1, 2),
        hook_names=[MLP],
        hook_widths={MLP: 4 * D_IN},
        cache_token_ids=True,
        training_tokens=N_ROWS * 3,
    )
    forward_passes = []
    runner = CacheActivationsRunner(cfg)
    handle = model.embed.register_forward_hook(lambda *_: forward_passes.append(1))
    try:
        dataset = runner.run()
    finally:
        handle.remove()
    assert dataset.column_names == [HOOK, MLP, "token_ids"]
    for hook in (HOOK, MLP):
        torch.testing.assert_close(
            rows_of(dataset, hook), reference(model, token_rows(), hook)[:, 1:-1:2]
        )
    assert dataset["token_ids"][:] == token_rows()[:, 1:-1:2].tolist()
    # one per batch for both hooks, and two single tokens that check the hooks first
    assert len(forward_passes) == N_ROWS // BATCH + 2


def test_heads_are_flattened(tmp_path: Path, model: Any) -> None:
    hook = "blocks.0.attn.hook_z"
    dataset = CacheActivationsRunner(make_cfg(tmp_path, hook_name=hook, hook_layer=0)).run()
    torch.testing.assert_close(rows_of(dataset, hook), reference(model, token_rows(), hook))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_come_back_exactly(tmp_path: Path, model: Any, dtype: str) -> None:
    cfg = make_cfg(tmp_path, dtype=dtype)
    dataset = CacheActivationsRunner(cfg).run()
    store = ActivationsStore.from_cache_activations(model, cfg)
    expected = store.get_activations(token_rows())[:, :, 0].to(getattr(torch, dtype))
    buffer = store.get_buffer(N_ROWS // BATCH, shuffle=False)
    assert buffer.dtype == getattr(torch, dtype)
    torch.testing.assert_close(buffer.view(N_ROWS, CONTEXT, D_IN), expected)
    # and through the dataset that the store opened
    assert store.cached_activation_dataset is not None
    row = store.cached_activation_dataset[3][HOOK]
    torch.testing.assert_close(row, expected[3])
    bytes_of_numbers = N_ROWS * CONTEXT * cfg.bytes_per_token
    on_disk = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.arrow"))
    assert bytes_of_numbers < on_disk < 1.5 * bytes_of_numbers
    assert dataset.features[HOOK].dtype == ("uint16" if dtype == "bfloat16" else dtype)


def test_text_is_packed_like_training_packs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The embedded model has a tokenizer; the point is only which tokens are taken.
    from sae_lens.activations.model_loading import load_model
    from sae_lens.constants import EMBEDDED_DATASET_NAME, EMBEDDED_MODEL_NAME

    embedded = load_model("HookedTransformer", EMBEDDED_MODEL_NAME, "cpu")
    cfg = make_cfg(
        tmp_path, dataset_path=EMBEDDED_DATASET_NAME, d_in=128, cache_token_ids=True,
        training_tokens=16 * CONTEXT, buffer_size_gb=1.0, hook_name="hook_embed", hook_layer=0,
    )  # fmt: skip
    monkeypatch.setattr(cache_activations_runner, "load_model", lambda *_, **__: embedded)
    with pytest.warns(UserWarning, match="not tokenized"):
        runner = CacheActivationsRunner(cfg)
    expected = runner.activations_store.evaluation_stream().get_batch_tokens(16)
    dataset = runner.run()
    assert dataset["token_ids"][:] == expected.tolist()
    torch.testing.assert_close(rows_of(dataset, "hook_embed"), embedded.W_E[expected].detach())


def test_reading_a_sliced_cache_and_wrapping_around(tmp_path: Path, model: Any) -> None:
    cfg = make_cfg(tmp_path, seqpos_slice=(2, None), training_tokens=N_ROWS * 6)
    CacheActivationsRunner(cfg).run()
    store = ActivationsStore.from_cache_activations(model, cfg)
    expected = reference(model, token_rows())[:, 2:].reshape(-1, 1, D_IN)
    read = [store.get_buffer(2, shuffle=False) for _ in range(4)]
    torch.testing.assert_close(torch.cat(read[:3]), expected)
    torch.testing.assert_close(read[3], read[0])


def test_memory_is_a_batch_not_the_dataset(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    width, n_rows = 8192, 1024  # 256 MB
    cfg = make_cfg(
        tmp_path, d_in=width, training_tokens=n_rows * CONTEXT, shuffle=True, model_batch_size=16,
        buffer_size_gb=0.05,
    )  # fmt: skip
    runner = CacheActivationsRunner(cfg, Dataset.from_dict({"tokens": token_rows(n_rows).tolist()}))

    def kilobytes(name: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    def work() -> int:
        runner._check_model = lambda: None  # type: ignore[method-assign]
        runner._activations = lambda t: {HOOK: torch.ones(*t.shape, width)}  # type: ignore[method-assign]
        Path("/proc/self/clear_refs").write_text("5")
        before = kilobytes("VmRSS")
        runner.run()
        return kilobytes("VmHWM") - before

    grown = in_child_process(work)
    assert sum(f.stat().st_size for f in (tmp_path / "cache").glob("*.arrow")) > 256e6
    assert grown < 120_000, f"memory grew by {grown} kB while 256 MB were written"


# -- private names that are called from elsewhere --------------------------------------------------


def test_a_buffer_as_a_shard(tmp_path: Path) -> None:
    runner = CacheActivationsRunner(make_cfg(tmp_path))
    buffer = torch.arange(3 * CONTEXT * D_IN, dtype=torch.float32).view(-1, 1, D_IN)
    shard = runner._create_shard(buffer)
    assert shard.features == runner.features
    assert torch.equal(rows_of(shard), buffer.view(3, CONTEXT, D_IN))


@pytest.mark.parametrize("copy_files", [True, False])
def test_shards_are_joined_without_rewriting(tmp_path: Path, copy_files: bool) -> None:
    runner = CacheActivationsRunner(make_cfg(tmp_path))
    source, output = tmp_path / "shards", tmp_path / "joined"
    output.mkdir()
    (output / ".tmp_shards").mkdir()
    parts = [torch.randn(n * CONTEXT, 1, D_IN) for n in (5, 3, 4)]
    for index, part in enumerate(parts):
        # the second shard is in two files: the number in the names counts files
        runner._create_shard(part).save_to_disk(
            str(source / f"shard_{index:05d}"), num_shards=1 + (index == 1)
        )
    joined = runner._consolidate_shards(source, output, copy_files=copy_files)
    assert torch.equal(rows_of(joined).reshape(-1, 1, D_IN), torch.cat(parts))
    assert sorted(f.name for f in output.glob("data*.arrow")) == [
        f"data-{k:05d}-of-00004.arrow" for k in range(4)
    ]
    assert source.exists() == copy_files
    if copy_files:
        assert len(load_from_disk(str(source / "shard_00001"))) == 3


def test_joining_refuses_what_it_cannot_join(tmp_path: Path) -> None:
    join = CacheActivationsRunner._consolidate_shards
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note.txt").write_text("mine")
    with pytest.raises(NotADirectoryError):
        join(tmp_path / "nowhere", tmp_path / "empty")
    with pytest.raises(NotADirectoryError):
        join(tmp_path / "empty", tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"is not empty: it has note\.txt"):
        join(tmp_path / "empty", tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="no shard_00000"):
        join(tmp_path / "full", tmp_path / "empty")
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("context", "seqpos", "length"),
    [(8, (None,), 8), (8, None, 8), (8, (2, 6), 4), (8, (0, None, 3), 3), (10, (-4, None), 4)],
)
def test_length_of_a_slice(context: int, seqpos: Any, length: int) -> None:
    assert CacheActivationsRunner._get_sliced_context_size(context, seqpos) == length


# -- what it says and what it refuses --------------------------------------------------------------


def test_it_says_what_it_will_take(tmp_path: Path) -> None:
    text = str(CacheActivationsRunner(make_cfg(tmp_path, training_tokens=10**9 + 3)))
    n_tokens = 10**9
    assert f"total training tokens: {n_tokens}" in text
    assert f"number of buffers: {-(-(10**9 + 3) // 64)}" in text
    assert "tokens per buffer: 64" in text
    assert f"disk space: {n_tokens * D_IN * 4 / 1e9:.2f} GB" in text
    assert "takes about" in text
    assert "hook_name='blocks.1.hook_resid_pre'" in text
    assert not (tmp_path / "cache").exists()


def test_too_small_a_disk_is_refused_before_the_model_runs(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_activations_runner, "free_bytes", lambda _: 10_000)
    runner = CacheActivationsRunner(make_cfg(tmp_path))
    handle = model.embed.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    try:
        with pytest.raises(OSError, match=r"needs 0\.00 GB more, but only 0\.00 GB are free"):
            runner.run()
    finally:
        handle.remove()


def test_a_disk_that_becomes_full_costs_nothing_that_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.activations.cache_files import ShardWriter

    cfg = make_cfg(tmp_path)
    write = ShardWriter.write
    written = []

    def write_until_full(self: ShardWriter, table: Any) -> None:
        written.append(table.num_rows)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        write(self, table)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "write", write_until_full)
        with pytest.raises(OSError, match=r"is full.*make room and run again"):
            CacheActivationsRunner(cfg).run()
    unfinished = tmp_path / "cache/.tmp_shards"
    assert [file.name for file in sorted(unfinished.glob("*shard_*"))] == ["shard_00000"]
    kept = (unfinished / "shard_00000/data-00000-of-00001.arrow").stat().st_ino
    CacheActivationsRunner(cfg).run()
    assert (tmp_path / "cache/data-00000-of-00003.arrow").stat().st_ino == kept
    assert_same_as_uninterrupted(tmp_path, cfg)


def test_a_dataset_that_ends_early_gives_its_whole_batches(tmp_path: Path, model: Any) -> None:
    data = Dataset.from_dict({"tokens": token_rows(11).tolist()})
    with pytest.warns(UserWarning, match="several epochs"):
        runner = CacheActivationsRunner(make_cfg(tmp_path), data)
    with pytest.warns(UserWarning, match=r"ended after 8 of 24 rows \(64 of 192 tokens\)"):
        dataset = runner.run()
    torch.testing.assert_close(rows_of(dataset), reference(model, token_rows(11)[:8]))


def test_a_batch_larger_than_the_dataset_is_refused(tmp_path: Path) -> None:
    data = Dataset.from_dict({"tokens": token_rows(3).tolist()})
    with pytest.warns(UserWarning, match="several epochs"):
        runner = CacheActivationsRunner(make_cfg(tmp_path), data)
    with pytest.raises(ValueError, match=r"fewer rows .*model_batch_size=4"):
        runner.run()


def test_a_wrong_width_is_known_before_tokens_are_collected(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path, d_in=D_IN + 1)
    with pytest.raises(RuntimeError, match=r"The expanded size of the tensor \(17\) must match"):
        CacheActivationsRunner(cfg).run()
    cfg = make_cfg(
        tmp_path, hook_names=[MLP], new_cached_activations_path=str(tmp_path / "other"),
        buffer_size_gb=1e-4,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"says 16 for 'blocks\.0\.mlp\.hook_post'"):
        CacheActivationsRunner(cfg).run()
    assert not list(tmp_path.rglob("tokens.bin*"))
    # nothing of use was left, so corrected settings may take the folder
    CacheActivationsRunner(replace(cfg, hook_widths={MLP: 4 * D_IN})).run()


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    data = Dataset.from_dict({"tokens": (token_rows() + 9).tolist()})
    with pytest.raises(ValueError, match="vocabulary ends at 31"):
        CacheActivationsRunner(make_cfg(tmp_path), data).run()


def test_rows_shorter_than_the_context_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"have 8 tokens, which is fewer than context_size=12"):
        CacheActivationsRunner(make_cfg(tmp_path, context_size=12))


@pytest.mark.parametrize("content", ["note.txt", "state.json", ".tmp_shards/shard_00000/x"])
def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, content: str) -> None:
    cfg = make_cfg(tmp_path)
    file = tmp_path / "cache" / content
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        CacheActivationsRunner(cfg).run()
    assert file.read_text() == "mine"


def test_a_finished_cache_is_left_alone(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    CacheActivationsRunner(cfg).run()
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    with pytest.raises(FileExistsError, match="is not empty"):
        CacheActivationsRunner(cfg).run()
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()} == before


def test_reading_a_cache_of_something_else(tmp_path: Path, model: Any) -> None:
    cfg = make_cfg(tmp_path)
    CacheActivationsRunner(cfg).run()
    for changes, message in [
        ({"hook_name": "blocks.0.hook_resid_pre"}, "but not 'blocks.0.hook_resid_pre'"),
        ({"d_in": 2 * D_IN, "buffer_size_gb": 1.0}, r"the shape \(8, 16\) a row.*\(8, 32\)"),
        ({"context_size": 4}, r"the shape \(8, 16\) a row.*\(4, 16\)"),
    ]:
        other = make_cfg(tmp_path, **changes)
        with pytest.raises(ValueError, match=message):
            ActivationsStore.from_cache_activations(model, other)


# -- the hub ---------------------------------------------------------------------------------------


def test_pushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[Any] = []
    files: list[dict[str, Any]] = []

    class Api:
        def upload_file(self, **kwargs: Any) -> None:
            files.append(kwargs)

    def push_to_hub(dataset: Dataset, repo_id: str, **kwargs: Any) -> None:
        pushed.append((repo_id, len(dataset), kwargs))

    monkeypatch.setattr(Dataset, "push_to_hub", push_to_hub)
    monkeypatch.setattr(cache_activations_runner, "HfApi", Api)
    cfg = make_cfg(
        tmp_path, hf_repo_id="me/cache", hf_num_shards=2, hf_revision="b", hf_is_private_repo=True
    )
    CacheActivationsRunner(cfg).run()
    assert pushed == [("me/cache", N_ROWS, {"num_shards": 2, "private": True, "revision": "b"})]
    (file,) = files
    assert file["path_in_repo"] == "cache_activations_runner_cfg.json"
    assert (file["repo_id"], file["repo_type"], file["revision"]) == ("me/cache", "dataset", "b")
    uploaded = file["path_or_fileobj"].decode()
    assert uploaded.startswith('{\n  "dataset_path"')
    assert CacheActivationsRunnerConfig(**json.loads(uploaded)) == cfg


def test_a_failed_push_leaves_the_whole_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests
    from huggingface_hub.errors import HfHubHTTPError

    response = requests.Response()
    response.status_code = 500

    def push_to_hub(*_: Any, **__: Any) -> None:
        raise HfHubHTTPError("no", response=response)

    monkeypatch.setattr(Dataset, "push_to_hub", push_to_hub)
    with pytest.raises(ConnectionError, match="answered 500; try again later.*Nothing is lost"):
        CacheActivationsRunner(make_cfg(tmp_path, hf_repo_id="me/cache")).run()
    assert len(load_from_disk(str(tmp_path / "cache"))) == N_ROWS


# -- stopping and going on -------------------------------------------------------------------------


class Stopped(Exception):
    pass


def run_until_shard(runner: CacheActivationsRunner, index: int) -> None:
    """Run until a shard would be begun, then fail there as if the process had died."""

    def new_shard(folder: Path, features: Any) -> Any:
        if folder.name == f"shard_{index:05d}":
            raise Stopped
        return original(folder, features)

    original = cache_activations_runner.new_shard
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(cache_activations_runner, "new_shard", new_shard)
        runner.run()


def assert_same_as_uninterrupted(folder: Path, cfg: CacheActivationsRunnerConfig) -> None:
    uninterrupted = folder / "uninterrupted"
    if not uninterrupted.exists():
        fields = {**vars(cfg), "new_cached_activations_path": str(uninterrupted)}
        CacheActivationsRunner(CacheActivationsRunnerConfig(**fields)).run()
    names = [file.name for file in sorted(uninterrupted.iterdir())]
    cache = Path(str(cfg.new_cached_activations_path))
    assert [file.name for file in sorted(cache.iterdir())] == names
    for name in names:
        if name != "state.json":  # holds a fingerprint
            assert (cache / name).read_bytes() == (uninterrupted / name).read_bytes(), name
    assert len(load_from_disk(str(cache))) == len(load_from_disk(str(uninterrupted)))


def test_a_run_goes_on_with_the_shards_that_are_there(tmp_path: Path, model: Any) -> None:
    cfg = make_cfg(tmp_path, shuffle=True)
    run_until_shard(CacheActivationsRunner(cfg), 2)
    # what changes no row may differ
    cfg.hf_num_shards, cfg.streaming = 3, True
    forward_passes = []
    runner = CacheActivationsRunner(cfg)
    handle = model.embed.register_forward_hook(lambda *_: forward_passes.append(1))
    try:
        runner.run()
    finally:
        handle.remove()
    assert len(forward_passes) == 2 + 2  # one shard of two batches, and the checks
    assert_same_as_uninterrupted(tmp_path, cfg)


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 7), ("dtype", "float16"), ("hook_name", MLP), ("shuffle", True)]
)
def test_another_config_is_refused_with_what_differs(
    tmp_path: Path, field: str, value: Any
) -> None:
    cfg = make_cfg(tmp_path)
    run_until_shard(CacheActivationsRunner(cfg), 1)
    before = sorted((tmp_path / "cache").rglob("*"))
    old = getattr(cfg, field)
    setattr(cfg, field, value)
    with pytest.raises(
        FileExistsError, match=f"is not empty.*{field} was {old!r} and is now {value!r}"
    ):
        CacheActivationsRunner(cfg).run()
    assert sorted((tmp_path / "cache").rglob("*")) == before


def test_other_data_under_the_same_name_are_refused(tmp_path: Path) -> None:
    cfg = make_cfg(tmp_path)
    run_until_shard(CacheActivationsRunner(cfg), 1)
    other = Dataset.from_dict({"tokens": token_rows(seed=1).tolist()})
    with pytest.raises(FileExistsError, match="is not empty.*other tokens"):
        CacheActivationsRunner(cfg, other).run()


def test_a_shard_that_was_changed_is_noticed(tmp_path: Path) -> None:
    import shutil

    cfg = make_cfg(tmp_path)
    runner = CacheActivationsRunner(cfg)
    run_until_shard(runner, 1)
    shard = tmp_path / "cache/.tmp_shards/shard_00000"
    shutil.rmtree(shard)
    runner._create_shard(torch.zeros(CONTEXT, 1, D_IN)).save_to_disk(str(shard))
    with pytest.raises(ValueError, match="has 1 rows where 8 belong"):
        CacheActivationsRunner(cfg).run()


def test_two_processes_do_not_write_one_cache(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    cfg = make_cfg(tmp_path)
    with cache_folder.open_cache_folder(tmp_path / "cache", {"a": 1}, CONTEXT):
        with pytest.raises(BlockingIOError, match="Another process is writing"):
            CacheActivationsRunner(cfg).run()


def in_child_process(work: Any) -> Any:
    """The result of `work()` in a forked process, or the signal (negative) that ended it."""
    import multiprocessing

    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that can be forked")
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def send_result() -> None:
        sender.send(work())

    process = context.Process(target=send_result)
    process.start()
    process.join(60)
    assert not process.is_alive()
    return receiver.recv() if process.exitcode == 0 else process.exitcode
