"""The packaged registry says what the published data say, and mistakes in such a file are named."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_lens.loading import directory
from sae_lens.loading.converters import CONVERTERS
from sae_lens.loading.registry_file import RegistryFileError, expand_registry, read_registry_file

DATA_FILE = Path(__file__).parent.parent / "data" / "pretrained-registry.jsonl.gz"


def published() -> list[dict[str, Any]]:
    with gzip.open(DATA_FILE, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_every_release_has_the_published_facts() -> None:
    ours = directory.registry()
    theirs = published()
    assert set(ours) == {release["release"] for release in theirs}
    for release in theirs:
        found = ours[release["release"]]
        assert found.repo_id == release["repo_id"]
        assert found.model == release["model"]
        assert found.conversion_func == release["conversion_func"]
        assert (found.config_overrides or {}) == release.get("config_overrides", {})
        assert found.links == release.get("links", {})


def test_every_sae_has_the_published_facts_with_their_types() -> None:
    ours = directory.registry()
    count = 0
    for release in published():
        found = ours[release["release"]].saes
        assert set(found) == {sae[0] for sae in release["saes"]}
        for sae_id, path, *rest in release["saes"]:
            facts = rest[0] if rest else {}
            wanted = (
                sae_id,
                str(path),
                facts.get("neuronpedia"),
                facts.get("l0"),
                facts.get("variance_explained"),
                facts.get("norm_scaling_factor"),
            )
            got = tuple(found[sae_id])
            assert got == wanted
            assert [type(value) for value in got] == [type(value) for value in wanted]
            count += 1
    assert count == 13_857


def test_the_file_stays_readable() -> None:
    lines = directory.REGISTRY_FILE.read_text(encoding="utf-8").split("\n")
    assert len(lines) <= 3_000
    assert max(map(len, lines)) <= 160


def test_every_release_resolves_its_first_and_last_sae_to_a_loader_and_a_path() -> None:
    for name, release in directory.get_pretrained_saes_directory().items():
        assert (release.conversion_func or "sae_lens") in CONVERTERS, name
        ids = list(release.saes_map)
        for sae_id in (ids[0], ids[-1]):
            repo_id, path = directory.get_repo_id_and_folder_name(name, sae_id)
            assert repo_id == release.repo_id and "/" in repo_id
            assert path and "{" not in path


def test_lookups_have_a_value_for_every_id() -> None:
    release = directory.get_pretrained_saes_directory()["gpt2-small-res-jb"]
    assert release.release == "gpt2-small-res-jb"
    assert release.repo_id == "jbloom/GPT2-Small-SAEs-Reformatted"
    assert release.saes_map["blocks.0.hook_resid_pre"] == "blocks.0.hook_resid_pre"
    assert release.config_overrides == {
        "model_from_pretrained_kwargs": {"center_writing_weights": True}
    }
    for values in (release.expected_l0, release.expected_var_explained, release.neuronpedia_id):
        assert set(values) == set(release.saes_map)
    v5 = directory.get_pretrained_saes_directory()["gpt2-small-attn-out-v5-32k"]
    assert set(v5.expected_l0.values()) == {0.0}
    assert set(v5.expected_var_explained.values()) == {1.0}


def test_callers_get_copies() -> None:
    first = directory.get_pretrained_saes_directory()
    release = first["gpt2-small-res-jb"]
    release.saes_map.clear()
    assert release.config_overrides is not None
    release.config_overrides["model_from_pretrained_kwargs"]["center_writing_weights"] = "changed"
    del first["gpt2-small-mlp-tm"]
    again = directory.get_pretrained_saes_directory()
    assert len(again["gpt2-small-res-jb"].saes_map) == 13
    overrides = directory.get_config_overrides("gpt2-small-res-jb", "blocks.0.hook_resid_pre")
    assert overrides["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    assert "gpt2-small-mlp-tm" in again


def test_scaling_factors_and_overrides() -> None:
    assert directory.get_norm_scaling_factor("gpt2-small-mlp-tm", "blocks.0.hook_mlp_out") == (
        1.049317316132615
    )
    assert directory.get_norm_scaling_factor("gpt2-small-res-jb", "blocks.0.hook_resid_pre") is None
    assert directory.get_norm_scaling_factor("nobody/knows", "x") is None
    assert directory.get_config_overrides("gpt2-small-res-jb", "blocks.3.hook_resid_pre") == {
        "model_from_pretrained_kwargs": {"center_writing_weights": True},
        "neuronpedia_id": "gpt2-small/3-res-jb",
    }
    assert directory.get_config_overrides("nobody/knows", "x") == {"neuronpedia_id": None}


def test_unknown_names_get_near_matches() -> None:
    assert directory.get_repo_id_and_folder_name("me/mine", "a/b") == ("me/mine", "a/b")
    with pytest.raises(ValueError, match="blocks.11.hook_resid_pre"):
        directory.get_repo_id_and_folder_name("gpt2-small-res-jb", "blocks.12.hook_resid_pre")
    assert "'gpt2-small-res-jb'" in directory.unknown_release_message("gpt2-small-res-bj")


def test_gemma_scope_points_at_its_canonical_sibling() -> None:
    with pytest.raises(ValueError, match="gemma-scope-2b-pt-res-canonical") as error:
        directory.get_repo_id_and_folder_name(
            "gemma-scope-2b-pt-res", "layer_0/width_16k/canonical"
        )
    assert "layer_0/width_16k/canonical" in str(error.value)
    with pytest.raises(ValueError) as plain:
        directory.get_repo_id_and_folder_name("gemma-scope-2b-pt-res-canonical", "layer_99")
    assert "-canonical-canonical" not in str(plain.value)


def test_search() -> None:
    assert len(directory.search_releases()) == 170
    names = [release.release for release in directory.search_releases("GPT2-small-mlp")]
    assert "gpt2-small-mlp-tm" in names and "gpt2-small-res-jb" not in names
    assert directory.search_releases("gemma-scope-?b-pt-res")
    assert directory.search_releases("no such thing") == []
    assert directory.near_releases("gemma-scope-2b-res-canonical")[0] == (
        "gemma-scope-2b-pt-res-canonical"
    )


def test_reading_it_takes_a_moment_and_happens_on_first_use_only() -> None:
    code = (
        "import sae_lens.loading.directory as d, time\n"
        "assert d._registry.cache_info().misses == 0\n"
        "start = time.process_time(); d.get_pretrained_saes_directory()\n"
        "print(time.process_time() - start)\n"
    )
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(times) < 0.2


GOOD: dict[str, Any] = {
    "mine": {"repo_id": "me/mine", "model": "gpt2", "saes": [{"id": "a", "path": "folder/a"}]}
}


def broken(**changes: Any) -> dict[str, Any]:
    release = {**GOOD["mine"], **changes}
    return {"mine": {key: value for key, value in release.items() if value is not None}}


def test_the_plain_and_the_early_form_are_accepted() -> None:
    assert expand_registry(GOOD) == expand_registry({"SAE_LOOKUP": GOOD})
    assert expand_registry(GOOD)["mine"].saes["a"].path == "folder/a"


def test_groups_expand() -> None:
    table = "layer  l0@width=16k  l0@width=65k\n0-1  5,7  -\n2  -  9.5"
    group = {
        "id": "l{layer}/{width}/{l0}",
        "path": "x/{id}",
        "neuronpedia": "{layer}-{width}",
        "l0": "{l0}",
        "norm_scaling_factor": 2.5,
        "table": table,
    }
    saes = expand_registry(broken(saes=[group]))["mine"].saes
    assert list(saes) == ["l0/16k/5", "l0/16k/7", "l1/16k/5", "l1/16k/7", "l2/65k/9.5"]
    assert tuple(saes["l2/65k/9.5"]) == ("l2/65k/9.5", "x/l2/65k/9.5", "2-65k", 9.5, None, 2.5)
    grid = {
        "id": "{layer}_{target}",
        "path": "{id}",
        "l0": {"layers": 6, "small": "10-20", "big": "60-150"},
        "for": {"layer": "0-2", "target": "small,big_affine"},
    }
    saes = expand_registry(broken(saes=[grid]))["mine"].saes
    assert [sae.l0 for sae in saes.values()] == [10, 60, 15, 105, 20, 150]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "list"),
        ({"mine": "text"}, "'mine'"),
        (broken(repo_id=None), "'repo_id'"),
        (broken(model=None), "'model'"),
        (broken(saes=None), "'saes'"),
        (broken(saes={"id": "a"}), "'saes'"),
        (broken(conversion_fnc="gemma_2"), "'conversion_fnc'"),
        (broken(saes=["a"]), "entry 1"),
        (broken(saes=[{"id": "a"}]), "'path'"),
        (broken(saes=[{"path": "a"}]), "'id'"),
        (broken(saes=[{"id": "a", "path": "b", "repo_id": "nested"}]), "'repo_id'"),
        (broken(saes=[{"id": "a", "path": "b"}] * 2), "twice"),
        (broken(saes=[{"id": "a", "path": "b", "l0": "many"}]), "'l0'"),
        (broken(saes=[{"id": "a", "path": "b", "neuronpedia": 3}]), "'neuronpedia'"),
        (broken(saes=[{"id": "{x}", "path": "b", "for": {"layer": 1}}]), "{x}"),
        (broken(saes=[{"id": "{x}", "path": "b", "for": {"x": 1}, "table": "x\n1"}]), "both"),
        (broken(saes=[{"id": "{x}", "path": "b", "for": "x"}]), "'for'"),
        (broken(saes=[{"id": "{x}", "path": "b", "table": "x y\n1"}]), "1 cells"),
        (broken(saes=[{"id": "{x}", "path": "b", "l0": {"y": 1}, "for": {"x": 1}}]), "'l0'"),
        (broken(saes=[{"id": "{x}", "path": "b", "l0": "{x}k", "for": {"x": 1}}]), "'1k'"),
    ],
)
def test_a_mistake_names_the_release_and_the_key(content: Any, named: str) -> None:
    with pytest.raises(RegistryFileError) as error:
        expand_registry(content)
    assert named in str(error.value)
    if isinstance(content, dict):
        assert "mine" in str(error.value)
    assert isinstance(error.value, KeyError) and isinstance(error.value, ValueError)


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text("mine: [")
    with pytest.raises(RegistryFileError, match="not valid YAML"):
        read_registry_file(file)


def test_the_registry_can_be_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "registry.yaml"
    file.write_text(json.dumps(GOOD))
    monkeypatch.setattr(directory, "REGISTRY_FILE", file)
    assert list(directory.get_pretrained_saes_directory()) == ["mine"]
    assert directory.get_repo_id_and_folder_name("mine", "a") == ("me/mine", "folder/a")
