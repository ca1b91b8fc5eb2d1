"""Which activations come out, from which model, at which positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn

from sae_lens.activations.activation_source import EpochEnd
from sae_lens.activations.model_adapters import model_device
from sae_lens.activations.store import ActivationsStore
from sae_lens.training.activations_store import _filter_buffer_acts, permute_together
from tests.activations.fakes import HOOK, TokenEcho, make_store, numbered_rows, tokens_of
from tests.helpers import make_sae, tiny_model


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def rows() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    return Dataset.from_dict(
        {"tokens": torch.randint(0, 32, (20, 5), generator=generator).tolist()}
    )


def reference(model: Any, tokens: torch.Tensor, hook: str) -> torch.Tensor:
    return model.run_with_cache(tokens)[1][hook]


class TestHooks:
    @pytest.mark.parametrize(
        ("hook", "d_in"),
        [
            ("blocks.1.hook_resid_pre", 16),
            ("blocks.0.hook_resid_post", 16),
            ("blocks.1.hook_mlp_out", 16),
            ("blocks.0.mlp.hook_post", 64),
            ("blocks.1.attn.hook_z", 16),
            ("blocks.0.attn.hook_q", 16),
            ("hook_embed", 16),
            ("ln_final.hook_normalized", 16),
        ],
    )
    def test_they_equal_the_cache_of_the_whole_model(
        self, model: Any, rows: Dataset, hook: str, d_in: int
    ) -> None:
        store = make_store(model, rows, hook_name=hook, hook_layer=1, d_in=d_in)
        tokens = store.get_batch_tokens(3)
        got = store.get_activations(tokens)
        want = reference(model, tokens, hook).reshape(3, 5, 1, d_in)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
        store.fused_forward = False  # then to the last bit
        assert torch.equal(store.get_activations(tokens), want)

    def test_one_head(self, model: Any, rows: Dataset) -> None:
        hook = "blocks.1.attn.hook_z"
        store = make_store(model, rows, hook_name=hook, hook_layer=1, hook_head_index=1, d_in=8)
        tokens = store.get_batch_tokens(3)
        got = store.get_activations(tokens)
        want = reference(model, tokens, hook)[:, :, 1]
        torch.testing.assert_close(got[:, :, 0], want, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("positions", [(1, 4), (None, -1), (0, 5, 2), (None,), None])
    def test_positions(self, model: Any, rows: Dataset, positions: Any) -> None:
        store = make_store(model, rows, d_in=16, seqpos_slice=positions)
        tokens = store.get_batch_tokens(3)
        kept = slice(*(positions or (None,)))
        want = reference(model, tokens, HOOK)[:, kept]
        assert torch.equal(store.get_activations(tokens)[:, :, 0], want)
        assert store.get_buffer(2).shape == (2 * 2 * want.shape[1], 1, 16)

    def test_the_model_stops_at_the_hook_and_no_hook_stays(self, model: Any, rows: Dataset) -> None:
        ran: list[str] = []
        handle = model.hook_dict["blocks.1.hook_resid_pre"].register_forward_hook(
            lambda *_: ran.append("later")
        )
        try:
            store = make_store(model, rows, d_in=16)
            store.get_activations(store.get_batch_tokens(1))
        finally:
            handle.remove()
        assert ran == []
        assert not any(point._forward_hooks for point in model.hook_dict.values())

    def test_hooks_of_the_user_act_before_the_activations_are_taken(
        self, model: Any, rows: Dataset
    ) -> None:
        store = make_store(model, rows, d_in=16)
        tokens = store.get_batch_tokens(1)
        with model.hooks(fwd_hooks=[(HOOK, lambda acts, hook: acts * 0 + 7)]):
            assert torch.all(store.get_activations(tokens) == 7)

    def test_no_hook_stays_when_the_model_fails(self, model: Any, rows: Dataset) -> None:
        store = make_store(model, rows, d_in=16)
        with pytest.raises(IndexError):
            store.get_activations(torch.full((1, 5), 99))
        assert not any(point._forward_hooks for point in model.hook_dict.values())

    def test_model_kwargs_reach_the_forward_pass(self, model: Any, rows: Dataset) -> None:
        tokens = torch.randint(0, 32, (2, 5))
        mask = torch.ones(2, 5, dtype=torch.long)
        mask[:, 1] = 0
        hook = "blocks.1.hook_resid_pre"
        store = make_store(
            model, rows, hook_name=hook, d_in=16, model_kwargs={"attention_mask": mask}
        )
        want = model.run_with_cache(tokens, attention_mask=mask)[1][hook]
        assert torch.equal(store.get_activations(tokens)[:, :, 0], want)
        assert not torch.equal(want, reference(model, tokens, hook))

    def test_arguments_of_run_with_cache_go_to_run_with_cache(
        self, model: Any, rows: Dataset
    ) -> None:
        store = make_store(model, rows, d_in=16, model_kwargs={"pos_slice": slice(0, 2)})
        tokens = store.get_batch_tokens(1)
        assert torch.equal(
            store.get_activations(tokens)[:, :, 0], reference(model, tokens, HOOK)[:, :2]
        )

    def test_a_model_with_its_own_run_with_cache_is_asked(self) -> None:
        store = make_store(hook_layer=3, model_kwargs={"extra": 1})
        store.get_activations(store.get_batch_tokens())
        assert store.model.calls == [
            {"names_filter": [HOOK], "stop_at_layer": 4, "prepend_bos": False, "extra": 1}
        ]

    def test_autocast(self, model: Any, rows: Dataset) -> None:
        hook = "blocks.0.hook_mlp_out"
        store = make_store(model, rows, hook_name=hook, d_in=16, autocast_lm=True)
        tokens = store.get_batch_tokens(2)
        got = store.get_activations(tokens)[:, :, 0]
        want = reference(model, tokens, hook)
        assert got.dtype == torch.bfloat16
        assert torch.allclose(got.float(), want, atol=0.05, rtol=0.05)
        assert store.get_buffer(1).dtype == torch.float32

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float64])
    def test_the_buffer_has_the_dtype_of_the_store(
        self, model: Any, rows: Dataset, dtype: Any
    ) -> None:
        store = make_store(model, rows, d_in=16, dtype=dtype)
        assert str(store.get_buffer(2).dtype).endswith(str(dtype).removeprefix("torch."))
        assert store.next_batch().dtype == store.dtype


class TestGetBuffer:
    def test_rows_come_by_prompt_then_position(self) -> None:
        buffer = make_store().get_buffer(3, shuffle=False)
        assert buffer.shape == (30, 1, 4)
        assert tokens_of(buffer) == list(range(30))

    def test_shuffling_permutes_the_same_rows(self) -> None:
        tokens = tokens_of(make_store().get_buffer(3))
        assert tokens != list(range(30))
        assert sorted(tokens) == list(range(30))

    def test_shuffling_is_a_function_of_the_seed_and_the_place(self) -> None:
        store, other = make_store(seed=1), make_store(seed=1)
        first = tokens_of(store.get_buffer(3))
        assert tokens_of(other.get_buffer(3)) == first
        assert [t - 30 for t in tokens_of(store.get_buffer(3))] != first

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_tokens_stay_with_their_rows(self, shuffle: bool) -> None:
        pair = make_store(seqpos_slice=(2, None)).get_buffer_with_tokens(3, shuffle=shuffle)
        assert pair.token_ids.tolist() == tokens_of(pair.activations)

    def test_it_goes_on_from_the_start_unless_told_to_stop(self) -> None:
        store = make_store(dataset=numbered_rows(5))
        assert tokens_of(store.get_buffer(3, shuffle=False)) == [*range(25), *range(5)]

    def test_stopping_hands_over_what_was_read(self) -> None:
        store = make_store(dataset=numbered_rows(5))
        with pytest.raises(StopIteration) as end:
            store.get_buffer(3, raise_on_epoch_end=True)
        assert isinstance(end.value, EpochEnd)
        assert end.value.partial is not None
        assert tokens_of(end.value.partial) == list(range(20))
        # The fifth row did not fill a batch and comes first in the next one.
        assert tokens_of(store.get_buffer(1, shuffle=False)) == [*range(20, 25), *range(5)]

    def test_filtered_batches_have_no_excluded_tokens(self) -> None:
        excluded = torch.tensor([0, 3])
        batch = make_store(exclude_special_tokens=excluded).get_filtered_llm_batch()
        assert batch.shape == (8, 4)
        assert batch[:, 0].tolist() == [1, 2, 4, 5, 6, 7, 8, 9]
        assert make_store().get_filtered_llm_batch().shape == (10, 4)


class TestFromSAE:
    def test_everything_comes_from_the_sae(self, model: Any, rows: Dataset) -> None:
        sae = make_sae(context_size=4, hook_name="blocks.1.hook_resid_pre", hook_layer=1)
        with pytest.warns(RuntimeWarning, match="last 1 of each row are discarded"):
            store = ActivationsStore.from_sae(
                model, sae, dataset=rows, streaming=False, train_batch_size_tokens=16
            )
        assert (store.context_size, store.d_in, store.hook_layer) == (4, 16, 1)
        assert (store.hook_name, store.total_training_tokens) == (sae.cfg.hook_name, 10**9)
        assert store.get_buffer(1).shape == (32, 1, 16)

    def test_a_context_size_written_into_the_metadata_is_seen(
        self, model: Any, rows: Dataset
    ) -> None:
        sae = make_sae()
        sae.cfg.metadata.context_size = 5
        assert ActivationsStore.from_sae(model, sae, dataset=rows).context_size == 5

    def test_special_tokens_to_exclude_are_those_of_the_sae(self, rows: Dataset) -> None:
        sae = make_sae(context_size=5)
        sae.cfg.exclude_special_tokens = [3]
        store = ActivationsStore.from_sae(TokenEcho(16), sae, dataset=rows)
        assert store.exclude_special_tokens is not None
        assert store.exclude_special_tokens.tolist() == [3]

    def test_one_text_per_row(self) -> None:
        texts = Dataset.from_dict({"text": ["w0 w1 w2", "w3", "w4 w5 w6 w7 w8", "w9 w1 w2 w3"]})
        with pytest.warns(UserWarning, match="not tokenized"):
            store = ActivationsStore.from_sae(
                TokenEcho(16),
                make_sae(),
                context_size=4,
                dataset=texts,
                disable_concat_sequences=True,
                dataset_trust_remote_code=True,
            )
        assert store.get_batch_tokens(3).tolist() == [[0, 2, 3, 4], [0, 6, 7, 8], [0, 11, 3, 4]]
        assert store.dataset_trust_remote_code is True

    @pytest.mark.parametrize("missing", ["context_size", "dataset"])
    def test_what_neither_side_knows_is_asked_for(self, missing: str, rows: Dataset) -> None:
        cfg = SimpleNamespace(d_in=4, dtype="float32", hook_name=HOOK)
        known = {"context_size": 5, "dataset": rows, missing: None}
        with pytest.raises(ValueError, match=f"which {missing} to use"):
            ActivationsStore.from_sae(TokenEcho(), SimpleNamespace(cfg=cfg), **known)


class TestTokens:
    def test_texts_are_packed_with_a_bos_between_them(self) -> None:
        texts = Dataset.from_dict({"text": ["w0 w1", "w2 w3 w4 w5"]})
        with pytest.warns(UserWarning, match="not tokenized"):
            store = make_store(dataset=texts, context_size=4, prepend_bos=True)
        assert store.get_batch_tokens(1).tolist() == [[0, 2, 3, 0]]
        assert store.get_batch_tokens(1).tolist() == [[0, 4, 5, 6]]

    @pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
    def test_without_bos_texts_follow_each_other(self) -> None:
        texts = Dataset.from_dict({"problem": ["w0 w1", "w2 w3 w4 w5"]})
        store = make_store(dataset=texts, context_size=3)
        assert store.get_batch_tokens(2).tolist() == [[2, 3, 4], [5, 6, 7]]
        assert next(store._iterate_raw_dataset_tokens()).tolist() == [2, 3]

    def test_rows_are_counted_once_the_next_one_is_asked_for(self) -> None:
        store = make_store()
        store.get_batch_tokens(4)
        assert store.n_dataset_processed == 3
        assert len(list(store._iterate_tokenized_sequences())) == 30

    def test_the_column_is_the_first_of_the_known_ones(self) -> None:
        both = Dataset.from_dict({"text": ["w1"], "input_ids": [[1, 2, 3, 4, 5]]})
        both = concatenate_datasets([both, both])
        store = make_store(dataset=both)
        assert (store.tokens_column, store.is_dataset_tokenized) == ("input_ids", True)

    def test_the_dataset_of_the_caller_keeps_its_format(self) -> None:
        dataset = numbered_rows()
        store = make_store(dataset=dataset)
        assert dataset.format["type"] is None
        assert store.dataset.format["type"] == "torch"

    def test_the_end_of_the_data(self) -> None:
        store = make_store(dataset=numbered_rows(3))
        store.get_batch_tokens(2)
        with pytest.raises(StopIteration):
            store.get_batch_tokens(2, raise_at_epoch_end=True)
        assert store.get_batch_tokens(2).tolist() == [[10, 11, 12, 13, 14], [0, 1, 2, 3, 4]]

    def test_resetting_and_shuffling_act_at_once(self) -> None:
        store = make_store()
        first = store.get_batch_tokens(4)
        store.reset_input_dataset()
        assert torch.equal(store.get_batch_tokens(4), first)
        store.shuffle_input_dataset(seed=42)
        shuffled = store.get_batch_tokens(30)
        assert not torch.equal(shuffled[:4], first)
        assert sorted(shuffled.flatten().tolist()) == list(range(150))
        assert store.iterable_dataset is not None

    def test_shuffling_a_stream_uses_the_window(self) -> None:
        store = make_store(dataset=numbered_rows().to_iterable_dataset(num_shards=2))
        store.shuffle_input_dataset(seed=1, buffer_size=20)
        rows = store.get_batch_tokens(30)
        assert sorted(rows.flatten().tolist()) == list(range(150))
        assert rows[:, 0].tolist() != sorted(rows[:, 0].tolist())

    def test_a_changed_context_size_holds_for_what_was_not_read_yet(self) -> None:
        store = make_store()
        store.context_size = 3
        assert store.get_batch_tokens(1).tolist() == [[0, 1, 2]]


class TestModelDevice:
    def test_the_embedding_comes_first_then_the_config_then_the_parameters(self) -> None:
        embedding = SimpleNamespace(W_E=torch.zeros(1), cfg=SimpleNamespace(device="meta"))
        assert model_device(embedding) == torch.device("cpu")
        assert model_device(SimpleNamespace(cfg=SimpleNamespace(device="meta"))).type == "meta"
        assert model_device(nn.Linear(1, 1, device="meta")).type == "meta"


def test_permuting_together_keeps_rows_together() -> None:
    a, b = permute_together([torch.arange(50), torch.arange(50) * 2])
    assert torch.equal(b, a * 2)
    assert not torch.equal(a, torch.arange(50))


def test_filtering_needs_both_tokens_and_exclusions() -> None:
    acts = torch.randn(3, 1, 2)
    ids = torch.tensor([4, 5, 6])
    assert torch.equal(_filter_buffer_acts((acts, ids), torch.tensor([5])), acts[[0, 2]])
    assert _filter_buffer_acts((acts, None), torch.tensor([5])) is acts
    assert _filter_buffer_acts((acts, ids), None) is acts
