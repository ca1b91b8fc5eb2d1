from __future__ import annotations

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens import HookedTransformer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sae_lens.activations import model_loading
from sae_lens.constants import EMBEDDED_MODEL_NAME
from sae_lens.errors import InvalidArgumentError
from sae_lens.load_model import HookedProxyLM, _extract_logits_from_output, load_model
from tests.activations.fakes import make_store


def make_tokenizer(adds_bos: bool) -> Any:
    words = ["<bos>", *(f"w{i}" for i in range(31))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>")


def make_proxy(adds_bos: bool = False) -> HookedProxyLM:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32,
        n_positions=16,
        n_embd=16,
        n_layer=3,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return HookedProxyLM(GPT2LMHeadModel(config).eval(), make_tokenizer(adds_bos))


TOKENS = torch.randint(0, 32, (3, 5), generator=torch.Generator().manual_seed(0))
FLAGS: dict[str, Any] = {
    "prepend_bos": False,
    "padding_side": None,
    "move_to_device": False,
    "truncate": False,
}


class TestProxy:
    def test_every_named_module_has_a_hook_under_its_own_name(self) -> None:
        proxy = make_proxy()
        names = [name for name, _ in proxy.model.named_modules() if name]
        assert list(proxy.hook_dict) == names
        assert all(proxy.hook_dict[name].name == name for name in names)
        assert proxy.mod_dict.keys() == proxy.hook_dict.keys()

    @pytest.mark.parametrize("hook", ["transformer.h.1", "transformer.h.0.attn", "transformer.wte"])
    def test_hooks_see_and_change_outputs(self, hook: str) -> None:
        proxy = make_proxy()
        seen = {}
        module = proxy.model.get_submodule(hook)
        handle = module.register_forward_hook(
            lambda *a: seen.update(out=a[2][0] if isinstance(a[2], tuple) else a[2])
        )
        logits, cache = proxy.run_with_cache(TOKENS, names_filter=[hook])
        assert torch.equal(cache[hook], seen["out"])
        handle.remove()
        changed = proxy.run_with_hooks(TOKENS, fwd_hooks=[(hook, lambda acts, hook: acts + 1)])
        assert not torch.allclose(changed, logits)
        assert torch.equal(proxy(TOKENS), logits)

    def test_logits_and_loss(self) -> None:
        proxy = make_proxy()
        reference = proxy.model(TOKENS, labels=TOKENS)
        logits, loss = proxy(TOKENS, return_type="both")
        assert torch.equal(logits, reference.logits)
        assert loss.item() == pytest.approx(reference.loss.item(), abs=1e-5)
        per_token = proxy(TOKENS, return_type="both", loss_per_token=True)[1]
        assert per_token.shape == (3, 4)
        assert per_token.mean().item() == pytest.approx(loss.item(), abs=1e-5)
        assert torch.equal(proxy(TOKENS, stop_at_layer=1, prepend_bos=False), logits)
        with pytest.raises(NotImplementedError, match="'loss'"):
            proxy(TOKENS, return_type="loss")

    def test_arguments_that_the_model_knows_are_passed_on(self) -> None:
        proxy = make_proxy()
        mask = torch.ones_like(TOKENS)
        mask[:, :2] = 0
        masked = proxy(TOKENS, attention_mask=mask)
        assert torch.equal(masked, proxy.model(TOKENS, attention_mask=mask).logits)
        assert not torch.allclose(masked, proxy(TOKENS))

    @pytest.mark.parametrize("adds_bos", [True, False])
    def test_texts_become_tokens_without_an_automatic_bos(self, adds_bos: bool) -> None:
        tokens = make_proxy(adds_bos).to_tokens("w0 w5 w2", **FLAGS)
        assert tokens.tolist() == [[1, 6, 3]]

    @pytest.mark.parametrize(
        "change",
        [
            {"prepend_bos": True},
            {"padding_side": "left"},
            {"move_to_device": True},
            {"truncate": True},
        ],
    )
    def test_other_flags_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(InvalidArgumentError, match="supports only prepend_bos=False"):
            make_proxy().to_tokens("w0", **{**FLAGS, **change})
        with pytest.raises(AssertionError):
            make_proxy().to_tokens("w0")

    def test_a_copy_has_hooks_of_its_own(self) -> None:
        proxy = make_proxy()
        other = copy.deepcopy(proxy)
        other.hook_dict["transformer.h.0"].add_hook(lambda tensor, hook: tensor * 0)
        assert not torch.allclose(other(TOKENS), proxy(TOKENS))

    def test_setting_up_again_does_not_hook_twice(self) -> None:
        proxy = make_proxy()
        proxy.setup()
        block = proxy.model.get_submodule("transformer.h.0")
        assert len(block._forward_hooks) == 1

    def test_a_store_reads_its_activations_and_stops_there(self) -> None:
        proxy = make_proxy(adds_bos=True)
        ran = []
        proxy.hook_dict["transformer.h.2"].add_hook(lambda tensor, hook: ran.append(1))
        texts = Dataset.from_dict({"text": ["w1 w2 w3 w4 w5 w6 w7"] * 40})
        with pytest.warns(UserWarning, match="not tokenized"):
            store = make_store(proxy, texts, hook_name="transformer.h.1", d_in=16, prepend_bos=True)
        tokens = store.get_batch_tokens(2)
        assert tokens.tolist() == [[0, 2, 3, 4, 5], [0, 6, 7, 8, 0]]
        got = store.get_activations(tokens)
        assert ran == []
        want = proxy.run_with_cache(tokens)[1]["transformer.h.1"]
        assert torch.allclose(got[:, :, 0], want, atol=1e-6)
        assert store.next_batch().shape == (16, 1, 16)


class TestLogits:
    def test_where_they_are_found(self) -> None:
        logits = torch.zeros(1)
        assert _extract_logits_from_output(logits) is logits
        assert _extract_logits_from_output((logits, None)) is logits
        assert _extract_logits_from_output({"logits": logits}) is logits
        assert _extract_logits_from_output(SimpleNamespace(logits=logits)) is logits
        with pytest.raises(ValueError, match="Cannot find logits in an output of type str"):
            _extract_logits_from_output("nothing")


class TestLoadModel:
    def test_an_unknown_class_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"'HookedNothing'.*HookedTransformer, HookedMamba"):
            load_model("HookedNothing", "gpt2")

    def test_the_embedded_model_needs_no_network(self) -> None:
        model = load_model(
            "HookedTransformer",
            EMBEDDED_MODEL_NAME,
            model_from_pretrained_kwargs={"center_writing_weights": False},
        )
        assert isinstance(model, HookedTransformer)
        assert model.W_E.device.type == "cpu"

    def test_transformers_come_without_processing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, Any] = {}
        monkeypatch.setattr(
            HookedTransformer, "from_pretrained_no_processing", lambda **kwargs: seen.update(kwargs)
        )
        load_model("HookedTransformer", "gpt2", "cpu", {"center_unembed": True})
        assert seen == {"model_name": "gpt2", "device": "cpu", "center_unembed": True}
        load_model("HookedTransformer", "gpt2", "cpu", {"n_devices": 2})
        assert seen == {**seen, "device": "cuda", "n_devices": 2}

    def test_mamba_is_an_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mamba_lens", None)
        with pytest.raises(ValueError, match=r"pip install sae-lens\[mamba\]"):
            load_model("HookedMamba", "state-spaces/mamba-130m")
        fake = SimpleNamespace(
            HookedMamba=SimpleNamespace(from_pretrained=lambda name, **k: (name, k))
        )
        monkeypatch.setitem(sys.modules, "mamba_lens", fake)
        assert load_model("HookedMamba", "some/mamba", "cpu", {"x": 1}) == (
            "some/mamba",
            {"device": "cpu", "x": 1},
        )

    def test_any_causal_model_from_a_folder(self, tmp_path: Path) -> None:
        proxy = make_proxy()
        proxy.model.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
        proxy.tokenizer.save_pretrained(tmp_path)  # pyright: ignore[reportOptionalMemberAccess]
        loaded = load_model("AutoModelForCausalLM", str(tmp_path), device="cpu")
        assert isinstance(loaded, model_loading.HookedProxyLM)
        assert torch.allclose(loaded(TOKENS), proxy(TOKENS))
        assert loaded.to_tokens("w3", **FLAGS).tolist() == [[4]]


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_activations() -> None:
    from tests.helpers import tiny_model

    model = tiny_model()
    compiled: Any = torch.compile(model, backend="eager")
    rows = [{"tokens": row} for row in torch.randint(0, 32, (8, 5)).tolist()]
    hook = "blocks.0.hook_resid_post"
    store = make_store(compiled, rows, hook_name=hook, d_in=16)
    tokens = store.get_batch_tokens(2)
    for _ in range(3):
        got = store.get_activations(tokens)[:, :, 0]
        assert torch.allclose(got, model.run_with_cache(tokens)[1][hook], atol=1e-6)
