"""Activations that training leaves out, by token and by length, are left out by evaluations too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from sae_lens.activations.store import ActivationsStore
from sae_lens.analysis.metrics import ReconstructionAccumulator
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.sae_training_runner import SAETrainingRunner
from sae_lens.saes import SAE, TrainingSAE
from sae_lens.training.sources import IteratorSource, SourceSettings, StoreSource
from tests.helpers import D_IN, activations, assert_close, tiny_model
from tests.test_normalised_runs import IN as MLP_IN
from tests.test_normalised_runs import OUT as MLP_OUT
from tests.test_normalised_runs import config

RESID = "blocks.1.hook_resid_pre"
SINK, SPECIAL = 5, 9


@pytest.fixture(scope="module")
def model() -> Any:
    """One whose activations at one token are far longer than at the others."""
    model = tiny_model()
    with torch.no_grad():
        model.embed.W_E[SINK] *= 400
    return model


@pytest.fixture(scope="module")
def rows() -> Dataset:
    tokens = torch.randint(2, 32, (40, 8), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"tokens": tokens.tolist()})


def run(
    folder: Path, model: Any, rows: Dataset, architecture: str, form: str, **fields: Any
) -> Any:
    cfg = config(
        folder, architecture, form, fields.pop("kind", "none"),
        features={"norm_filter": {"multiple": 4.0}}, exclude_special_tokens=[SPECIAL], **fields,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runner = SAETrainingRunner(cfg, override_dataset=rows, override_model=model)
        runner.run()
    return runner


@pytest.mark.parametrize("kind", ["none", "expected_average_only_in", "whitening"])
def test_training_sees_no_overlong_activation(
    kind: str, model: Any, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    factors: list[float | None] = []
    real = StoreSource.without_overlong

    def watch(self: StoreSource, batch: Tensor) -> Tensor:
        kept = real(self, batch)
        seen.append(kept / (self.norm_scaling_factor or 1.0))
        factors.append(self.norm_scaling_factor)
        return kept

    monkeypatch.setattr(StoreSource, "without_overlong", watch)
    runner = run(tmp_path, model, rows, "standard", "v5", kind=kind, hook_name=RESID)
    _, cache = model.run_with_cache(torch.tensor(rows["tokens"]), names_filter=RESID)
    norms = cache[RESID].norm(dim=-1)
    median = runner.sae.cfg.metadata.norm_filter_median
    # the special token is left out before the median is taken
    counts = torch.tensor(rows["tokens"]) != SPECIAL
    assert median == pytest.approx(norms[counts].median().item(), rel=0.1)
    limit = 4.0 * median
    assert (norms > limit).sum() == (torch.tensor(rows["tokens"]) == SINK).sum()
    assert seen and all(len(batch) for batch in seen)
    assert max(batch.norm(dim=-1).max().item() for batch in seen) <= limit
    assert any(len(batch) < 32 for batch in seen)
    if kind == "expected_average_only_in":
        # the factor, too, is that of what is kept
        counts &= norms <= limit
        want = D_IN**0.5 / norms[counts].mean().item()
        assert factors[-1] == pytest.approx(want, rel=0.05)


@pytest.mark.parametrize(
    ("architecture", "form"),
    [("standard", "v5"), ("topk", "v6"), ("transcoder", "v6"), ("batchtopk_skip_transcoder", "v6")],
)
def test_evaluations_repeat_the_filters(
    architecture: str, form: str, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    is_transcoder = "transcoder" in architecture
    entry, exit_ = (MLP_IN, MLP_OUT) if is_transcoder else (RESID, RESID)
    extra = {} if is_transcoder else {"hook_name": RESID}
    if is_transcoder:
        # what the transcoder reads is normalised, so its length is that of its gain
        with torch.no_grad():
            model.blocks[0].ln2.hook_normalized.add_perma_hook(_longer_at_some_positions)
    try:
        run(tmp_path, model, rows, architecture, form, **extra)
        sae = SAE.load_from_disk(tmp_path / "out").eval()
        store = _store(model, sae, rows)
        found = run_evals(sae, store, model, get_eval_everything_config(4, 2, 2)).metrics
        by_hand = _by_hand(sae, model, torch.tensor(rows[:8]["tokens"]), entry, exit_)
        unfiltered = SAE.load_from_disk(tmp_path / "out").eval()
        del unfiltered.cfg.extra_metadata["norm_filter_median"]
        store = _store(model, sae, rows)
        others = run_evals(unfiltered, store, model, get_eval_everything_config(4, 2, 2)).metrics
    finally:
        model.reset_hooks(including_permanent=True)
    flat = {name: value for group in found.values() for name, value in group.items()}
    for name, value in by_hand.items():
        assert flat[name] == pytest.approx(value, rel=1e-3), name
    # without the filter the numbers are others, so the test can fail
    assert others["reconstruction_quality"]["mse"] > 1.5 * flat["mse"]


def _longer_at_some_positions(acts: Tensor, hook: Any) -> Tensor:
    return acts * torch.where(torch.arange(acts.shape[1]) == 3, 50.0, 1.0)[:, None]


def _store(model: Any, sae: SAE, rows: Dataset) -> ActivationsStore:
    return ActivationsStore.from_sae(
        model, sae, dataset=rows, context_size=8, streaming=False, store_batch_size_prompts=4
    )


def _by_hand(sae: SAE, model: Any, tokens: Tensor, entry: str, exit_: str) -> dict[str, float]:
    """Metrics of activations that were filtered beforehand."""
    _, cache = model.run_with_cache(tokens, names_filter=[entry, exit_])
    x, y = cache[entry], cache[exit_]
    facts = sae.cfg.metadata
    kept = x.norm(dim=-1) <= facts.norm_filter_multiple * facts.norm_filter_median
    kept &= tokens != SPECIAL
    assert 0.5 < kept.float().mean() < 0.99
    with torch.no_grad():
        features, out = sae.encode(x[kept]), sae(x[kept])
    whole = ReconstructionAccumulator()
    first = int(kept[:4].sum())  # one of the figures is a mean over batches
    whole.update(y[kept][:first], out[:first])
    whole.update(y[kept][first:], out[first:])

    def put(acts: Tensor, hook: Any) -> Tensor:
        acts = acts.clone()
        acts[kept] = out
        return acts

    loss = model.run_with_hooks(
        tokens, return_type="loss", loss_per_token=True, fwd_hooks=[(exit_, put)]
    )
    return {
        **whole.quality(), **whole.shrinkage(),
        "l0": (features > 0).float().sum(-1).mean().item(),
        "ce_loss_with_sae": loss[kept[:, :-1]].mean().item(),
    }  # fmt: skip


@pytest.mark.parametrize(("architecture", "form"), [("gated", "v5"), ("jumprelu", "v6")])
def test_both_filters_are_in_every_file(
    architecture: str, form: str, model: Any, rows: Dataset, tmp_path: Path
) -> None:
    run(tmp_path, model, rows, architecture, form, hook_name=RESID)
    folders = [path.parent for path in tmp_path.rglob("sae_weights.safetensors")]
    assert len(folders) == 3
    medians = set()
    for folder in folders:
        metadata = json.loads((folder / "cfg.json").read_text())["metadata"]
        medians.add(metadata["norm_filter_median"])
        for kind in (SAE, TrainingSAE) if folder.name != "out" else (SAE,):
            facts = kind.load_from_disk(folder).cfg.metadata
            assert facts.exclude_special_tokens == [SPECIAL]
            assert facts.norm_filter_multiple == 4.0
            assert facts.norm_filter_median == metadata["norm_filter_median"]
    assert len(medians) == 1


def test_a_run_with_filters_goes_on_exactly(model: Any, rows: Dataset, tmp_path: Path) -> None:
    whole = run(tmp_path, model, rows, "standard", "v5", hook_name=RESID).sae.state_dict()
    (checkpoint,) = (path for path in (tmp_path / "run").iterdir() if path.name.isdecimal())
    again = run(
        tmp_path, model, rows, "standard", "v5", hook_name=RESID,
        resume_from_checkpoint=str(checkpoint),
    )  # fmt: skip
    for name, tensor in again.sae.state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    facts = again.sae.cfg.metadata
    assert facts.norm_filter_median and facts.norm_filter_multiple == 4.0


def test_batches_of_an_iterator_are_filtered_by_the_first_ones_median() -> None:
    batches = [activations(20, seed=seed) for seed in range(6)]
    batches[4][3] *= 100
    settings = SourceSettings("expected_average_only_in", norm_multiple=5.0, n_batches=2)
    source = IteratorSource(batches, settings)
    source.prepare()
    median = torch.cat(batches[:2]).norm(dim=-1).median().item()
    assert source.norm_median == pytest.approx(median)
    factor = source.norm_scaling_factor
    assert factor is not None
    kept = torch.cat([batches[4][:3], batches[4][4:]])
    assert_close(source.next_batch(), kept * factor)
    again = IteratorSource(batches, settings)
    again.load_state_dict(source.state_dict())
    again.prepare()  # nothing is drawn for what is known
    assert len(again.next_batch()) == 20


def test_batches_of_overlong_activations_alone_are_passed_over() -> None:
    batches = [activations(20), activations(20) * 100, activations(20, seed=7)]
    source = IteratorSource(batches, SourceSettings(norm_multiple=5.0, n_batches=1))
    source.prepare()
    assert torch.equal(source.next_batch(), batches[2])
    with pytest.raises(StopIteration):
        source.next_batch()


def test_activations_of_no_length_have_no_median() -> None:
    source = IteratorSource([torch.zeros(4, D_IN)], SourceSettings(norm_multiple=5.0))
    with pytest.raises(ValueError, match=r"median norm .* is 0\.0"):
        source.prepare()
