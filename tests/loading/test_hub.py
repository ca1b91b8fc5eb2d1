"""Loading and uploading through the real hub client, against a hub in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants as hub_constants

from sae_lens.errors import SAELoadError
from sae_lens.loading import directory, hub
from sae_lens.loading.load import get_conversion_loader_name, load_sae_config_from_huggingface
from sae_lens.loading.publish import upload_saes_to_huggingface
from sae_lens.saes import SAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from tests.hub_client import point_client_at, reset_sessions
from tests.hub_server import Fault, HubServer
from tests.loading.synthetic import (
    CHECKPOINTS,
    Checkpoint,
    gemma_3,
    mntss_clt_layer_transcoder,
    normal,
    sae_lens_flat,
    sae_lens_nested,
    sparsify,
    write_json,
    write_torch,
)
from tests.loading.test_converters import Malicious


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(hub.time, "sleep", lambda _seconds: None)
    with HubServer() as running:
        point_client_at(running.url, tmp_path / "cache", monkeypatch)
        yield running
    reset_sessions()


def publish(server: HubServer, make: Callable[[Path], Checkpoint], root: Path) -> Checkpoint:
    """Write a synthetic checkpoint and put its files into a repository."""
    checkpoint = make(root)
    files = {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    server.add(checkpoint.repo_id, files)
    return checkpoint


def register(checkpoint: Checkpoint, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry with this one SAE, as release "mine" and id "it"."""
    entry = {"id": "it", "path": checkpoint.path, "neuronpedia": "tiny/0-it"}
    if checkpoint.factor is not None:
        entry["norm_scaling_factor"] = checkpoint.factor  # type: ignore[assignment]
    release = {
        "repo_id": checkpoint.repo_id,
        "model": "tiny",
        "conversion_func": checkpoint.format_name,
        "config_overrides": checkpoint.overrides or None,
        "saes": [entry],
    }
    write_json(file, {"mine": release})
    monkeypatch.setattr(directory, "REGISTRY_FILE", file)


def load(release: str, sae_id: str, **options: object) -> tuple[SAE, dict[str, object], object]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(cross-layer|model_from_pretrained_kwargs).*")
        sae, cfg_dict, sparsity = SAE.from_pretrained(release, sae_id, **options)  # type: ignore[arg-type]
    return sae, cfg_dict, sparsity


# -- every format from the hub ---------------------------------------------------------------------


@pytest.mark.parametrize("make", CHECKPOINTS, ids=lambda make: make.__name__)
def test_every_format_loads_by_name(
    make: Callable[[Path], Checkpoint],
    server: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = publish(server, make, tmp_path / "files")
    register(checkpoint, tmp_path / "registry.yaml", monkeypatch)
    sae, cfg_dict, _ = load("mine", "it")
    with torch.no_grad():
        expected = checkpoint.forward(checkpoint.x)
        torch.testing.assert_close(sae(checkpoint.x), expected, atol=1e-5, rtol=1e-4)
    assert cfg_dict["neuronpedia_id"] == "tiny/0-it" == sae.cfg.metadata.neuronpedia_id
    assert cfg_dict["device"] == "cpu"
    assert cfg_dict["normalize_activations"] != "expected_average_only_in"


def test_first_download_then_the_cache_with_the_server_off(
    server: HubServer, tmp_path: Path
) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    sae, cfg_dict, sparsity = load(checkpoint.repo_id, checkpoint.path)
    assert isinstance(sparsity, torch.Tensor)
    assert sparsity.shape == (20,)
    assert server.sent_bytes("sae_weights.safetensors") > 0
    server.stop()
    again, again_dict, _ = load(checkpoint.repo_id, checkpoint.path)
    assert again_dict == cfg_dict
    torch.testing.assert_close(again.W_enc, sae.W_enc)


def test_offline_mode_reads_the_cache_and_explains_what_is_missing(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = publish(server, sae_lens_nested, tmp_path / "files")
    load(checkpoint.repo_id, checkpoint.path)
    asked = len(server.requests)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    reset_sessions()
    load(checkpoint.repo_id, checkpoint.path)
    assert len(server.requests) == asked
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        load(checkpoint.repo_id, "another/folder")


def test_force_download_fetches_again(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    load(checkpoint.repo_id, checkpoint.path)
    once = server.sent_bytes("sae_weights.safetensors")
    load(checkpoint.repo_id, checkpoint.path)
    assert server.sent_bytes("sae_weights.safetensors") == once
    load(checkpoint.repo_id, checkpoint.path, force_download=True)
    assert server.sent_bytes("sae_weights.safetensors") == 2 * once


def test_dtype_and_device(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    sae, cfg_dict, _ = load(checkpoint.repo_id, checkpoint.path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.bfloat16}
    assert cfg_dict["dtype"] == "bfloat16" == sae.cfg.dtype
    with pytest.raises(ValueError, match="int8"):
        load(checkpoint.repo_id, checkpoint.path, dtype="int8")


# -- configs without weights -----------------------------------------------------------------------


def test_a_config_is_read_without_the_weights(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_nested, tmp_path / "files")
    cfg_dict = load_sae_config_from_huggingface(checkpoint.repo_id, checkpoint.path)
    assert cfg_dict["model_name"] == "gemma-2-2b"
    assert cfg_dict["finetuning_scaling_factor"] is False
    assert server.sent_bytes("sae_weights.safetensors") == 0


def test_widths_come_from_the_first_bytes_of_the_weights(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(root: Path) -> Checkpoint:
        made = gemma_3(root)
        # Larger than what the client asks for at first.
        file = root / made.path / "params.safetensors"
        from safetensors.torch import load_file, save_file

        tensors = load_file(file)
        save_file({**tensors, "w_enc": normal(8, 20_000, seed=1)}, file)
        return made

    checkpoint = publish(server, make, tmp_path / "files")
    register(checkpoint, tmp_path / "registry.yaml", monkeypatch)
    cfg_dict = load_sae_config_from_huggingface("mine", "it")
    assert (cfg_dict["d_in"], cfg_dict["d_sae"]) == (8, 20_000)
    size = (tmp_path / "files" / checkpoint.path / "params.safetensors").stat().st_size
    assert 0 < server.sent_bytes("params.safetensors") < size / 4
    assert not any((tmp_path / "cache").rglob("params.safetensors"))


def test_one_layer_of_a_clt_by_its_number(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = publish(server, mntss_clt_layer_transcoder, tmp_path / "files")
    register(checkpoint, tmp_path / "registry.yaml", monkeypatch)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        sae, _, _ = SAE.from_pretrained("mine", "it")
    assert sae.cfg.architecture == "transcoder"
    assert any("not its reconstructions" in str(warning.message) for warning in given)


# -- when the hub fails ----------------------------------------------------------------------------


def test_a_cut_off_download_is_resumed(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 100)
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    server.faults = [Fault(r"^/cdn/.*sae_weights", cut_after=500)]
    sae, _, _ = load(checkpoint.repo_id, checkpoint.path)
    with torch.no_grad():
        expected = checkpoint.forward(checkpoint.x)
        torch.testing.assert_close(sae(checkpoint.x), expected, atol=1e-5, rtol=1e-4)
    ranges = [r.range for r in server.requests if r.path.startswith("/cdn/") and r.method == "GET"]
    assert "bytes=500-" in ranges


def test_a_body_that_is_always_cut_off(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    server.faults = [Fault(r"^/cdn/.*sae_weights", cut_after=0, times=None)]
    with pytest.raises(Exception) as error:
        load(checkpoint.repo_id, checkpoint.path)
    assert not isinstance(error.value, AssertionError)
    assert not any((tmp_path / "cache").rglob("sae_weights.safetensors"))
    tries = [r for r in server.requests if r.path.startswith("/cdn/") and r.method == "GET"]
    assert hub.ATTEMPTS <= len(tries) <= 6 * hub.ATTEMPTS


@pytest.mark.parametrize("name", ["sae_weights.safetensors", "cfg.json"])
def test_a_wrong_hash_is_noticed_and_not_kept(server: HubServer, tmp_path: Path, name: str) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    server.faults = [Fault(rf"{name}$", damage=True, method="GET")]
    with pytest.raises(SAELoadError, match="arrived damaged"):
        load(checkpoint.repo_id, checkpoint.path)
    load(checkpoint.repo_id, checkpoint.path)


def test_a_busy_hub_is_asked_again(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    server.faults = [Fault("cfg.json", 429, times=2, headers={"Retry_After": "7"})]
    load(checkpoint.repo_id, checkpoint.path)
    assert [r.status for r in server.requests if r.path.endswith("cfg.json")][:2] == [429, 429]


def test_the_wait_is_what_the_hub_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub.time, "sleep", waits.append)
    answers = iter([429, 429, 200])

    def call() -> str:
        status = next(answers)
        if status == 200:
            return "done"
        error = OSError("busy")
        error.response = Answer(status, {"Retry-After": "7"})  # type: ignore[attr-defined]
        raise error

    assert hub.with_retries(call) == "done"
    assert waits == [7.0, 7.0]


class Answer:
    """What errors of the client library carry."""

    def __init__(self, status_code: int, headers: dict[str, str]) -> None:
        self.status_code, self.headers = status_code, headers


def test_a_passing_server_error_is_survived(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    server.faults = [Fault("cfg.json", 500), Fault("cfg.json", 503)]
    load(checkpoint.repo_id, checkpoint.path)


def test_a_hub_that_stays_down(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    server.faults = [Fault("cfg.json", 500, times=None)]
    with pytest.raises(ConnectionError, match="500 for .*cfg.json"):
        load(checkpoint.repo_id, checkpoint.path)
    assert len([r for r in server.requests if r.path.endswith("cfg.json")]) <= 10


def test_retry_after_is_bounded_and_may_be_a_date() -> None:
    error = OSError("busy")
    error.response = Answer(429, {"Retry-After": "86400"})  # type: ignore[attr-defined]
    assert hub._seconds_to_wait(error, 0) == hub.LONGEST_WAIT_SECONDS
    error.response.headers = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}  # type: ignore[attr-defined]
    assert hub._seconds_to_wait(error, 3) == 8.0
    error.response.status_code = 404  # type: ignore[attr-defined]
    assert hub._seconds_to_wait(error, 0) is None
    error.response.status_code = 503  # type: ignore[attr-defined]
    assert hub._seconds_to_wait(error, 0) is None
    assert hub._seconds_to_wait(error, 0, server_errors=True) == 1.0


def test_no_connection_at_all(server: HubServer) -> None:
    server.stop()
    with pytest.raises(ConnectionError, match="cannot be reached"):
        load("someone/never-loaded", "x")


def test_a_private_repository(server: HubServer, tmp_path: Path) -> None:
    server.token = "secret"
    server.add("me/private", {"a/cfg.json": b"{}"}, private=True)
    with pytest.raises(PermissionError, match="log in with") as error:
        load("me/private", "a")
    assert "secret" not in str(error.value)


def test_a_gated_repository(server: HubServer) -> None:
    server.add("google/gated", {"a/cfg.json": b"{}"})
    headers = {"X_Error_Code": "GatedRepo"}
    server.faults = [Fault("cfg.json", 403, times=None, headers=headers)]
    with pytest.raises(PermissionError, match="accept its conditions"):
        load("google/gated", "a")


# -- what is not there -----------------------------------------------------------------------------


def test_an_unknown_release_or_id_is_named(server: HubServer) -> None:
    with pytest.raises(
        ValueError, match="not found in pretrained SAEs directory.*gpt2-small-res-jb"
    ):
        load("gpt2-small-res-jbb", "blocks.0.hook_resid_pre")
    with pytest.raises(ValueError, match="not found in release.*'blocks.0.hook_resid_pre'"):
        load("gpt2-small-res-jb", "blocks.0.hook_resid_pr")
    assert server.requests == []


def test_a_repository_without_the_files_says_which_were_looked_for(server: HubServer) -> None:
    server.add("me/mine", {"layer_3/cfg.json": b"{}", "README.md": b"x"})
    with pytest.raises(FileNotFoundError) as error:
        load("me/mine", "layer_4")
    for part in ("layer_4/cfg.json", "sae_weights.safetensors", "'layer_4'", "'layer_3'"):
        assert part in str(error.value)


def test_a_repository_of_a_known_release_warns(server: HubServer, tmp_path: Path) -> None:
    def make(root: Path) -> Checkpoint:
        made = sae_lens_flat(root)
        made.repo_id = "jbloom/GPT2-Small-SAEs-Reformatted"
        return made

    checkpoint = publish(server, make, tmp_path / "files")
    with pytest.warns(UserWarning, match="gpt2-small-res-jb"):
        SAE.from_pretrained(checkpoint.repo_id, checkpoint.path)


def test_a_name_that_leaves_the_repository(server: HubServer) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        load("me/mine", "../../secret")
    assert server.requests == []


# -- what is wrong with the files ------------------------------------------------------------------


def change_config(root: Path, **changes: object) -> Checkpoint:
    checkpoint = sae_lens_flat(root)
    file = root / checkpoint.path / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return checkpoint


def test_tensors_that_disagree_with_the_config(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, lambda root: change_config(root, d_sae=21), tmp_path / "files")
    with pytest.raises(ValueError, match=r"W_enc has shape \[8, 20\] instead of \[8, 21\]"):
        load(checkpoint.repo_id, checkpoint.path)


def test_a_files_own_neuronpedia_id_stays(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(
        server, lambda root: change_config(root, neuronpedia_id="tiny/0-own"), tmp_path / "files"
    )
    sae, _, _ = load(checkpoint.repo_id, checkpoint.path)
    assert sae.cfg.neuronpedia_id == "tiny/0-own"


def test_an_unknown_architecture(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(
        server, lambda root: change_config(root, architecture="jumprellu"), tmp_path / "files"
    )
    with pytest.raises(ValueError, match="this version knows.*'standard'.*'jumprelu'"):
        load(checkpoint.repo_id, checkpoint.path)


def test_nan_weights(server: HubServer, tmp_path: Path) -> None:
    def make(root: Path) -> Checkpoint:
        from safetensors.torch import load_file, save_file

        made = sae_lens_flat(root)
        file = root / made.path / "sae_weights.safetensors"
        tensors = load_file(file)
        tensors["W_dec"][3, 4] = torch.nan
        save_file(tensors, file)
        return made

    checkpoint = publish(server, make, tmp_path / "files")
    with pytest.raises(SAELoadError, match="W_dec of .* holds NaN"):
        load(checkpoint.repo_id, checkpoint.path)


def test_a_config_cannot_have_code_run(server: HubServer, tmp_path: Path) -> None:
    def make(root: Path) -> Checkpoint:
        kwargs = {"trust_remote_code": True, "fold_ln": False}
        return change_config(
            root, model_from_pretrained_kwargs=kwargs, dataset_trust_remote_code=True
        )

    checkpoint = publish(server, make, tmp_path / "files")
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        sae = SAE.from_pretrained(checkpoint.repo_id, checkpoint.path)[0]
    assert any("asks for trust_remote_code" in str(warning.message) for warning in given)
    assert sae.cfg.model_from_pretrained_kwargs == {"fold_ln": False}
    assert not sae.cfg.dataset_trust_remote_code


def test_a_pickle_with_code_is_refused(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(root: Path) -> Checkpoint:
        from tests.loading.synthetic import deepseek_r1

        made = deepseek_r1(root)
        write_torch(root / made.path, {"encoder.weight": Malicious()})
        return made

    checkpoint = publish(server, make, tmp_path / "files")
    register(checkpoint, tmp_path / "registry.yaml", monkeypatch)
    with pytest.raises(SAELoadError, match="refused"):
        load("mine", "it")


def test_an_unknown_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="gemma_2"):
        get_conversion_loader_name({"conversion_func": "new_format"})
    assert get_conversion_loader_name("gemma-scope-2b-pt-res") == "gemma_2"
    assert get_conversion_loader_name("me/mine") == "sae_lens"
    with pytest.raises(ValueError, match="Unknown converter 'odd'"):
        load("me/mine", "x", converter="odd")


# -- the norm factor and the user's own converter -------------------------------------------------


def test_a_missing_norm_factor_warns_and_is_not_folded(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(
        server,
        lambda root: change_config(root, normalize_activations="expected_average_only_in"),
        tmp_path / "files",
    )
    with pytest.warns(UserWarning, match="the factor is not known"):
        _, cfg_dict, _ = SAE.from_pretrained(checkpoint.repo_id, checkpoint.path)
    assert cfg_dict["normalize_activations"] == "expected_average_only_in"


def test_a_converter_of_ones_own_replaces_the_registry_choice(server: HubServer) -> None:
    given: dict[str, object] = {}

    def mine(
        repo_id: str, folder_name: str, device: str, cfg_overrides: dict[str, object]
    ) -> object:
        given.update(repo_id=repo_id, folder_name=folder_name, **cfg_overrides)
        sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=6))
        return sae.cfg.to_dict(), sae.state_dict()

    sae, _, sparsity = load("me/mine", "x/y", converter=mine)
    assert sae.cfg.d_sae == 6
    assert sparsity is None
    assert given == {"repo_id": "me/mine", "folder_name": "x/y", "device": "cpu"}


def test_a_known_format_by_name(server: HubServer, tmp_path: Path) -> None:
    def make(root: Path) -> Checkpoint:
        made = sparsify(root)
        made.repo_id = "me/sparsified"
        return made

    checkpoint = publish(server, make, tmp_path / "files")
    sae, _, _ = load(checkpoint.repo_id, checkpoint.path, converter="sparsify", dtype="float32")
    with torch.no_grad():
        expected = checkpoint.forward(checkpoint.x)
        torch.testing.assert_close(sae(checkpoint.x), expected, atol=1e-5, rtol=1e-4)


def test_a_finetuned_factor_is_folded(server: HubServer, tmp_path: Path) -> None:
    factor = normal(20, seed=5).abs()

    def make(root: Path) -> Checkpoint:
        from safetensors.torch import load_file, save_file

        made = change_config(root, finetuning_scaling_factor=True)
        file = root / made.path / "sae_weights.safetensors"
        save_file({**load_file(file), "scaling_factor": factor}, file)
        return made

    checkpoint = publish(server, make, tmp_path / "files")
    sae, cfg_dict, _ = load(checkpoint.repo_id, checkpoint.path)
    assert cfg_dict["finetuning_scaling_factor"] is False
    assert "finetuning_scaling_factor" not in sae.state_dict()
    kept = SAE.load_from_disk(tmp_path / "files" / checkpoint.path)
    assert "finetuning_scaling_factor" in kept.state_dict()
    with torch.no_grad():
        torch.testing.assert_close(sae(checkpoint.x), kept(checkpoint.x))
        assert not torch.allclose(sae(checkpoint.x), checkpoint.forward(checkpoint.x))


# -- several processes, uploads --------------------------------------------------------------------


def test_two_processes_load_the_same_sae_at_once(server: HubServer, tmp_path: Path) -> None:
    checkpoint = publish(server, sae_lens_flat, tmp_path / "files")
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HUB_CACHE": str(tmp_path / "shared"),
        "HF_HUB_OFFLINE": "0",
    }
    code = (
        "from sae_lens.loading.load import load_pretrained\n"
        f"s = load_pretrained('{checkpoint.repo_id}', '{checkpoint.path}').state_dict\n"
        "print(round(float(s['W_enc'].sum()), 3))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert len(set(printed)) == 1
    assert printed[0]


def some_saes() -> list[SAE]:
    torch.manual_seed(0)
    first = StandardSAE(StandardSAEConfig(d_in=4, d_sae=6, hook_name="blocks.0.hook_mlp_out"))
    second = TopKSAE(TopKSAEConfig(d_in=4, d_sae=6, k=2, hook_name="blocks.1.hook_mlp_out"))
    return [first, second]


def test_what_is_uploaded_comes_back_equal(server: HubServer, tmp_path: Path) -> None:
    server.token = "secret"
    first, second = some_saes()
    second.save_model(tmp_path / "saved", sparsity=torch.full((6,), -3.0))
    (tmp_path / "saved" / "private_notes.txt").write_text("stays at home")
    (tmp_path / "saved" / "runner_cfg.json").write_text("{}")
    upload_saes_to_huggingface(
        {"a/first": first, "second": tmp_path / "saved"},
        "tester/mine",
        show_progress=False,
        token="secret",
        private=True,
    )
    repository = server.repositories["tester/mine"]
    files = repository.commits[repository.branches["main"]]
    assert sorted(files) == [
        "README.md",
        "a/first/cfg.json",
        "a/first/sae_weights.safetensors",
        "second/cfg.json",
        "second/runner_cfg.json",
        "second/sae_weights.safetensors",
        "second/sparsity.safetensors",
    ]
    assert repository.private
    assert repository.messages == ["Upload SAE a/first", "Upload SAE second", "Add README"]
    assert {r.token for r in server.requests if r.method == "POST"} == {"secret"}
    repository.private = False
    for sae_id, sae in (("a/first", first), ("second", second)):
        again, _, sparsity = load("tester/mine", sae_id)
        assert (sparsity is None) == (sae_id == "a/first")
        for name, value in sae.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)


def test_uploading_a_list_to_a_branch_keeps_an_existing_card(server: HubServer) -> None:
    server.add("tester/mine", {"README.md": b"my own words"})
    first, second = some_saes()
    plan = upload_saes_to_huggingface(
        saes=[first, second, first], repo_id="tester/mine", hf_revision="new", show_progress=False
    )
    assert list(plan.files) == [
        "blocks.0.hook_mlp_out",
        "blocks.1.hook_mlp_out",
        "blocks.0.hook_mlp_out_2",
    ]
    repository = server.repositories["tester/mine"]
    files = repository.commits[repository.branches["new"]]
    assert files["README.md"] == b"my own words"
    assert "blocks.0.hook_mlp_out_2/cfg.json" in files
    assert list(repository.commits[repository.branches["main"]]) == ["README.md"]


def test_nothing_to_upload_is_said() -> None:
    for nothing in ({}, []):
        with pytest.raises(ValueError, match="No SAEs to upload"):
            upload_saes_to_huggingface(nothing, "tester/mine")


def test_an_upload_survives_a_busy_hub(server: HubServer) -> None:
    server.faults = [Fault("/commit/", 503), Fault("/api/repos/create", 429)]
    upload_saes_to_huggingface(saes=some_saes()[:1], repo_id="tester/mine", show_progress=False)
    assert (
        "README.md"
        in server.repositories["tester/mine"].commits[
            server.repositories["tester/mine"].branches["main"]
        ]
    )


def test_an_upload_without_rights_says_so(server: HubServer) -> None:
    server.token = "secret"
    with pytest.raises(Exception, match="401"):
        upload_saes_to_huggingface(
            saes=some_saes(), repo_id="tester/mine", show_progress=False, token="wrong"
        )


def test_a_dry_run_asks_the_hub_nothing(server: HubServer, tmp_path: Path) -> None:
    first, second = some_saes()
    second.save_model(tmp_path / "saved")
    plan = upload_saes_to_huggingface(
        {"one": first, "two": tmp_path / "saved"}, "tester/mine", dry_run=True
    )
    assert server.requests == []
    text = plan.describe()
    assert "tester/mine" in text and "one/cfg.json" in text
    size = (tmp_path / "saved" / "sae_weights.safetensors").stat().st_size
    assert f"two/sae_weights.safetensors  {size:,} bytes" in text
