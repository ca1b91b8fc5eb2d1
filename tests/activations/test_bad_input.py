"""What cannot work is refused with what was given, what is allowed, and what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lens.activations.model_loading import HookedProxyLM
from sae_lens.activations.store import ActivationsStore
from tests.activations.fakes import HOOK, TokenEcho, make_store, numbered_rows
from tests.helpers import tiny_model


def rows(n_rows: int = 20, context: int = 5, highest: int = 31) -> Dataset:
    return Dataset.from_dict({"tokens": [[highest] * context] * n_rows})


def runner_config(**fields: Any) -> SimpleNamespace:
    values = {
        "streaming": False,
        "hook_name": HOOK,
        "hook_layer": 0,
        "hook_head_index": None,
        "context_size": 5,
        "d_in": 16,
        "n_batches_in_buffer": 8,
        "store_batch_size_prompts": 2,
        "train_batch_size_tokens": 16,
        "prepend_bos": False,
        "normalize_activations": "none",
        "dtype": "float32",
        "model_kwargs": {},
        "autocast_lm": False,
        "dataset_trust_remote_code": None,
        "seqpos_slice": (None,),
        "dataset_path": "",
        "cached_activations_path": None,
        "use_cached_activations": False,
        "training_tokens": 10,
        "act_store_device": "cpu",
        "exclude_special_tokens": False,
        "seed": 7,
    }
    return SimpleNamespace(**{**values, **fields})


class TestWidth:
    @pytest.mark.parametrize("hook", ["blocks.0.hook_resid_pre", "blocks.1.mlp.hook_post"])
    def test_a_wrong_width_is_named_before_training(self, hook: str) -> None:
        width = 16 if "resid" in hook else 64
        store = make_store(tiny_model(), rows(), hook_name=hook, hook_layer=1, d_in=10)
        message = (
            rf"expanded size of the tensor \(10\) must match the existing size \({width}\).*"
            rf"'{hook}'.*Set d_in={width}"
        )
        for call in (store.check_model, store.next_batch, lambda: store.get_buffer(1)):
            with pytest.raises(RuntimeError, match=message):
                call()
        assert store._held_rows == []

    @pytest.mark.parametrize(
        ("hook", "head", "words"),
        [
            ("blocks.1.hook_resid_pre", 0, "has no heads"),
            ("blocks.1.attn.hook_z", 2, "has 2 heads"),
        ],
    )
    def test_a_head_that_is_not_there_is_named(self, hook: str, head: int, words: str) -> None:
        store = make_store(
            tiny_model(), rows(), hook_name=hook, hook_layer=1, hook_head_index=head, d_in=8
        )
        with pytest.raises(ValueError, match=f"hook_head_index is {head}, but '{hook}' {words}"):
            store.check_model()

    def test_checking_uses_up_no_data(self) -> None:
        store = make_store(tiny_model(), rows(), d_in=16)
        store.check_model()
        assert store.state_dict() == {"n_dataset_processed": torch.tensor(0)}


class TestModel:
    @pytest.mark.parametrize(
        ("wrong", "near"),
        [
            ("blocks.0.hook_resid_per", "blocks.0.hook_resid_pre"),
            ("blocks.7.hook_resid_pre", "blocks.1.hook_resid_pre"),
            ("blocks.1.mlp_out", "blocks.1.hook_mlp_out"),
        ],
    )
    def test_an_unknown_hook_is_refused_with_near_ones(self, wrong: str, near: str) -> None:
        message = f"no hook '{wrong}'.*Did you mean .*'{near}'"
        with pytest.raises(ValueError, match=message):
            ActivationsStore.from_config(tiny_model(), runner_config(hook_name=wrong), rows())
        store = make_store(tiny_model(), rows(), hook_name=wrong, d_in=16)
        with pytest.raises(ValueError, match=message):
            store.next_batch()

    def test_a_hook_that_is_switched_off_is_named(self) -> None:
        store = make_store(tiny_model(), rows(), hook_name="blocks.0.hook_mlp_in", d_in=16)
        with pytest.raises(ValueError, match="hook_mlp_in' is in the model but did not run"):
            store.next_batch()

    def test_a_fake_without_the_hook_is_named_too(self) -> None:
        class Deaf(TokenEcho):
            def run_with_cache(self, tokens: torch.Tensor, **kwargs: Any) -> Any:
                return None, {}

        with pytest.raises(ValueError, match="did not run"):
            make_store(Deaf()).next_batch()

    def test_a_context_longer_than_the_models_is_refused(self) -> None:
        cfg = runner_config(context_size=17)
        message = "context_size is 17, but the model takes at most 16 tokens"
        with pytest.raises(ValueError, match=message):
            ActivationsStore.from_config(tiny_model(), cfg, rows(context=17))
        store = make_store(tiny_model(), rows(context=17), context_size=17, d_in=16)
        with pytest.raises(ValueError, match=message):
            store.next_batch()

    @pytest.mark.parametrize("wrong", [32, -1])
    def test_ids_beyond_the_vocabulary_are_refused(self, wrong: int) -> None:
        store = make_store(tiny_model(), rows(highest=wrong), d_in=16)
        with pytest.raises(ValueError, match=f"token id {wrong}.*vocabulary ends at 31"):
            store.next_batch()

    def test_a_wrapped_model_knows_its_limits_too(self) -> None:
        gpt2 = GPT2LMHeadModel(
            GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        )
        model = HookedProxyLM(gpt2, None)
        with pytest.raises(ValueError, match="token id 32"):
            make_store(model, rows(highest=32), hook_name="transformer.h.0").get_batch_tokens()
        with pytest.raises(ValueError, match="at most 16 tokens"):
            make_store(
                model, rows(context=17), context_size=17, hook_name="transformer.h.0"
            ).check_model()
        with pytest.raises(ValueError, match=r"no hook 'transformer.h.3'.*'transformer.h.0'"):
            make_store(model, rows(), hook_name="transformer.h.3").check_model()


class TestDataset:
    @pytest.mark.parametrize(
        ("dataset", "message"),
        [
            (Dataset.from_dict({"words": ["a"]}), r"columns \['words'\].*'tokens' or 'input_ids'"),
            (Dataset.from_dict({"tokens": []}), "dataset is empty"),
            ([], "dataset is empty"),
            (
                DatasetDict({"train": numbered_rows()}),
                r"splits \(\['train'\]\).*dataset\['train'\]",
            ),
            (numbered_rows(context_size=4), "have 4 tokens.*context_size=5.*Lower"),
        ],
    )
    def test_unusable_data_are_refused(self, dataset: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_store(dataset=dataset)

    def test_four_columns_are_named(self) -> None:
        with pytest.raises(ValueError) as error:
            make_store(dataset=[{"x": 1}])
        assert all(name in str(error.value) for name in ("tokens", "input_ids", "text", "problem"))

    @pytest.mark.filterwarnings("ignore:Dataset is not tokenized")
    def test_texts_too_short_for_one_row_are_refused(self) -> None:
        texts = Dataset.from_dict({"text": ["w1 w2", "w3"]})
        for store in (make_store(dataset=texts), make_store(dataset=texts)):
            with pytest.raises(ValueError, match="no row of context_size=5 tokens"):
                store.get_batch_tokens(1)
        with pytest.raises(ValueError, match="no activations at all"):
            make_store(dataset=texts).next_batch()

    def test_rows_longer_than_the_context_are_announced(self) -> None:
        with pytest.warns(RuntimeWarning, match="have 7 tokens.*last 2 of each row"):
            store = make_store(dataset=numbered_rows(context_size=7))
        assert store.get_batch_tokens(2).tolist() == [[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]]

    def test_short_rows_among_others_are_skipped_with_one_warning(self) -> None:
        ragged = [{"tokens": [i] * n} for i, n in enumerate([5, 3, 5, 2, 6])]
        store = make_store(dataset=ragged)
        with pytest.warns(RuntimeWarning, match=r"fewer tokens \(3\)") as caught:
            tokens = store.get_batch_tokens(3)
        assert len(caught) == 1
        assert tokens[:, 0].tolist() == [0, 2, 4]

    def test_fewer_tokens_than_the_budget_are_announced(self) -> None:
        with pytest.warns(UserWarning, match="150 tokens, fewer than the 151"):
            make_store(total_training_tokens=151)
        make_store(total_training_tokens=150)
        make_store(dataset=[{"tokens": [1] * 5}], total_training_tokens=151)

    def test_texts_are_announced_and_not_counted(self) -> None:
        with pytest.warns(UserWarning, match="not tokenized") as caught:
            make_store(dataset=Dataset.from_dict({"text": ["w1"]}), total_training_tokens=10**6)
        assert len(caught) == 1

    def test_no_dataset_at_all(self) -> None:
        with pytest.raises(ValueError, match="no dataset to train on"):
            ActivationsStore.from_config(TokenEcho(), runner_config())

    def test_an_empty_override_is_not_ignored(self) -> None:
        with pytest.raises(ValueError, match="dataset is empty"):
            ActivationsStore.from_config(TokenEcho(), runner_config(dataset_path="a/b"), [])

    def test_a_text_that_becomes_two_rows_is_refused(self) -> None:
        model = TokenEcho()
        model.to_tokens = lambda text, **flags: torch.zeros(2, 3, dtype=torch.long)  # pyright: ignore
        with pytest.warns(UserWarning, match="not tokenized"):
            store = make_store(model, Dataset.from_dict({"text": ["w1"]}))
        with pytest.raises(ValueError, match=r"shape \(2, 3\) for one text"):
            store.get_batch_tokens()


class TestConfig:
    def test_every_field_arrives(self, tmp_path: Path) -> None:
        cfg = runner_config(
            exclude_special_tokens=[4, 5],
            seqpos_slice=(1, 3),
            autocast_lm=True,
            activations_mixing_fraction=0.25,
            n_batches_for_norm_estimate=3,
        )
        store = ActivationsStore.from_config(tiny_model(), cfg, rows())
        for name in ("hook_name", "d_in", "seed", "seqpos_slice", "autocast_lm", "prepend_bos"):
            assert getattr(store, name) == getattr(cfg, name)
        assert store.exclude_special_tokens is not None
        assert store.exclude_special_tokens.tolist() == [4, 5]
        assert (store.activations_mixing_fraction, store.n_batches_for_norm_estimate) == (0.25, 3)
        assert (store.total_training_tokens, store.half_buffer_size) == (10, 4)
        cfg.cached_activations_path = str(tmp_path)
        assert (
            ActivationsStore.from_config(tiny_model(), cfg, rows()).cached_activation_dataset
            is None
        )

    def test_all_special_tokens(self) -> None:
        cfg = runner_config(exclude_special_tokens=True, d_in=4)
        store = ActivationsStore.from_config(TokenEcho(), cfg, numbered_rows())
        assert store.exclude_special_tokens is not None
        assert store.exclude_special_tokens.tolist() == [0, 1]
        model = TokenEcho()
        model.tokenizer = None
        with pytest.raises(ValueError, match="needs a model with a tokenizer"):
            ActivationsStore.from_config(model, cfg, numbered_rows())

    def test_an_unknown_dtype(self) -> None:
        with pytest.raises(ValueError, match=r"dtype 'int7'.*float32"):
            make_store(dtype="int7")
