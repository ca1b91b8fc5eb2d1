"""Tiny checkpoints in every format, written from the formats' descriptions, with their formulas.

Each function writes the files of one SAE below `root` and says where they are and what the library
that wrote them computes. The formulas are written here anew: nothing of ours is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

D, M = 8, 20  # d_in, d_sae
Function = Callable[[Tensor], Tensor]


@dataclass
class Checkpoint:
    """One synthetic SAE.

    Attributes:
        format_name: the converter's name.
        repo_id: the repository's name, which some formats read.
        path: folder or file of the SAE in it.
        encode: features by the foreign library's formula.
        forward: reconstruction by that formula.
        config: values that the converted config must have.
        overrides: sizes that the format fixes by name, replaced by tiny ones.
        factor: norm factor that the registry has for it.
    """

    format_name: str
    repo_id: str
    path: str
    encode: Function
    forward: Function
    config: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    factor: float | None = None
    x: Tensor = field(default_factory=lambda: normal(6, D, seed=99))


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * scale


def weights(seed: int = 0, d_out: int = D) -> dict[str, Tensor]:
    """Our names and orientations; the formats write them as they do."""
    return {
        "W_enc": normal(D, M, seed=seed + 1),
        "W_dec": normal(M, d_out, seed=seed + 2),
        "b_enc": normal(M, seed=seed + 3, scale=0.3),
        "b_dec": normal(d_out, seed=seed + 4, scale=0.3),
        "threshold": normal(M, seed=seed + 5).abs(),
    }


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_yaml(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(value))


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path))


def write_torch(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def write_npz(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})


def keep_largest(h: Tensor, k: int) -> Tensor:
    order = h.argsort(dim=-1, descending=True)[..., :k]
    kept = torch.zeros_like(h)
    for row in range(h.shape[0]):
        kept[row, order[row]] = torch.relu(h[row, order[row]])
    return kept


def jump(h: Tensor, threshold: Tensor | float) -> Tensor:
    return torch.where(h > threshold, torch.relu(h), torch.zeros_like(h))


def connor_rob_hook_z(root: Path) -> Checkpoint:
    w = weights()
    del w["threshold"]
    name = "gpt2-small_L3_Hcat_z_v9"
    write_torch(root / f"{name}.pt", w)
    config = {"act_size": D, "dict_size": M, "act_name": "blocks.3.attn.hook_z", "layer": 3}
    write_json(root / f"{name}_cfg.json", config)

    def encode(x: Tensor) -> Tensor:
        return torch.relu((x.reshape(-1, D) - w["b_dec"]) @ w["W_enc"] + w["b_enc"])

    return Checkpoint(
        "connor_rob_hook_z",
        "ckkissane/attn-saes",
        f"{name}.pt",
        encode,
        lambda x: (encode(x) @ w["W_dec"] + w["b_dec"]).reshape(-1, 2, D // 2),
        {
            "architecture": "standard",
            "hook_name": "blocks.3.attn.hook_z",
            "hook_layer": 3,
            "model_name": "gpt2-small",
            "context_size": 128,
            "apply_b_dec_to_input": True,
            "dataset_path": "Skylion007/openwebtext",
        },
        x=normal(6, 2, D // 2, seed=99),
    )


def gemma_2(root: Path, embedding: bool = False, kind: str = "res") -> Checkpoint:
    w = weights()
    folder = "embedding/width_4k/average_l0_6" if embedding else "layer_7/width_16k/average_l0_9"
    theirs = {("w_" + n[2:] if n.startswith("W_") and embedding else n): t for n, t in w.items()}
    write_npz(root / folder / "params.npz", theirs)
    scale = math.sqrt(D) if embedding else 1.0

    def encode(x: Tensor) -> Tensor:
        return jump(x.reshape(-1, D) @ (w["W_enc"] / scale) + w["b_enc"], w["threshold"])

    heads = kind == "att"

    def forward(x: Tensor) -> Tensor:
        out = encode(x) @ (w["W_dec"] * scale) + w["b_dec"]
        return out.reshape(-1, 2, D // 2) if heads else out

    hooks = {
        "res": "hook_embed" if embedding else "blocks.7.hook_resid_post",
        "mlp": "blocks.7.hook_mlp_out",
        "att": "blocks.7.attn.hook_z",
    }
    return Checkpoint(
        "gemma_2",
        f"google/gemma-scope-2b-pt-{kind}",
        folder,
        encode,
        forward,
        {
            "architecture": "jumprelu",
            "hook_name": hooks[kind],
            "hook_layer": 0 if embedding else 7,
            "model_name": "gemma-2-2b",
            "apply_b_dec_to_input": False,
            "context_size": 1024,
            "normalize_activations": "none",
        },
        {"d_in": D, "d_sae": M},
        x=normal(6, 2, D // 2, seed=99) if heads else normal(6, D, seed=99),
    )


def gemma_2_embedding(root: Path) -> Checkpoint:
    return gemma_2(root, embedding=True)


def gemma_2_attention(root: Path) -> Checkpoint:
    return gemma_2(root, kind="att")


def gemma_2_transcoder(root: Path) -> Checkpoint:
    w = weights()
    folder = "layer_4/width_16k/average_l0_76"
    theirs = {"wEnc": "W_enc", "W_d": "W_dec", "bEnc": "b_enc", "b_dec": "b_dec"}
    write_npz(
        root / folder / "params.npz",
        {**{name: w[ours] for name, ours in theirs.items()}, "Threshold": w["threshold"]},
    )

    def encode(x: Tensor) -> Tensor:
        return jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])

    return Checkpoint(
        "gemma_2_transcoder",
        "google/gemma-scope-2b-pt-transcoders",
        folder,
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {
            "architecture": "jumprelu_transcoder",
            "hook_name": "blocks.4.ln2.hook_normalized",
            "hook_name_out": "blocks.4.hook_mlp_out",
            "model_name": "gemma-2-2b",
        },
        {"d_in": D, "d_sae": M, "d_out": D},
    )


def gemma_3(root: Path, kind: str = "resid_post", affine: bool = False) -> Checkpoint:
    d_out = 6 if kind.startswith("transcoder") else D
    w = weights(d_out=d_out)
    skip = normal(D, d_out, seed=77)
    folder = f"{kind}/layer_9_width_16k_l0_small" + ("_affine" if affine else "")
    theirs = {n.lower(): t for n, t in w.items()}
    if affine:
        theirs["affine_skip_connection"] = skip
    write_safetensors(root / folder / "params.safetensors", theirs)
    if kind == "mlp_out":
        write_json(
            root / folder / "config.json",
            {
                "architecture": "jump_relu",
                "model_name": "google/gemma-v3-1b-pt",
                "hf_hook_point_in": "model.layers.9.told",
            },
        )

    def encode(x: Tensor) -> Tensor:
        return jump(x.reshape(-1, D) @ w["W_enc"] + w["b_enc"], w["threshold"])

    def forward(x: Tensor) -> Tensor:
        out = encode(x) @ w["W_dec"] + w["b_dec"]
        if affine:
            out = out + x @ skip
        return out.reshape(-1, 2, D // 2) if kind == "attn_out" else out

    transcoder = kind.startswith("transcoder")
    hook = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}
    config: dict[str, Any] = {
        "architecture": "jumprelu",
        "d_in": D,
        "d_sae": M,
        "hook_name": f"blocks.9.{hook.get(kind, 'hook_mlp_in')}",
        "model_name": "google/gemma-3-1b-pt",
        "dataset_path": "monology/pile-uncopyrighted",
    }
    if transcoder:
        config |= {
            "architecture": "jumprelu_skip_transcoder" if affine else "jumprelu_transcoder",
            "d_out": d_out,
            "hook_name_out": "blocks.9.hook_mlp_out",
            "hf_hook_name_out": "model.layers.9.post_feedforward_layernorm.output",
        }
    if kind == "mlp_out":
        config["hf_hook_name"] = "model.layers.9.told"
    return Checkpoint(
        "gemma_3",
        "google/gemma-scope-2-1b-pt",
        folder,
        encode,
        forward,
        config,
        x=normal(6, 2, D // 2, seed=99) if kind == "attn_out" else normal(6, D, seed=99),
    )


def gemma_3_attention(root: Path) -> Checkpoint:
    return gemma_3(root, "attn_out")


def gemma_3_mlp(root: Path) -> Checkpoint:
    return gemma_3(root, "mlp_out")


def gemma_3_transcoder(root: Path) -> Checkpoint:
    return gemma_3(root, "transcoder_all")


def gemma_3_skip_transcoder(root: Path) -> Checkpoint:
    return gemma_3(root, "transcoder_all", affine=True)


def gemma_3_clt(root: Path) -> Checkpoint:
    w = weights()
    decoder = normal(M, 3, D, seed=55)
    theirs = {n.lower(): t for n, t in w.items()}
    theirs["w_dec"] = decoder
    path = "clt/width_16k/layer_2"
    write_safetensors(root / f"{path}.safetensors", theirs)

    def encode(x: Tensor) -> Tensor:
        return jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])

    return Checkpoint(
        "gemma_3",
        "google/gemma-scope-2-1b-pt",
        path,
        encode,
        lambda x: encode(x) @ (decoder[:, 0] + decoder[:, 1] + decoder[:, 2]) + w["b_dec"],
        {"architecture": "jumprelu_transcoder", "d_out": D, "d_sae": M},
    )


def mwhanna_transcoder(root: Path) -> Checkpoint:
    w = weights()
    write_safetensors(
        root / "layer_5.safetensors",
        {"W_enc": w["W_enc"].T, **{n: w[n] for n in ("W_dec", "b_enc", "b_dec")}},
    )
    values = {"d_model": D, "d_feature": M, "batch_size": 4096}
    write_yaml(root / "wanb-config.yaml", {name: {"value": v} for name, v in values.items()})

    def encode(x: Tensor) -> Tensor:
        return torch.relu(x @ w["W_enc"] + w["b_enc"])

    return Checkpoint(
        "mwhanna_transcoder",
        "mwhanna/qwen3-0.6b-transcoders-lowl0",
        "layer_5.safetensors",
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {
            "architecture": "transcoder",
            "d_in": D,
            "d_out": D,
            "d_sae": M,
            "context_size": 4096,
            "model_name": "Qwen/Qwen3-0.6B",
            "hook_name": "blocks.5.mlp.hook_in",
            "hook_name_out": "blocks.5.hook_mlp_out",
            "model_from_pretrained_kwargs": {"fold_ln": False},
        },
    )


def mntss_clt_layer_transcoder(root: Path) -> Checkpoint:
    w = weights()
    decoder = normal(M, 4, D, seed=44)
    write_safetensors(
        root / "W_enc_2.safetensors",
        {"W_enc_2": w["W_enc"].T, "b_enc_2": w["b_enc"], "b_dec_2": w["b_dec"]},
    )
    write_safetensors(root / "W_dec_2.safetensors", {"W_dec_2": decoder})
    write_yaml(
        root / "config.yaml",
        {
            "model_name": "google/gemma-2-2b",
            "feature_input_hook": "hook_resid_mid",
            "feature_output_hook": "hook_mlp_out",
        },
    )

    def encode(x: Tensor) -> Tensor:
        return torch.relu(x @ w["W_enc"] + w["b_enc"])

    return Checkpoint(
        "mntss_clt_layer_transcoder",
        "mntss/clt-gemma-2-2b",
        "2",
        encode,
        lambda x: encode(x) @ sum(decoder[:, i] for i in range(4)) + w["b_dec"],
        {
            "architecture": "transcoder",
            "d_in": D,
            "d_sae": M,
            "hook_name": "blocks.2.hook_resid_mid",
            "hook_name_out": "blocks.2.hook_mlp_out",
            "context_size": None,
        },
    )


def _linear(w: dict[str, Tensor], encoder: str, decoder: str) -> dict[str, Tensor]:
    return {
        f"{encoder}.weight": w["W_enc"].T.contiguous(),
        f"{encoder}.bias": w["b_enc"],
        f"{decoder}.weight": w["W_dec"].T.contiguous(),
        f"{decoder}.bias": w["b_dec"],
    }


def llama_scope(root: Path) -> Checkpoint:
    w = weights()
    folder = "Llama3_1-8B-Base-L3R-8x"
    norm, threshold = 1.7, 0.4
    write_safetensors(
        root / folder / "checkpoints" / "final.safetensors", _linear(w, "encoder", "decoder")
    )
    write_json(
        root / folder / "hyperparams.json",
        {
            "d_model": D,
            "d_sae": M,
            "jump_relu_threshold": threshold,
            "dataset_average_activation_norm": {"in": norm, "out": norm},
            "hook_point_in": "blocks.3.hook_resid_post",
        },
    )
    scale = math.sqrt(D) / norm

    # Inputs are scaled to an average norm of sqrt(d), outputs scaled back. Features stay scaled.
    def encode(x: Tensor) -> Tensor:
        return jump((x * scale) @ w["W_enc"] + w["b_enc"], threshold * scale)

    return Checkpoint(
        "llama_scope",
        "fnlp/Llama3_1-8B-Base-LXR-8x",
        folder,
        encode,
        lambda x: (encode(x) @ w["W_dec"] + w["b_dec"]) / scale,
        {
            "architecture": "jumprelu",
            "d_in": D,
            "d_sae": M,
            "model_name": "meta-llama/Llama-3.1-8B",
            "hook_name": "blocks.3.hook_resid_post",
            "dataset_path": "cerebras/SlimPajama-627B",
        },
        {"dtype": "float32"},
        factor=scale,
    )


def llama_scope_r1_distill(root: Path) -> Checkpoint:
    w = weights()
    folder = "800M-Slimpajama/L4R"
    write_safetensors(
        root / folder / "sae_weights.safetensors",
        {**_linear(w, "encoder", "decoder"), "log_jumprelu_threshold": w["threshold"].log()},
    )
    write_json(
        root / folder / "config.json",
        {"d_model": D, "expansion_factor": M / D, "hook_point_in": "blocks.4.hook_resid_post"},
    )
    scale = 3.25

    def encode(x: Tensor) -> Tensor:
        return jump((x * scale) @ w["W_enc"] + w["b_enc"], w["threshold"])

    return Checkpoint(
        "llama_scope_r1_distill",
        "fnlp/Llama-Scope-R1-Distill",
        folder,
        encode,
        lambda x: (encode(x) @ w["W_dec"] + w["b_dec"]) / scale,
        {"architecture": "jumprelu", "d_sae": M, "hook_layer": 4},
        factor=scale,
    )


def dictionary_learning_1(root: Path, dict_class: str = "AutoEncoder") -> Checkpoint:
    w = weights()
    k, threshold = 4, 0.6
    folder = "resid_post_layer_5/trainer_1"
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": M,
        "layer": 5,
        "lm_name": "google/gemma-2-2b",
        "k": k,
    }
    config: dict[str, Any] = {"trainer": trainer, "buffer": {"ctx_len": 64}}
    linear = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T}
    linear = {name: tensor.contiguous() for name, tensor in linear.items()}
    r_mag, b_mag = normal(M, seed=11, scale=0.3), normal(M, seed=12, scale=0.3)

    def centred(x: Tensor) -> Tensor:
        return (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]

    def gated(x: Tensor) -> Tensor:
        z = (x - w["b_dec"]) @ w["W_enc"]
        return (z + w["b_enc"] > 0).float() * torch.relu(torch.exp(r_mag) * z + b_mag)

    tensors: dict[str, Any]
    if dict_class == "AutoEncoder":
        tensors = {**linear, "encoder.bias": w["b_enc"], "bias": w["b_dec"]}
        encode, architecture = (lambda x: torch.relu(centred(x))), "standard"
    elif dict_class == "AutoEncoderNew":
        del config["buffer"]
        tensors = {**linear, "encoder.bias": w["b_enc"], "decoder.bias": w["b_dec"]}
        encode, architecture = (lambda x: torch.relu(x @ w["W_enc"] + w["b_enc"])), "standard"
    elif dict_class == "GatedAutoEncoder":
        tensors = {
            **linear,
            "decoder_bias": w["b_dec"],
            "gate_bias": w["b_enc"],
            "mag_bias": b_mag,
            "r_mag": r_mag,
        }
        encode, architecture = gated, "gated"
    elif dict_class == "AutoEncoderTopK":
        tensors = {**linear, "encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
        tensors |= {"threshold": torch.tensor(0.3), "k": torch.tensor(k)}
        encode, architecture = (lambda x: keep_largest(centred(x), k)), "topk"
    elif dict_class == "BatchTopKSAE":
        tensors = {**linear, "encoder.bias": w["b_enc"], "b_dec": w["b_dec"]}
        tensors |= {"threshold": torch.tensor(threshold), "k": torch.tensor(k)}
        encode, architecture = (lambda x: jump(torch.relu(centred(x)), threshold)), "jumprelu"
    elif dict_class == "MatryoshkaBatchTopKSAE":
        tensors = {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
        tensors |= {"threshold": torch.tensor(threshold), "group_sizes": torch.tensor([4, 16])}
        encode, architecture = (lambda x: jump(torch.relu(centred(x)), threshold)), "jumprelu"
    else:
        tensors = dict(w)
        encode = lambda x: jump(x @ w["W_enc"] + w["b_enc"], w["threshold"])  # noqa: E731
        architecture = "jumprelu"
    write_torch(root / folder / "ae.pt", tensors)
    write_json(root / folder / "config.json", config)
    return Checkpoint(
        "dictionary_learning_1",
        "canrager/lm_sae",
        folder,
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {
            "architecture": architecture,
            "hook_name": "blocks.5.hook_resid_post",
            "model_name": "gemma-2-2b",
            "context_size": 64 if "buffer" in config else 128,
            "d_in": D,
            "d_sae": M,
        },
    )


def _dictionary_learning(dict_class: str) -> Callable[[Path], Checkpoint]:
    def make(root: Path) -> Checkpoint:
        return dictionary_learning_1(root, dict_class)

    make.__name__ = f"dictionary_learning_1_{dict_class}"
    return make


def deepseek_r1(root: Path) -> Checkpoint:
    w = weights()
    write_torch(root / "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", _linear(w, "encoder", "decoder"))

    def encode(x: Tensor) -> Tensor:
        return torch.relu(x @ w["W_enc"] + w["b_enc"])

    return Checkpoint(
        "deepseek_r1",
        "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
        "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt",
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {"hook_name": "blocks.19.hook_resid_post", "apply_b_dec_to_input": False},
        {"d_in": D, "d_sae": M, "dtype": "float32"},
    )


def qwen_scope(root: Path) -> Checkpoint:
    w = weights()
    write_torch(
        root / "layer6.sae.pt",
        {
            "W_enc": w["W_enc"].T.contiguous(),
            "W_dec": w["W_dec"].T.contiguous(),
            "b_enc": w["b_enc"],
            "b_dec": w["b_dec"],
        },
    )

    def encode(x: Tensor) -> Tensor:
        return keep_largest(x @ w["W_enc"] + w["b_enc"], 5)

    return Checkpoint(
        "qwen_scope",
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5",
        "layer6.sae.pt",
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {
            "architecture": "topk",
            "activation_fn_kwargs": {"k": 5},
            "model_name": "Qwen/Qwen3-1.7B-Base",
            "hf_hook_name": "model.layers.6",
            "dataset_path": None,
        },
        {"d_in": D, "d_sae": M},
    )


def goodfire(root: Path) -> Checkpoint:
    w = weights()
    write_torch(
        root / "Llama-3.1-8B-Instruct-SAE-l19.pth", _linear(w, "encoder_linear", "decoder_linear")
    )

    def encode(x: Tensor) -> Tensor:
        return torch.relu(x @ w["W_enc"] + w["b_enc"])

    return Checkpoint(
        "goodfire",
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        "Llama-3.1-8B-Instruct-SAE-l19.pth",
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {
            "hook_name": "blocks.19.hook_resid_post",
            "model_name": "meta-llama/Llama-3.1-8B-Instruct",
        },
        {"d_in": D, "d_sae": M},
    )


def sparsify(root: Path, transposed: bool = False, transcode: bool = False) -> Checkpoint:
    w = weights()
    folder = "run/layers.3"
    decoder = w["W_dec"].T if transposed else w["W_dec"]
    tensors = {"encoder.weight": w["W_enc"].T, "W_dec": decoder, "b_dec": w["b_dec"]}
    if not transposed:  # and with the bias of the encoder missing
        tensors["encoder.bias"] = w["b_enc"]
    write_safetensors(root / folder / "sae.safetensors", tensors)
    write_json(
        root / folder / "cfg.json",
        {
            "d_in": D,
            "num_latents": 0,
            "expansion_factor": M / D,
            "k": 4,
            "normalize_decoder": True,
            "signed": False,
            "transcode": transcode,
        },
    )
    write_json(
        root / "run" / "config.json",
        {"model": "EleutherAI/pythia-160m", "dataset": "some/text", "ctx_len": 512},
    )
    b_enc = torch.zeros(M) if transposed else w["b_enc"]

    def encode(x: Tensor) -> Tensor:
        x = x if transcode else x - w["b_dec"]
        return keep_largest(torch.relu(x @ w["W_enc"] + b_enc), 4)

    return Checkpoint(
        "sparsify",
        "EleutherAI/sae-pythia-160m",
        folder,
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {
            "architecture": "topk",
            "d_sae": M,
            "apply_b_dec_to_input": not transcode,
            "hook_name": "blocks.3.hook_resid_post",
            "model_name": "EleutherAI/pythia-160m",
            "dataset_path": "some/text",
            "context_size": 512,
        },
        {"dtype": "float32"},
    )


def sparsify_transposed_without_bias(root: Path) -> Checkpoint:
    return sparsify(root, transposed=True)


def sparsify_transcode(root: Path) -> Checkpoint:
    return sparsify(root, transcode=True)


def openai_sparse_autoencoder(root: Path) -> Checkpoint:
    w = weights()
    k = 3
    write_torch(
        root / "resid_post_mlp_v5_32k/autoencoders/7.pt",
        {
            "pre_bias": w["b_dec"],
            "latent_bias": w["b_enc"],
            "encoder.weight": w["W_enc"].T.contiguous(),
            "decoder.weight": w["W_dec"].T.contiguous(),
            "activation": "TopK",
            "activation_state_dict": {"k": k, "postact_fn": "ReLU"},
        },
    )

    def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean(-1, keepdim=True)
        std = (x - mean).std(-1, keepdim=True)
        z = (x - mean) / (std + 1e-5)
        return keep_largest((z - w["b_dec"]) @ w["W_enc"] + w["b_enc"], k), mean, std

    def forward(x: Tensor) -> Tensor:
        features, mean, std = parts(x)
        return (features @ w["W_dec"] + w["b_dec"]) * std + mean

    return Checkpoint(
        "openai_sparse_autoencoder",
        "someone/openai-v5",
        "resid_post_mlp_v5_32k/autoencoders/7.pt",
        lambda x: parts(x)[0],
        forward,
        {
            "architecture": "topk",
            "normalize_activations": "layer_norm",
            "hook_name": "blocks.7.hook_resid_post",
            "d_in": D,
            "d_sae": M,
        },
    )


def openai_tied_relu(root: Path) -> Checkpoint:
    w = weights()
    write_torch(
        root / "resid_delta_mlp/autoencoders/2.pt",
        {
            "pre_bias": w["b_dec"],
            "latent_bias": w["b_enc"],
            "encoder.weight": w["W_enc"].T.contiguous(),
        },
    )

    def encode(x: Tensor) -> Tensor:
        return torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])

    return Checkpoint(
        "openai_sparse_autoencoder",
        "someone/openai-v4",
        "resid_delta_mlp/autoencoders/2.pt",
        encode,
        lambda x: encode(x) @ w["W_enc"].T + w["b_dec"],
        {"architecture": "standard", "hook_name": "blocks.2.hook_mlp_out"},
    )


def e2e_sae(root: Path) -> Checkpoint:
    w = weights()
    tensors = {}
    for layer, factor in ((2, 1.0), (6, 2.0)):
        prefix = f"saes.blocks-{layer}-hook_resid_pre."
        tensors |= {
            f"{prefix}encoder.0.weight": w["W_enc"].T.contiguous(),
            f"{prefix}encoder.0.bias": w["b_enc"] * factor,
            f"{prefix}decoder.weight": w["W_dec"].T.contiguous(),
            f"{prefix}decoder.bias": w["b_dec"],
        }
    write_torch(root / "model.pt", tensors)

    def encode(x: Tensor) -> Tensor:
        return torch.relu(x @ w["W_enc"] + 2.0 * w["b_enc"])

    directions = w["W_dec"] / w["W_dec"].pow(2).sum(-1, keepdim=True).sqrt()
    return Checkpoint(
        "e2e_sae",
        "someone/e2e",
        "model.pt#blocks.6.hook_resid_pre",
        encode,
        lambda x: encode(x) @ directions + w["b_dec"],
        {"hook_name": "blocks.6.hook_resid_pre", "hook_layer": 6, "d_in": D, "d_sae": M},
    )


def sae_lens_flat(root: Path) -> Checkpoint:
    """Our format as 3.x wrote it: old names, boolean normalisation, a factor of ones."""
    w = weights()
    del w["threshold"]
    folder = "blocks.2.hook_resid_pre"
    write_safetensors(
        root / folder / "sae_weights.safetensors", {**w, "scaling_factor": torch.ones(M)}
    )
    write_safetensors(root / folder / "sparsity.safetensors", {"sparsity": torch.full((M,), -2.0)})
    write_json(
        root / folder / "cfg.json",
        {
            "d_in": D,
            "d_sae": M,
            "dtype": "torch.float32",
            "model_name": "gpt2-small",
            "hook_point": "blocks.2.hook_resid_pre",
            "hook_point_layer": 2,
            "hook_point_head_index": None,
            "activation_fn": "relu",
            "context_size": 128,
            "dataset_path": "some/text",
            "normalize_activations": False,
        },
    )

    def encode(x: Tensor) -> Tensor:
        return torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])

    return Checkpoint(
        "sae_lens",
        "someone/gpt2-saes",
        folder,
        encode,
        lambda x: encode(x) @ w["W_dec"] + w["b_dec"],
        {"architecture": "standard", "normalize_activations": "none", "prepend_bos": True},
    )


def sae_lens_nested(root: Path) -> Checkpoint:
    """Our format as 6.x writes it, for a topk SAE with a fine-tuned factor from 5.x."""
    w = weights()
    del w["threshold"]
    folder = "standard/blocks.2.hook_resid_post"
    write_safetensors(root / folder / "sae_weights.safetensors", w)
    write_json(
        root / folder / "cfg.json",
        {
            "architecture": "topk",
            "d_in": D,
            "d_sae": M,
            "dtype": "float32",
            "k": 3,
            "rescale_acts_by_decoder_norm": True,
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {
                "sae_lens_version": "6.5.0",
                "model_name": "gemma-2-2b",
                "hook_name": "blocks.2.hook_resid_post",
                "context_size": 1024,
                "dataset_path": "their/text",
            },
        },
    )
    norms = w["W_dec"].pow(2).sum(-1).sqrt()

    def encode(x: Tensor) -> Tensor:
        return keep_largest(((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms, 3)

    return Checkpoint(
        "sae_lens",
        "chanind/gemma-2-2b-saes",
        folder,
        encode,
        lambda x: (encode(x) / norms) @ w["W_dec"] + w["b_dec"],
        {"architecture": "topk", "model_name": "gemma-2-2b", "hook_layer": 2},
    )


CHECKPOINTS: list[Callable[[Path], Checkpoint]] = [
    sae_lens_flat,
    sae_lens_nested,
    connor_rob_hook_z,
    gemma_2,
    gemma_2_embedding,
    gemma_2_attention,
    gemma_2_transcoder,
    gemma_3,
    gemma_3_attention,
    gemma_3_mlp,
    gemma_3_transcoder,
    gemma_3_skip_transcoder,
    gemma_3_clt,
    llama_scope,
    llama_scope_r1_distill,
    *(
        _dictionary_learning(dict_class)
        for dict_class in (
            "AutoEncoder",
            "AutoEncoderNew",
            "GatedAutoEncoder",
            "AutoEncoderTopK",
            "BatchTopKSAE",
            "MatryoshkaBatchTopKSAE",
            "JumpReluAutoEncoder",
        )
    ),
    deepseek_r1,
    sparsify,
    sparsify_transposed_without_bias,
    sparsify_transcode,
    mwhanna_transcoder,
    mntss_clt_layer_transcoder,
    qwen_scope,
    goodfire,
    openai_sparse_autoencoder,
    openai_tied_relu,
    e2e_sae,
]
