"""What many tests share: the list of architectures, tiny SAEs, and a tiny language model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_lens.registry import get_sae_training_class
from sae_lens.saes import SAE, SAEConfig, TrainingSAE, TrainingSAEConfig

GOLDENS = Path(__file__).parent / "goldens"

# The architectures of flat configs. Tests that hold for every SAE run over these lists.
ARCHITECTURES = ("standard", "gated", "jumprelu", "topk")
NORMALIZATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")

D_IN = 16
D_SAE = 48

_FLAT: dict[str, Any] = {
    "d_in": D_IN,
    "d_sae": D_SAE,
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "context_size": 8,
    "model_name": "tiny",
    "hook_name": "blocks.0.hook_resid_pre",
    "hook_layer": 0,
    "hook_head_index": None,
    "prepend_bos": True,
    "dataset_path": "tiny/text",
    "dataset_trust_remote_code": False,
    "normalize_activations": "none",
    "dtype": "float32",
    "device": "cpu",
    "sae_lens_training_version": None,
}


def flat_config_dict(architecture: str = "standard", **fields: Any) -> dict[str, Any]:
    """The dict of a flat config, with `fields` in place of its values."""
    topk = architecture == "topk"
    activation = {
        "activation_fn_str": "topk" if topk else "relu",
        "activation_fn_kwargs": {"k": 5} if topk else {},
    }
    return {**_FLAT, **activation, "architecture": architecture, **fields}


def make_sae(architecture: str = "standard", seed: int = 0, **fields: Any) -> SAE:
    """A tiny inference SAE whose every parameter is random and matters."""
    torch.manual_seed(seed)
    sae = SAE(SAEConfig.from_dict(flat_config_dict(architecture, **fields)))
    randomize(sae)
    return sae.eval()


def make_training_sae(architecture: str = "standard", seed: int = 0, **fields: Any) -> TrainingSAE:
    """A tiny training SAE (v5 form) whose every parameter is random and matters."""
    torch.manual_seed(seed)
    fields = {"normalize_sae_decoder": False, "jumprelu_bandwidth": 0.2, **fields}
    sae = TrainingSAE(TrainingSAEConfig.from_dict(flat_config_dict(architecture, **fields)))
    randomize(sae)
    return sae


@torch.no_grad()
def randomize(sae: SAE) -> None:
    """Give biases, thresholds and exponents values other than their constant initial ones."""
    for name, parameter in sae.named_parameters():
        if name in ("b_enc", "b_dec", "b_gate", "b_mag", "r_mag"):
            parameter.copy_(torch.randn_like(parameter) * 0.2)
        elif name == "threshold":
            parameter.copy_(torch.rand_like(parameter) * 0.3)
        elif name == "log_threshold":
            parameter.copy_((torch.rand_like(parameter) * 0.3 + 0.05).log())
        elif name == "finetuning_scaling_factor":
            parameter.copy_(torch.rand_like(parameter) + 0.5)


def activations(n: int = 6, d_in: int = D_IN, seed: int = 1, **kwargs: Any) -> Tensor:
    """Random activations [n, d_in]."""
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), **kwargs)


def golden_cases(kind: str) -> list[Path]:
    """The JSON files of all reference results of one kind."""
    return [path for path in sorted(GOLDENS.glob("v*/*.json")) if _kind(path) == kind]


def load_golden(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of one reference result."""
    return json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))


def tensors_under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def assert_close(got: Tensor, want: Tensor, atol: float = 1e-5, rtol: float = 1e-4) -> None:
    """Shapes and values agree."""
    torch.testing.assert_close(got.detach().float(), want.float(), atol=atol, rtol=rtol)


def _kind(path: Path) -> str | None:
    return json.loads(path.read_text()).get("kind")


class WordTokenizer:
    """Words to ids by position in a fixed vocabulary; id 0 begins a text."""

    bos_token_id = 0
    eos_token_id = 1
    pad_token_id = 1

    def __init__(self, n_words: int = 30):
        self.vocabulary = ["<bos>", "<eos>"] + [f"w{i}" for i in range(n_words)]

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text; an unknown word is an error."""
        return [self.vocabulary.index(word) for word in text.split()]

    def texts(self, lengths: list[int], seed: int = 0) -> Iterator[str]:
        """Random texts of the given numbers of words."""
        generator = torch.Generator().manual_seed(seed)
        for length in lengths:
            ids = torch.randint(2, len(self.vocabulary), (length,), generator=generator)
            yield " ".join(self.vocabulary[i] for i in ids.tolist())


def tiny_model(seed: int = 0, n_layers: int = 2, d_model: int = D_IN, n_ctx: int = 16) -> Any:
    """A random HookedTransformer of 32 tokens, in evaluation mode."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        d_head=d_model // 2,
        n_heads=2,
        n_ctx=n_ctx,
        d_vocab=32,
        act_fn="relu",
        seed=seed,
        device="cpu",
    )
    return HookedTransformer(config).eval()


def several_hooks_configs(n_hooks: int = 2, d_in: int = 8, **fields: Any) -> dict[str, Any]:
    """Training configs of all SAEs over several hooks, by architecture.

    A training batch has 2 * n_hooks * d_in columns for those that predict, else n_hooks * d_in.
    """
    reads = [f"blocks.{layer}.ln2.hook_normalized" for layer in range(n_hooks)]
    writes = [f"blocks.{layer}.hook_mlp_out" for layer in range(n_hooks)]
    configs: dict[str, Any] = {}
    for kind in ("crosscoder", "cross_layer_transcoder"):
        hooks: dict[str, Any] = {"hook_names": reads}
        if kind == "cross_layer_transcoder":
            hooks["hook_names_out"] = writes
        for form in ("", "jumprelu_", "topk_", "batchtopk_"):
            own: dict[str, Any] = {"k": 3} if "topk" in form else {}
            if form == "jumprelu_":
                own = {"jumprelu_bandwidth": 0.3}
            config_class = get_sae_training_class(form + kind).config_class
            configs[form + kind] = config_class(
                **{"d_in": d_in, "d_sae": D_SAE, **hooks, **own, **fields}
            )
    return configs
