"""Each format's synthetic checkpoint, converted, computes what its own library's formula says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_lens.errors import SAELoadError
from sae_lens.loading.converters import (
    CONVERTERS,
    dictionary_learning_1,
    e2e_sae,
    gemma_2,
    gemma_2_transcoder,
    gemma_3,
    goodfire,
    mntss_clt_layer_transcoder,
    mwhanna_transcoder,
    openai_sparse_autoencoder,
    qwen_scope,
    sparsify,
    temporal,
)
from sae_lens.loading.load import components_from_source
from sae_lens.loading.migrations import handle_config_defaulting
from sae_lens.loading.sources import FolderSource, Tensors, read_npz, read_torch_file
from sae_lens.saes import SAE
from tests.loading.synthetic import (
    CHECKPOINTS,
    Checkpoint,
    M,
    normal,
    write_json,
    write_torch,
)

Make = Callable[[Path], Checkpoint]


def load(checkpoint: Checkpoint, root: Path) -> tuple[SAE, dict[str, Any]]:
    source = FolderSource(root, checkpoint.path)
    source.name = checkpoint.repo_id
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(cross-layer|model_from_pretrained_kwargs).*")
        cfg_dict, state_dict = components_from_source(
            CONVERTERS[checkpoint.format_name], source, "cpu", checkpoint.overrides
        )
        handle_config_defaulting(cfg_dict)
        assert {tensor.dtype for tensor in state_dict.values()} == {torch.float32}
        sae = SAE.from_components(cfg_dict, state_dict)
    if checkpoint.factor is not None:
        assert cfg_dict["normalize_activations"] == "expected_average_only_in"
        sae.fold_activation_norm_scaling_factor(checkpoint.factor)
    return sae, cfg_dict


@pytest.mark.parametrize("make", CHECKPOINTS, ids=lambda make: make.__name__)
def test_it_computes_what_its_own_library_does(make: Make, tmp_path: Path) -> None:
    checkpoint = make(tmp_path)
    sae, cfg_dict = load(checkpoint, tmp_path)
    for name, value in checkpoint.config.items():
        assert cfg_dict[name] == value, name
    with torch.no_grad():
        features = sae.encode(checkpoint.x)
        torch.testing.assert_close(features, checkpoint.encode(checkpoint.x), atol=1e-5, rtol=1e-4)
        recons = sae(checkpoint.x)
    torch.testing.assert_close(recons, checkpoint.forward(checkpoint.x), atol=1e-5, rtol=1e-4)
    # The test would not notice a wrong threshold or a missing bias if nothing or everything fired.
    assert 0 < int((features != 0).sum()) < features.numel()


@pytest.mark.parametrize("make", CHECKPOINTS, ids=lambda make: make.__name__)
def test_what_was_loaded_can_be_saved_in_our_format(make: Make, tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "theirs")
    sae, _ = load(checkpoint, tmp_path / "theirs")
    sae.save_model(tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*model_from_pretrained_kwargs.*")
        again = SAE.load_from_disk(tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(again(checkpoint.x), sae(checkpoint.x), atol=1e-6, rtol=1e-5)
    assert again.cfg.architecture == sae.cfg.architecture
    assert again.cfg.hook_name == sae.cfg.hook_name
    assert again.cfg.metadata.hook_name_out == sae.cfg.metadata.hook_name_out


def test_every_format_has_a_checkpoint() -> None:
    tested = {make.__name__ for make in CHECKPOINTS} | {"temporal"}
    for name in CONVERTERS:
        assert any(made.startswith(name) for made in tested), name
    assert len(CONVERTERS) == 17


def test_attention_saes_take_split_and_flat_activations(tmp_path: Path) -> None:
    from tests.loading.synthetic import gemma_3_attention

    checkpoint = gemma_3_attention(tmp_path)
    sae, _ = load(checkpoint, tmp_path)
    split = checkpoint.x.unsqueeze(0)  # batch, pos, head, d_head
    with torch.no_grad():
        out = sae(split)
        flat_out = sae(split.flatten(-2))
    assert out.shape == split.shape
    torch.testing.assert_close(out.flatten(-2), flat_out)


# -- temporal ------------------------------------------------------------------------------------


def temporal_config(tied: bool) -> dict[str, Any]:
    return {
        "llm": {"dimin": 4},
        "sae": {
            "exp_factor": 4.0,
            "n_heads": 2,
            "n_attn_layers": 2,
            "bottleneck_factor": 4,
            "sae_diff_type": "topk",
            "kval_topk": 5,
            "tied_weights": tied,
            "scaling_factor": 0.5,
        },
        "data": {"dtype": "float32"},
    }


def temporal_tensors() -> dict[str, Tensor]:
    tensors = {"D": normal(16, 4, seed=1), "b": normal(4, seed=2), "E": normal(4, 16, seed=3)}
    for layer in range(2):
        for number, (part, width) in enumerate(
            (("k_ctx", 4), ("q_target", 4), ("v_ctx", 16), ("c_proj", 16))
        ):
            seed = 10 * layer + number + 5
            tensors[f"attn_layers.{layer}.{part}.weight"] = normal(width, 16, seed=seed)
            tensors[f"attn_layers.{layer}.{part}.bias"] = normal(width, seed=seed + 100)
    return tensors


def temporal_reference(x: Tensor, t: dict[str, Tensor], tied: bool) -> tuple[Tensor, Tensor]:
    """(novel codes, reconstruction) of a sequence [pos, d_in], one position and head at a time."""
    decoder = t["D"]
    encoder = decoder.T if tied else t["E"]
    scale = 1 / (4 * 4)
    residual = x * 0.5 - t["b"]
    predicted = torch.zeros(x.shape[0], 16)
    for layer in range(2):

        def linear(part: str, codes: Tensor, layer: int = layer) -> Tensor:
            name = f"attn_layers.{layer}.{part}"
            return codes @ t[f"{name}.weight"].T + t[f"{name}.bias"]

        codes = torch.relu(scale * residual @ encoder)
        context = torch.zeros_like(codes)
        context[1:] = codes[:-1]
        keys, queries, values = linear("k_ctx", context), linear("q_target", codes), None
        values = linear("v_ctx", context)
        mixed = torch.zeros(x.shape[0], 16)
        for position in range(x.shape[0]):
            for head in range(2):
                narrow, wide = slice(2 * head, 2 * head + 2), slice(8 * head, 8 * head + 8)
                scores = keys[: position + 1, narrow] @ queries[position, narrow] / 2**0.5
                mixed[position, wide] = scores.softmax(0) @ values[: position + 1, wide]
        guess = torch.relu(linear("c_proj", mixed))
        direction = guess @ decoder
        along = (direction * residual).sum(-1) / (direction.pow(2).sum(-1).sqrt() + 1e-6) ** 2
        predicted = predicted + guess * along[:, None]
        residual = residual - direction * along[:, None]
    novel = torch.relu(scale * residual @ encoder)
    for row in novel:
        row[row.argsort(descending=True)[5:]] = 0
    return novel, ((novel + predicted) @ decoder + t["b"]) / 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_temporal_computes_its_formula(tied: bool) -> None:
    cfg_dict = temporal.convert_config("gemma/layer_12/temporal", temporal_config(tied))
    tensors = temporal_tensors()
    state_dict = dict(temporal.convert_tensors(Tensors(dict(tensors)), tied))
    assert ("W_enc" in state_dict) is not tied
    sae = SAE.from_components(handle_config_defaulting(cfg_dict), state_dict)
    assert sae.cfg.hook_name == "blocks.12.hook_resid_post"
    x = normal(2, 6, 4, seed=50)
    with torch.no_grad():
        features, recons = sae.encode(x), sae(x)
    for sequence in range(2):
        novel, expected = temporal_reference(x[sequence], tensors, tied)
        torch.testing.assert_close(features[sequence], novel, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(recons[sequence], expected, atol=1e-4, rtol=1e-4)


# -- what is refused -----------------------------------------------------------------------------


class Malicious:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("unpickled",))


def test_pickles_with_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_torch(tmp_path / "ae.pt", {"bias": Malicious()})
    with pytest.raises(SAELoadError, match="is refused: reading it would run code"):
        read_torch_file(tmp_path / "ae.pt")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Malicious()], dtype=object))
    with pytest.raises(SAELoadError, match="allow_pickle"):
        read_npz(tmp_path / "params.npz")["W_enc"]
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 half"])
def test_damaged_files_say_so(tmp_path: Path, content: bytes) -> None:
    for reader, name in ((read_torch_file, "ae.pt"), (read_npz, "params.npz")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SAELoadError, match=name):
            reader(tmp_path / name)


def test_a_torch_file_without_tensors_by_name(tmp_path: Path) -> None:
    write_torch(tmp_path / "list.pt", [torch.zeros(2)])
    with pytest.raises(SAELoadError, match="holds a list"):
        read_torch_file(tmp_path / "list.pt")
    write_torch(tmp_path / "nested.pt", {"state_dict": {"W_enc": torch.ones(2)}, "epoch": 3})
    assert list(read_torch_file(tmp_path / "nested.pt")) == ["W_enc"]


def test_a_missing_tensor_is_named_with_what_there_is() -> None:
    with pytest.raises(SAELoadError, match="'W_enc' or 'encoder.weight'.*'b_enc'"):
        Tensors({"b_enc": torch.zeros(2)}).take("W_enc", "encoder.weight")


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../b", "C:/x", "..\\secret"])
def test_names_cannot_leave_the_repository(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        FolderSource(tmp_path).file(path)


@pytest.mark.parametrize(
    ("convert", "named"),
    [
        (lambda: gemma_2.convert_config("google/gemma-scope-3b-pt-res", "layer_1/x"), "3b"),
        (lambda: gemma_2.convert_config("google/gemma-scope-2b-pt-res", "width_16k"), "width_16k"),
        (lambda: gemma_2.convert_config("google/gemma-scope-2b", "layer_1"), "'res', 'mlp'"),
        (lambda: gemma_2_transcoder.convert_config("google/x-2b", "layer_1"), "width"),
        (lambda: gemma_2_transcoder.convert_config("google/x-2b", "width_16k"), "layer"),
        (lambda: gemma_3.convert_config("a/b", "other/layer_3", None, {}), "transcoder"),
        (
            lambda: gemma_3.convert_config("a/b", "mlp_out/layer_3", {"architecture": "x"}, {}),
            "jump_relu",
        ),
        (lambda: gemma_3.convert_config("a/b", "mlp_out/layer_3", None, {"b": (1,)}), "w_enc"),
        (lambda: qwen_scope.convert_config("Qwen/other", "layer1.sae.pt"), "SAE-Res"),
        (lambda: qwen_scope.convert_config("Q/SAE-Res-Qwen9-W1K-L0_5", "layer1"), "Qwen9"),
        (lambda: goodfire.convert_config("Goodfire/new", "x.pt"), "known are"),
        (lambda: mntss_clt_layer_transcoder.layer_number("../x"), "layer number"),
        (lambda: mntss_clt_layer_transcoder.convert_config(1, {}, {}), "b_enc_1"),
        (lambda: mwhanna_transcoder.convert_config("a/b", "x.safetensors", {}, None), "layer"),
        (lambda: mwhanna_transcoder.convert_config("a/b", "layer_1", {}, None), "d_model"),
        (lambda: sparsify.hook_of("somewhere"), "layers.5"),
        (lambda: sparsify.convert_config("layers.1", {"activation": "groupmax"}), "groupmax"),
        (lambda: sparsify.convert_config("layers.1", {"skip_connection": True}), "skip"),
        (lambda: sparsify.convert_config("layers.1", {"d_in": 4}), "expansion_factor"),
        (lambda: dictionary_learning_1.convert_config({}), "trainer"),
        (
            lambda: dictionary_learning_1.convert_config({"trainer": {"dict_class": "Odd"}}),
            "'Odd'",
        ),
        (lambda: openai_sparse_autoencoder.convert_config("x", {}), "encoder.weight"),
        (lambda: e2e_sae.prefix_of(["a.encoder.0.weight", "b.encoder.0.weight"], ""), "2 SAEs"),
        (lambda: temporal.convert_config("layer_1", {}), "llm.dimin"),
    ],
)
def test_what_cannot_be_told_is_said(convert: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError) as error:
        convert()
    assert named in str(error.value)


def test_further_tensors_of_a_transcoder_are_not_ignored() -> None:
    with pytest.raises(SAELoadError, match="W_extra"):
        list(mwhanna_transcoder.convert_tensors(Tensors({"W_extra": torch.zeros(1)})))


def test_hooks_of_sparsify_folders() -> None:
    assert sparsify.hook_of("embed_tokens") == ("hook_embed", 0)
    assert sparsify.hook_of("layers_12") == ("blocks.12.hook_resid_post", 12)
    assert sparsify.hook_of("layers.5.mlp") == ("blocks.5.hook_mlp_out", 5)
    assert sparsify.hook_of("layers.5.attention") == ("blocks.5.hook_attn_out", 5)


def test_a_sparsify_matrix_of_a_wrong_shape(tmp_path: Path) -> None:
    tensors = Tensors({"encoder.weight": normal(3, 5, seed=1)})
    with pytest.raises(SAELoadError, match=r"\[3, 5\].*\[8, 20\]"):
        list(sparsify.convert_tensors(tensors, 8, M))


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x" / "config.json", [1])
    with pytest.raises(SAELoadError, match="a mapping is needed"):
        dictionary_learning_1.read_config(FolderSource(tmp_path, "x"))
    (tmp_path / "x" / "config.json").write_text("{")
    with pytest.raises(SAELoadError, match="not valid JSON"):
        dictionary_learning_1.read_config(FolderSource(tmp_path, "x"))
