from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Array2D, Dataset, Features, IterableDataset
from safetensors.torch import load_file

from sae_lens.config.resuming import MAY_DIFFER
from sae_lens.sae_training_runner import InterruptedException, SAETrainingRunner
from sae_lens.saes import TrainingSAE
from sae_lens.training.resume_files import DamagedCheckpointError
from sae_lens.training.trainer import SAETrainer
from tests.helpers import ARCHITECTURES, tiny_model
from tests.runs import (
    BATCH,
    LATER_FORM,
    assert_same_weights,
    losses_by_step,
    make_runner,
    run_config,
    token_rows,
    train,
)

CASES = [
    *((architecture, "none") for architecture in (*ARCHITECTURES, LATER_FORM)),
    ("standard", "expected_average_only_in"),
    ("jumprelu", "layer_norm"),
    (LATER_FORM, "expected_average_only_in"),
    ("topk", "whitening"),
    (LATER_FORM, "whitening"),
]


pytestmark = pytest.mark.filterwarnings("ignore:All samples in the training dataset")


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


def checkpoints(folder: Path) -> list[str]:
    return sorted(
        (p.name for p in (folder / "run").iterdir() if p.is_dir()),
        key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0),
    )


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# -- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "normalization"), CASES)
def test_a_resumed_run_gives_the_same_losses_and_weights(
    architecture: str, normalization: str, tmp_path: Path, model: Any
) -> None:
    """Checkpoints along an uninterrupted run are gone on from, one after the other."""
    fields = {"normalize_activations": normalization, "n_checkpoints": 5}
    whole = train(run_config(tmp_path, architecture, **fields), model)
    *along_the_way, final = checkpoints(tmp_path)
    assert len(along_the_way) == 4
    steps = losses_by_step(tmp_path / "log.jsonl")
    assert list(steps) == list(range(30))
    for number, name in enumerate(along_the_way):
        torch.rand(number)  # what this process did before must not matter
        elsewhere = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "run" / name, elsewhere / "run" / name)
        cfg = run_config(
            elsewhere,
            architecture,
            resume_from_checkpoint=str(elsewhere / "run" / name),
            **fields,
        )
        assert_same_weights(train(cfg, model), whole)
        again = losses_by_step(elsewhere / "log.jsonl")
        assert list(again) == list(range(int(name) // BATCH, 30))
        assert all(again[step] == steps[step] for step in again)
        files = load_file(elsewhere / "run" / final / "sae_weights.safetensors")
        for key, tensor in load_file(tmp_path / "run" / final / "sae_weights.safetensors").items():
            assert torch.equal(files[key], tensor), key


@pytest.mark.parametrize("n_steps", [0, 1, 2, 17, 28])
def test_an_interrupted_run_goes_on(n_steps: int, tmp_path: Path, model: Any) -> None:
    whole = train(run_config(tmp_path / "whole", "topk"), model)

    real = SAETrainer._train_step

    def stop(self: SAETrainer, **arguments: Any) -> Any:
        if self.n_training_steps == n_steps:
            self.request_stop(InterruptedException("now"))
        return real(self, **arguments)

    cfg = run_config(tmp_path, "topk")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InterruptedException):
        patch.setattr(SAETrainer, "_train_step", stop)
        train(cfg, model)
    assert checkpoints(tmp_path) == [str((n_steps + 1) * BATCH)]
    assert (tmp_path / "run" / "latest").read_text().strip() == str((n_steps + 1) * BATCH)
    assert_same_weights(train(run_config(tmp_path, "topk", resume_from_checkpoint="latest"), model),
                        whole)  # fmt: skip
    assert losses_by_step(tmp_path / "log.jsonl") == losses_by_step(tmp_path / "whole/log.jsonl")


def test_finetuning_goes_on_within_its_phase(tmp_path: Path, model: Any) -> None:
    fields = {"finetuning_tokens": BATCH * 10, "finetuning_method": "scale", "n_checkpoints": 8}
    whole = train(run_config(tmp_path, **fields), model)
    within = [name for name in checkpoints(tmp_path)[:-1] if int(name) > BATCH * 31]
    before = checkpoints(tmp_path)[2]
    for name in (before, within[-1]):
        cfg = run_config(tmp_path, resume_from_checkpoint=str(tmp_path / "run" / name), **fields)
        assert_same_weights(train(cfg, model), whole)
    with pytest.raises(ValueError, match="fine-tuning has begun"):
        train(run_config(tmp_path, resume_from_checkpoint=str(tmp_path / "run" / within[-1]),
                         **{**fields, "training_tokens": BATCH * 32}), model)  # fmt: skip


def test_a_streaming_dataset_goes_on_where_it_was(tmp_path: Path, model: Any) -> None:
    def dataset() -> IterableDataset:
        return Dataset.from_dict({"tokens": token_rows()}).to_iterable_dataset(num_shards=4)

    whole = train(run_config(tmp_path, n_checkpoints=4), model, dataset())
    for name in checkpoints(tmp_path)[:-1]:
        cfg = run_config(tmp_path, n_checkpoints=4,
                         resume_from_checkpoint=str(tmp_path / "run" / name))  # fmt: skip
        assert_same_weights(train(cfg, model, dataset()), whole)


def test_batches_that_were_made_ahead_are_not_lost(tmp_path: Path, model: Any) -> None:
    whole = train(run_config(tmp_path, n_checkpoints=4, prefetch_batches=3), model)
    for name in checkpoints(tmp_path)[:-1]:
        cfg = run_config(tmp_path, n_checkpoints=4, prefetch_batches=2,
                         resume_from_checkpoint=str(tmp_path / "run" / name))  # fmt: skip
        assert_same_weights(train(cfg, model), whole)


def test_a_cache_of_activations_goes_on_at_its_row(tmp_path: Path, model: Any) -> None:
    hook = "blocks.1.hook_resid_pre"
    tokens = torch.tensor(token_rows())
    rows = model.run_with_cache(tokens, names_filter=hook)[1][hook].numpy()
    features = Features({hook: Array2D((16, 16), "float32")})
    Dataset.from_dict({hook: rows}, features=features).save_to_disk(tmp_path / "cache")
    fields = {"use_cached_activations": True, "cached_activations_path": str(tmp_path / "cache"),
              "n_checkpoints": 4, "log_to_jsonl": None}  # fmt: skip
    whole = train(run_config(tmp_path, **fields), model)
    for name in checkpoints(tmp_path)[:-1]:
        cfg = run_config(tmp_path, resume_from_checkpoint=str(tmp_path / "run" / name), **fields)
        assert_same_weights(train(cfg, model), whole)


def test_the_choice_between_dense_and_sparse_goes_on(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hysteresis depends on what earlier steps measured."""
    from sae_lens.kernels import dispatch
    from sae_lens.saes import sparse_training

    monkeypatch.setattr(sparse_training, "is_worth_choosing", lambda *_: True)
    monkeypatch.setattr(dispatch, "_SPARSE_BELOW", 0.45)
    monkeypatch.setattr(dispatch, "_DENSE_ABOVE", 0.6)
    fields = {"noise_scale": 0.0, "n_checkpoints": 6, "l1_coefficient": 0.1}
    runner = make_runner(run_config(tmp_path, **fields), model)
    whole = runner.run().state_dict()
    assert runner.sae._sparse_choice.density is not None
    for name in checkpoints(tmp_path)[:-1]:
        cfg = run_config(tmp_path, resume_from_checkpoint=str(tmp_path / "run" / name), **fields)
        resumed = make_runner(cfg, model)
        assert_same_weights(dict(resumed.run().state_dict()), dict(whole))
        assert vars(resumed.sae._sparse_choice) == vars(runner.sae._sparse_choice)


def test_the_thresholds_of_a_jumprelu_are_kept_as_they_are_trained(
    tmp_path: Path, model: Any
) -> None:
    """The weights' file holds exp(log_threshold), whose logarithm is not the same number."""
    train(run_config(tmp_path, "jumprelu", n_checkpoints=2), model)
    folder = tmp_path / "run" / checkpoints(tmp_path)[0]
    kept = load_file(folder / "resume_state.safetensors")
    assert {"sae.W_enc", "sae.W_dec", "sae.log_threshold"} <= kept.keys()
    exported = load_file(folder / "sae_weights.safetensors")["threshold"]
    assert torch.equal(kept["sae.log_threshold"].exp(), exported)


def test_nothing_is_pickled_and_every_file_has_a_checksum(tmp_path: Path, model: Any) -> None:
    train(run_config(tmp_path, n_checkpoints=2), model)
    for name in checkpoints(tmp_path):
        folder = tmp_path / "run" / name
        assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
        index = json.loads((folder / "resume_state.json").read_text())
        others = {path.name for path in folder.iterdir()} - {"resume_state.json"}
        assert set(index["sha256"]) == others


# -- longer, and with other settings --------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["none", "expected_average_only_in", "whitening"])
def test_a_finished_run_can_be_made_longer(normalization: str, tmp_path: Path, model: Any) -> None:
    fields = {"normalize_activations": normalization, "lr_decay_steps": 0}
    longer = {**fields, "training_tokens": BATCH * 40}
    whole = train(run_config(tmp_path / "whole", **longer), model)
    train(run_config(tmp_path, **fields), model)
    got = train(run_config(tmp_path, resume_from_checkpoint="latest", **longer), model)
    assert_same_weights(got, whole)
    assert set(checkpoints(tmp_path)) == {f"final_{BATCH * 30}", f"final_{BATCH * 40}"}


def test_a_schedule_follows_the_new_length(tmp_path: Path, model: Any) -> None:
    fields = {"n_checkpoints": 2, "lr_scheduler_name": "cosineannealing"}
    train(run_config(tmp_path, **fields), model)
    name = checkpoints(tmp_path)[0]
    longer = {**fields, "training_tokens": BATCH * 60}
    train(run_config(tmp_path, resume_from_checkpoint=str(tmp_path / "run" / name), **longer),
          model)  # fmt: skip
    train(run_config(tmp_path / "whole", **longer), model)
    rate = "details/current_learning_rate"
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (resumed,) = [i for i, line in enumerate(steps) if line.get("resumed")]
    got = {line["step"]: line[rate] for line in steps[resumed:] if rate in line}
    want = losses_by_step(tmp_path / "whole" / "log.jsonl")
    assert max(got) == 59
    for step, value in got.items():
        assert value == pytest.approx(want[step][rate], rel=1e-9, abs=1e-15), step
    with pytest.raises(ValueError, match="trained on .* already"):
        train(run_config(tmp_path, resume_from_checkpoint=str(tmp_path / "run" / name),
                         **{**fields, "training_tokens": BATCH * 12}), model)  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [{"lr": 3e-3}, {"seed": 7}, {"train_batch_size_tokens": 64, "context_size": 8},
     {"normalize_activations": "layer_norm"}],
    ids=lambda changed: "+".join(changed),
)  # fmt: skip
def test_a_config_that_changes_results_is_refused_by_name(
    changed: dict[str, Any], tmp_path: Path, model: Any
) -> None:
    train(run_config(tmp_path, training_tokens=BATCH * 4, lr_decay_steps=0), model)
    cfg = run_config(tmp_path, resume_from_checkpoint="latest", training_tokens=BATCH * 4,
                     lr_decay_steps=0, **changed)  # fmt: skip
    with pytest.raises(ValueError, match="cannot go on") as refused:
        make_runner(cfg, model)
    assert all(f"{name} is {value!r}" in str(refused.value) for name, value in changed.items())
    assert "lr_decay_steps" not in str(refused.value)


def test_other_logs_and_paths_are_fine(tmp_path: Path, model: Any) -> None:
    whole = train(run_config(tmp_path, n_checkpoints=2), model)
    (tmp_path / "run").rename(tmp_path / "moved")
    cfg = run_config(
        tmp_path / "other", resume_from_checkpoint=str(tmp_path / "moved" / checkpoints_of(
            tmp_path / "moved")[0]), log_to_jsonl=None, output_path=str(tmp_path / "out"),
        wandb_log_frequency=3, keep_last=1,
    )  # fmt: skip
    assert_same_weights(train(cfg, model), whole)
    assert not (tmp_path / "other").exists()  # it goes on in the folder of its run
    assert (tmp_path / "out" / "cfg.json").exists()


def checkpoints_of(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.is_dir())


# -- what "latest" means --------------------------------------------------------------------------


def test_latest_without_any_checkpoint_begins_the_run(tmp_path: Path, model: Any) -> None:
    cfg = run_config(tmp_path, resume_from_checkpoint="latest", training_tokens=BATCH * 8)
    with pytest.warns(UserWarning, match="the run begins at the start"):
        runner = make_runner(cfg, model)
    assert runner.cfg.checkpoint_path == str(tmp_path / "run")
    unnamed = run_config(tmp_path / "new", resume_from_checkpoint="latest", wandb_id=None)
    with pytest.warns(UserWarning, match="the run begins at the start"):
        runner = make_runner(unnamed, model)
    assert Path(runner.cfg.checkpoint_path).parent == tmp_path / "new"


def test_latest_finds_the_run_with_the_same_settings(tmp_path: Path, model: Any) -> None:
    """Without an id, runs have folders of random names."""
    fields = {"wandb_id": None, "training_tokens": BATCH * 8, "lr_decay_steps": 0}
    first = run_config(tmp_path, **fields)
    train(first, model)
    train(run_config(tmp_path, lr=5e-3, **fields), model)
    again = make_runner(run_config(tmp_path, resume_from_checkpoint="latest", **fields), model)
    assert again.cfg.checkpoint_path == first.checkpoint_path
    with pytest.raises(ValueError, match="lr is 0.07"):
        make_runner(run_config(tmp_path, resume_from_checkpoint="latest", lr=0.07, **fields), model)


def test_a_place_without_a_checkpoint_is_an_error(tmp_path: Path, model: Any) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=place.name):
            make_runner(run_config(tmp_path, resume_from_checkpoint=str(place)), model)


# -- damaged checkpoints --------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip_a_byte, _truncate, Path.unlink])
@pytest.mark.parametrize(
    "file", ["sae_weights.safetensors", "activations_store_state.safetensors",
             "resume_state.safetensors", "resume_state.json", "cfg.json"],
)  # fmt: skip
def test_a_damaged_file_is_named_and_latest_goes_back_to_a_sound_one(
    file: str, damage: Any, finished_run: Path, tmp_path: Path, model: Any
) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    *_, sound, newest = checkpoints(tmp_path)
    path = tmp_path / "run" / newest / file
    damage(path)
    if not (file == "resume_state.json" and damage is Path.unlink):
        with pytest.raises(DamagedCheckpointError, match=file):
            cfg = run_config(tmp_path, resume_from_checkpoint=str(path.parent), n_checkpoints=2)
            make_runner(cfg, model)
    cfg = run_config(tmp_path, resume_from_checkpoint="latest", n_checkpoints=2)
    with pytest.warns(UserWarning, match=newest):
        runner = make_runner(cfg, model)
    assert runner._resumed is not None
    assert runner._resumed.folder.name == sound


def test_when_all_are_damaged_each_is_named(finished_run: Path, tmp_path: Path, model: Any) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    for name in checkpoints(tmp_path):
        flip_a_byte(tmp_path / "run" / name / "sae_weights.safetensors")
    cfg = run_config(tmp_path, resume_from_checkpoint="latest", n_checkpoints=2)
    with pytest.raises(DamagedCheckpointError) as damaged:
        make_runner(cfg, model)
    assert all(f"{name}/sae_weights" in str(damaged.value) for name in checkpoints(tmp_path))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(run_config(folder, n_checkpoints=2), model)
    return folder


def test_another_sae_is_refused(finished_run: Path, tmp_path: Path, model: Any) -> None:
    shutil.copytree(finished_run / "run", tmp_path / "run")
    cfg = run_config(tmp_path, resume_from_checkpoint="latest", n_checkpoints=2)
    other = TrainingSAE(run_config(tmp_path / "x", d_sae=16).training_sae_config())
    runner = SAETrainingRunner(
        cfg, Dataset.from_dict({"tokens": token_rows(60)}), model, override_sae=other
    )
    with pytest.raises(ValueError, match="same SAE"):
        runner.run()


def test_the_documentation_lists_what_may_differ(repository: Path) -> None:
    text = (repository / "docs" / "resumption.md").read_text()
    text = text[text.index("### What may differ") : text.index("## Checkpoints")]
    fields = {name for name in MAY_DIFFER if not name.startswith("_")}
    assert {name for name in fields if f"`{name}`" not in text} == set()
