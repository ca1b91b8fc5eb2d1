"""What `SAE.from_pretrained` returns, how much memory it takes, and the functions before it."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sae_lens.loading import early_downloads
from sae_lens.loading.converters import CONVERTERS
from sae_lens.loading.load import components_from_source
from sae_lens.loading.migrations import handle_config_defaulting
from sae_lens.loading.sources import FolderSource
from sae_lens.saes import SAE, StandardSAE, StandardSAEConfig, TrainingSAE
from sae_lens.saes.pretrained import PretrainedSAE, convert_connor_rob_sae_to_our_saelens_format
from sae_lens.toolkit import pretrained_sae_loaders as toolkit_loaders
from sae_lens.toolkit import pretrained_saes as toolkit_saes
from tests.loading.synthetic import (
    connor_rob_hook_z,
    gemma_2,
    llama_scope,
    normal,
    sae_lens_flat,
    sparsify,
    weights,
)

WARNING = "being used as the SAE"


def pretrained() -> PretrainedSAE:
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=6, hook_name="blocks.0.hook_mlp_out"))
    return PretrainedSAE(sae, {"d_in": 4}, torch.zeros(6))


# -- the tuple that is also the SAE ---------------------------------------------------------------


def test_it_unpacks_and_indexes_as_three_values_without_a_word() -> None:
    result = pretrained()
    sae, cfg_dict, sparsity = result
    assert isinstance(result, tuple) and len(result) == 3
    assert result[0] is sae is result.sae
    assert result[1] is cfg_dict is result.cfg_dict
    assert result[2] is sparsity is result.sparsity
    assert [type(value) for value in result] == [StandardSAE, dict, torch.Tensor]


def test_it_is_usable_as_the_sae_and_says_so_once() -> None:
    result = pretrained()
    x = normal(3, 4, seed=1)
    with pytest.warns(DeprecationWarning, match=WARNING):
        features = result.encode(x)
    # Warnings are errors here: a second one would fail.
    torch.testing.assert_close(features, result.sae.encode(x))
    torch.testing.assert_close(result(x), result.sae(x))
    assert result.cfg is result.sae.cfg
    assert result.device == torch.device("cpu")
    assert result.eval() is result.sae
    assert dict(result.named_parameters()).keys() == dict(result.sae.named_parameters()).keys()
    assert hasattr(result, "fold_W_dec_norm") and not hasattr(result, "no_such_thing")


def test_assignments_and_deletions_reach_the_sae() -> None:
    result = pretrained()
    sae = result.sae
    with pytest.warns(DeprecationWarning, match=WARNING):
        result.use_error_term = True
    narrow = nn.Parameter(torch.ones(4, 2))
    result.W_enc = narrow
    result.note = "mine"
    assert sae.use_error_term is True
    assert sae.W_enc is narrow
    assert result.note == sae.note == "mine"
    del result.note
    assert not hasattr(sae, "note")
    result.cfg.metadata.context_size = 9
    assert sae.cfg.context_size == 9


@pytest.mark.parametrize("name", ["sae", "cfg_dict", "sparsity"])
def test_its_own_values_stay(name: str) -> None:
    result = pretrained()
    with pytest.raises(AttributeError, match=name):
        setattr(result, name, None)
    with pytest.raises(AttributeError, match=name):
        delattr(result, name)


def test_copies_and_pickles() -> None:
    result = pretrained()
    for again in (copy.deepcopy(result), pickle.loads(pickle.dumps(result)), copy.copy(result)):
        assert type(again) is PretrainedSAE
        assert torch.equal(again.sae.W_enc, result.sae.W_enc)
    assert copy.deepcopy(result).sae is not result.sae
    assert "encode" in dir(result) and "cfg_dict" in dir(result)


# -- memory ---------------------------------------------------------------------------------------


PROC = Path("/proc/self")


def memory_now_and_at_most() -> tuple[float, float]:
    """Resident memory of this process in MiB, and its peak since the last reset."""
    facts = dict(line.split(":", 1) for line in (PROC / "status").read_text().splitlines())
    return tuple(int(facts[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def reset_peak() -> None:
    (PROC / "clear_refs").write_text("5")


@pytest.mark.skipif(not (PROC / "clear_refs").exists(), reason="reads Linux' accounts of memory")
@pytest.mark.parametrize(
    ("format_name", "stored", "dtype", "allowed"),
    [
        # allowed: the weights once, plus one tensor (half of them), plus what the program needs
        ("sae_lens", torch.float32, "float32", 1.5),
        ("sae_lens", torch.bfloat16, "bfloat16", 1.5),
        ("dictionary_learning_1", torch.float32, "float32", 1.5),
    ],
)
def test_loading_takes_the_weights_once_and_one_tensor(
    tmp_path: Path, format_name: str, stored: torch.dtype, dtype: str, allowed: float
) -> None:
    d_in, d_sae = 512, 16384
    size = 2 * d_in * d_sae * stored.itemsize / 2**20
    tensors = {
        "W_enc": torch.full((d_in, d_sae), 0.01, dtype=stored),
        "W_dec": torch.full((d_sae, d_in), 0.01, dtype=stored),
        "b_enc": torch.zeros(d_sae, dtype=stored),
        "b_dec": torch.zeros(d_in, dtype=stored),
    }
    if format_name == "sae_lens":
        from safetensors.torch import save_file

        (tmp_path / "it").mkdir()
        save_file(tensors, tmp_path / "it" / "sae_weights.safetensors")
        StandardSAE(StandardSAEConfig(d_in=2, d_sae=2)).save_model(tmp_path / "small")
        config = (tmp_path / "small" / "cfg.json").read_text()
        config = config.replace('"d_in": 2', f'"d_in": {d_in}')
        config = config.replace('"d_sae": 2', f'"d_sae": {d_sae}').replace("float32", dtype)
        (tmp_path / "it" / "cfg.json").write_text(config)
    else:
        from tests.loading.synthetic import write_json, write_torch

        write_torch(
            tmp_path / "it" / "ae.pt",
            {
                "encoder.weight": tensors["W_enc"].T.contiguous(),
                "decoder.weight": tensors["W_dec"].T.contiguous(),
                "encoder.bias": tensors["b_enc"],
                "bias": tensors["b_dec"],
            },
        )
        trainer = {"activation_dim": d_in, "dict_size": d_sae, "layer": 0, "lm_name": "a/b"}
        write_json(tmp_path / "it" / "config.json", {"trainer": trainer})
    del tensors
    before, _ = memory_now_and_at_most()
    reset_peak()
    cfg_dict, state_dict = components_from_source(
        CONVERTERS[format_name], FolderSource(tmp_path, "it"), "cpu", {"dtype": dtype}
    )
    sae = SAE.from_components(handle_config_defaulting(cfg_dict), state_dict)
    del state_dict
    with torch.no_grad():
        sae(torch.ones(2, d_in))
    _, peak = memory_now_and_at_most()
    assert 0.9 * size < peak - before < allowed * size + 16


# -- classes --------------------------------------------------------------------------------------


def test_a_file_of_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    checkpoint = llama_scope(tmp_path)
    checkpoint.overrides.clear()
    source = FolderSource(tmp_path, checkpoint.path)
    cfg_dict, state_dict = components_from_source(CONVERTERS["llama_scope"], source)
    assert cfg_dict["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in state_dict.values()} == {torch.bfloat16}


def test_an_sae_that_was_loaded_can_be_trained_on(tmp_path: Path) -> None:
    checkpoint = sae_lens_flat(tmp_path)
    sae = TrainingSAE.load_from_disk(tmp_path / checkpoint.path)
    out = sae(checkpoint.x)
    out.sum().backward()
    with torch.no_grad():
        sae.W_enc.add_(1.0)
    again = SAE.load_from_disk(tmp_path / checkpoint.path)
    assert not torch.equal(again.W_enc, sae.W_enc), "the file must not change with the weights"


# -- the functions before -------------------------------------------------------------------------


def test_a_folder_with_its_sparsity(tmp_path: Path) -> None:
    checkpoint = sae_lens_flat(tmp_path)
    sae, sparsity = toolkit_saes.load_sae_from_local_path(str(tmp_path / checkpoint.path))
    assert sae.cfg.hook_name == "blocks.2.hook_resid_pre"
    assert sparsity is not None
    torch.testing.assert_close(sparsity, toolkit_saes.load_sparsity(tmp_path / checkpoint.path))
    (tmp_path / checkpoint.path / "sparsity.safetensors").unlink()
    assert toolkit_saes.load_sae_from_local_path(tmp_path / checkpoint.path)[1] is None
    with pytest.raises(FileNotFoundError, match="without its sparsity"):
        early_downloads.load_sparsity(tmp_path / checkpoint.path)


def test_a_connor_rob_sae_from_memory(tmp_path: Path) -> None:
    tensors = weights()
    del tensors["threshold"]
    config = {"act_size": 8, "dict_size": 20, "act_name": "blocks.3.attn.hook_z", "layer": 3}
    sae = convert_connor_rob_sae_to_our_saelens_format(tensors, config)
    checkpoint = connor_rob_hook_z(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(sae(checkpoint.x), checkpoint.forward(checkpoint.x))
    assert set(tensors) == {"W_enc", "W_dec", "b_enc", "b_dec"}


class FolderHub:
    """Stands in for the hub's download: repositories are folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []

    def __call__(self, *, repo_id: str, filename: str, **_: Any) -> str:
        self.asked.append(f"{repo_id}/{filename}")
        return str(self.root / filename)


@pytest.fixture
def folder_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    hub = FolderHub(tmp_path)
    monkeypatch.setattr("sae_lens.loading.hub.hf_hub_download", hub)
    return hub


def test_loaders_by_release_and_id(folder_hub: FolderHub, tmp_path: Path) -> None:
    gemma_2(tmp_path)
    cfg_dict, state_dict, sparsity = toolkit_loaders.gemma_2_sae_loader(
        "google/gemma-scope-2b-pt-res",
        "layer_7/width_16k/average_l0_9",
        cfg_overrides={"d_in": 8},
        d_sae_override=20,
        layer_override=5,
    )
    assert (cfg_dict["d_in"], cfg_dict["d_sae"], cfg_dict["hook_layer"]) == (8, 20, 5)
    assert cfg_dict["hook_name"] == "blocks.5.hook_resid_post"
    assert state_dict["W_enc"].shape == (8, 20)
    assert sparsity is None
    assert folder_hub.asked == [
        "google/gemma-scope-2b-pt-res/layer_7/width_16k/average_l0_9/params.npz"
    ]


def test_configs_by_release_and_id_with_options() -> None:
    options = toolkit_loaders.SAEConfigLoadOptions(device="cuda:1", layer_override=3)
    cfg_dict = toolkit_loaders.get_sae_config(
        "gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical", options
    )
    assert cfg_dict["d_in"] == 2304
    assert cfg_dict["d_sae"] == 16384
    assert cfg_dict["device"] == "cuda:1"
    assert cfg_dict["hook_name"] == "blocks.3.hook_resid_post"
    assert cfg_dict["neuronpedia_id"] == "gemma-2-2b/20-gemmascope-res-16k"
    assert options.cfg_overrides == {}
    attention = toolkit_loaders.get_gemma_2_config(
        "google/gemma-scope-9b-pt-att",
        "layer_3/width_131k/average_l0_8",
        toolkit_loaders.SAEConfigLoadOptions(),
    )
    assert (attention["d_in"], attention["hook_name"]) == (4096, "blocks.3.attn.hook_z")


def test_the_tables_name_every_format() -> None:
    assert set(toolkit_loaders.NAMED_PRETRAINED_SAE_LOADERS) == set(CONVERTERS)
    assert set(toolkit_loaders.NAMED_PRETRAINED_SAE_CONFIG_GETTERS) == set(CONVERTERS)
    loader = toolkit_loaders.NAMED_PRETRAINED_SAE_LOADERS["gemma_2"]
    assert loader is toolkit_loaders.gemma_2_sae_huggingface_loader


def test_a_sparsify_folder_from_disk(tmp_path: Path) -> None:
    checkpoint = sparsify(tmp_path)
    folder = tmp_path / checkpoint.path
    sae = SAE.load_from_disk(
        folder, dtype="float32", converter=toolkit_loaders.sparsify_disk_loader
    )
    with torch.no_grad():
        expected = checkpoint.forward(checkpoint.x)
        torch.testing.assert_close(sae(checkpoint.x), expected, atol=1e-5, rtol=1e-4)
    cfg_dict = toolkit_loaders.get_sparsify_config_from_disk(folder)
    assert cfg_dict["hook_name"] == "blocks.3.hook_resid_post"


def test_the_two_files_of_an_sae_from_anywhere(tmp_path: Path) -> None:
    checkpoint = sae_lens_flat(tmp_path)
    folder = tmp_path / checkpoint.path
    cfg_dict, state_dict = toolkit_loaders.load_pretrained_sae_lens_sae_components(
        folder / "cfg.json", folder / "sae_weights.safetensors"
    )
    assert cfg_dict["d_in"] == 8
    assert set(state_dict) == {"W_enc", "W_dec", "b_enc", "b_dec"}


def test_the_thirteen_residual_saes_and_one_of_them(folder_hub: FolderHub, tmp_path: Path) -> None:
    from sae_lens.loading import directory

    for hook in directory.registry()["gpt2-small-res-jb"].saes:
        made = sae_lens_flat(tmp_path / "made")
        (tmp_path / "made" / made.path).rename(tmp_path / hook)
    saes, sparsities = toolkit_saes.get_gpt2_res_jb_saes()
    assert len(saes) == len(sparsities) == 13
    one, _ = toolkit_saes.get_gpt2_res_jb_saes("blocks.11.hook_resid_post")
    assert list(one) == ["blocks.11.hook_resid_post"]


def test_nothing_warns_when_a_result_is_unpacked() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sae, _, _ = pretrained()
        sae(normal(2, 4, seed=0))
