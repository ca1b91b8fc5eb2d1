"""Neuronpedia against a local server; the explainer package is a small fake."""

import asyncio
import json
import logging
import random
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace

import pytest

from sae_lens.analysis import neuronpedia_integration as neuronpedia
from sae_lens.analysis.neuronpedia_integration import NeuronpediaActivation, NeuronpediaFeature


class Server:
    """Answers with what a test puts into `answers`, and keeps what it was asked."""

    def __init__(self):
        self.requests = []
        self.answers = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                outer.requests.append(
                    SimpleNamespace(
                        method=self.command,
                        path=self.path,
                        key=self.headers.get("x-api-key"),
                        body=json.loads(body) if body else None,
                    )
                )
                status, answer = outer.answers.get(self.path, (404, {"error": "not here"}))
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = _answer

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(neuronpedia, "NEURONPEDIA_DOMAIN", server.url)
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def opened(monkeypatch):
    urls = []
    monkeypatch.setattr(neuronpedia.webbrowser, "open", urls.append)
    return urls


def sae_with_id(neuronpedia_id="gpt2-small/8-res-jb"):
    return SimpleNamespace(
        cfg=SimpleNamespace(neuronpedia_id=neuronpedia_id, model_name="gpt2-small")
    )


@pytest.mark.parametrize(
    ("text", "value"), [("-Infinity", -9999.0), ("Infinity", 9999.0), ("NaN", 0.0), ("what", 0.0)]
)
def test_constants_that_json_lacks_become_finite(text, value):
    replaced = neuronpedia.NanAndInfReplacer(text)
    assert replaced == value
    assert isinstance(replaced, float)


def test_dashboard_is_opened(opened):
    neuronpedia.open_neuronpedia_feature_dashboard(sae_with_id(), 123)
    assert opened == ["https://neuronpedia.org/gpt2-small/8-res-jb/123"]


def test_without_an_id_nothing_is_opened(opened, caplog):
    with caplog.at_level(logging.WARNING):
        neuronpedia.open_neuronpedia_feature_dashboard(sae_with_id(None), 123)
        with pytest.raises(AssertionError, match="neuronpedia_id"):
            neuronpedia.get_neuronpedia_quick_list(sae_with_id(None), [1])
    assert caplog.text.count("neuronpedia_id") >= 2
    assert opened == []


def test_quick_list_url(opened):
    url = neuronpedia.get_neuronpedia_quick_list(sae_with_id(), [4, 17], name="my list & more")
    assert opened == [url]
    parts = urllib.parse.urlsplit(url)
    query = urllib.parse.parse_qs(parts.query)
    assert (parts.netloc, parts.path) == ("neuronpedia.org", "/quick-list/")
    assert query["name"] == ["my list & more"]
    assert json.loads(query["features"][0]) == [
        {"modelId": "gpt2-small", "layer": "8-res-jb", "index": "4"},
        {"modelId": "gpt2-small", "layer": "8-res-jb", "index": "17"},
    ]


def test_fetching_a_feature(server):
    server.answers["/api/feature/gpt2-small/8-res-jb/4"] = (
        200,
        '{"index": "4", "maxActApprox": NaN, "values": [Infinity, -Infinity]}',
    )
    feature = neuronpedia.get_neuronpedia_feature(4, 8)
    assert feature == {"index": 4, "maxActApprox": 0.0, "values": [9999.0, -9999.0]}


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, {}, "401.*API key"),
        (404, {}, "404.*names"),
        (429, {}, "429.*too many requests"),
        (500, {}, "500.*try again later"),
        (200, "<html>", "did not answer with JSON"),
        (200, {"error": "unknown"}, "gave no feature.*unknown"),
    ],
)
def test_refusals_say_what_to_do(server, status, answer, message):
    server.answers["/api/feature/m/1-d/2"] = (status, answer)
    with pytest.raises(RuntimeError, match=message):
        neuronpedia.get_neuronpedia_feature(2, 1, model="m", dataset="d")


@pytest.mark.parametrize("open_browser", [True, False])
def test_making_a_list_returns_its_url(server, opened, open_browser):
    server.answers["/api/list/new-with-features"] = (200, {"url": "https://x/list"})
    features = [NeuronpediaFeature("gpt2-small", 8, "res-jb", 4, "about cats")]
    url = neuronpedia.make_neuronpedia_list_with_features(
        "secret", "cats", features, "all cats", open_browser=open_browser
    )
    assert url == "https://x/list"
    assert opened == ([url] if open_browser else [])
    (request,) = server.requests
    assert request.key == "secret"
    assert request.body == {
        "name": "cats",
        "description": "all cats",
        "features": [
            {
                "modelId": "gpt2-small",
                "layer": "8-res-jb",
                "index": 4,
                "description": "about cats",
            }
        ],
    }


def test_a_list_without_url_is_an_error(server, opened):
    server.answers["/api/list/new-with-features"] = (200, {"message": "no"})
    with pytest.raises(RuntimeError, match="not made"):
        neuronpedia.make_neuronpedia_list_with_features("k", "n", [])
    assert opened == []


def test_key_check(server):
    server.answers["/api/test"] = (200, {})
    neuronpedia.test_key("good")
    assert server.requests[0].body == {"apiKey": "good"}
    server.answers["/api/test"] = (403, {})
    with pytest.raises(RuntimeError, match="403"):
        neuronpedia.test_key("bad")


def test_collectors_do_not_take_the_key_check_for_a_test():
    assert neuronpedia.test_key.__test__ is False


def test_activating_text():
    feature = NeuronpediaFeature("m", 1, "d", 2)
    assert not feature.has_activating_text()
    feature.activations = [
        NeuronpediaActivation("a", ["x"], [0.0]),
        NeuronpediaActivation("b", [], []),
    ]
    assert not feature.has_activating_text()
    feature.activations.append(NeuronpediaActivation("c", ["x", "y"], [0.0, 0.5]))
    assert feature.has_activating_text()
    assert (feature.description, feature.autointerp_explanation_score) == ("", 0.0)


def test_sleep_identity():
    assert neuronpedia.sleep_identity(3) == 3


@pytest.fixture
def explainer(monkeypatch):
    """A package of the explainer's shape that explains everything as 'cats.'."""
    log = SimpleNamespace(explained=[], scored=[], failures=0, score=0.5)

    class Explainer:
        def __init__(self, **kwargs):
            log.explainer_model = kwargs["model_name"]

        async def generate_explanations(self, **kwargs):
            log.explained.append(kwargs)
            if log.failures:
                log.failures -= 1
                raise OSError("overloaded")
            return ["cats."]

    class Simulator:
        def __init__(self, model_name, explanation, **kwargs):
            self.model_name, self.explanation = model_name, explanation

    async def simulate_and_score(simulator, records):
        log.scored.append((simulator.model_name, simulator.explanation, len(records)))
        return SimpleNamespace(get_preferred_score=lambda: log.score)

    modules = {
        "activations": {},
        "activations.activation_records": {
            "calculate_max_activation": lambda rs: max(max(r.activations) for r in rs)
        },
        "activations.activations": {"ActivationRecord": SimpleNamespace},
        "explanations": {},
        "explanations.calibrated_simulator": {"UncalibratedNeuronSimulator": lambda s: s},
        "explanations.explainer": {"TokenActivationPairExplainer": Explainer},
        "explanations.few_shot_examples": {
            "FewShotExampleSet": SimpleNamespace(JL_FINE_TUNED="tuned")
        },
        "explanations.prompt_builder": {"PromptFormat": SimpleNamespace(HARMONY_V4="harmony")},
        "explanations.scoring": {"simulate_and_score": simulate_and_score},
        "explanations.simulator": {"LogprobFreeExplanationTokenSimulator": Simulator},
    }
    monkeypatch.setitem(sys.modules, "neuron_explainer", ModuleType("neuron_explainer"))
    for name, members in modules.items():
        module = ModuleType(f"neuron_explainer.{name}")
        for member, value in members.items():
            setattr(module, member, value)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        parent, _, child = module.__name__.rpartition(".")
        setattr(sys.modules[parent], child, module)
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)
    return log


def serve_feature(server, activations):
    server.answers["/api/test"] = (200, {})
    server.answers["/api/explanation/new"] = (200, {})
    server.answers["/api/feature/m/1-d/2"] = (200, {"index": "2", "activations": activations})
    return NeuronpediaFeature("m", 1, "d", 2)


ACTIVATIONS = [{"id": str(i), "tokens": ["a", "b"], "values": [0.0, float(i)]} for i in range(30)]


def autointerp(feature, **kwargs):
    asyncio.run(neuronpedia.autointerp_neuronpedia_features([feature], **kwargs))


def test_explaining_scoring_saving_and_uploading(server, explainer, tmp_path):
    feature = serve_feature(server, ACTIVATIONS)
    explainer.failures = 2
    autointerp(feature, neuronpedia_api_key="np", output_dir=str(tmp_path / "out"))

    assert feature.autointerp_explanation == "cats"
    assert feature.autointerp_explanation_score == 0.5
    assert len(explainer.explained) == 3
    assert explainer.explained[0]["max_activation"] == 29.0
    assert len(explainer.explained[0]["all_activation_records"]) == 20
    assert explainer.scored == [("gpt-3.5-turbo", "cats", 20)]

    (saved,) = (tmp_path / "out").iterdir()
    assert saved.name.startswith("m-1-d_feature-2_time-")
    assert saved.suffix == ".jsonl"
    record = json.loads(saved.read_text())
    assert record["explanation"] == "cats"
    assert record["explanationScore"] == 0.5
    upload = server.requests[-1]
    assert (upload.path, upload.key) == ("/api/explanation/new", "np")
    assert upload.body == {"feature": record}


def test_explaining_only(server, explainer, tmp_path):
    feature = serve_feature(server, ACTIVATIONS)
    autointerp(
        feature, upload_to_neuronpedia=False, do_score=False, save_to_disk=False,
        output_dir=str(tmp_path / "out"), max_explanation_activation_records=3,
        autointerp_scorer_model_name=None,
    )  # fmt: skip
    assert len(explainer.explained[0]["all_activation_records"]) == 3
    assert explainer.scored == []
    assert [r.path for r in server.requests] == ["/api/feature/m/1-d/2"]
    assert not (tmp_path / "out").exists()


def test_an_undefined_score_is_zero(server, explainer):
    feature = serve_feature(server, ACTIVATIONS)
    explainer.score = float("nan")
    autointerp(feature, upload_to_neuronpedia=False, save_to_disk=False)
    assert feature.autointerp_explanation_score == 0.0


def test_too_many_failures_are_reported(server, explainer):
    feature = serve_feature(server, ACTIVATIONS)
    explainer.failures = 99
    with pytest.raises(RuntimeError, match="in 2 attempts: overloaded"):
        autointerp(feature, upload_to_neuronpedia=False, autointerp_retry_attempts=2)


@pytest.mark.parametrize(
    ("activations", "message"),
    [([], "no activations"), ([{"id": "0", "tokens": ["a"], "values": [0.0]}], "dead")],
)
def test_features_without_activations_are_refused(server, explainer, activations, message):
    feature = serve_feature(server, activations)
    with pytest.raises(ValueError, match=message):
        autointerp(feature, upload_to_neuronpedia=False)


def test_keys_and_models_are_checked_first(server, explainer, monkeypatch):
    feature = serve_feature(server, ACTIVATIONS)
    with pytest.raises(ValueError, match="neuronpedia_api_key"):
        autointerp(feature)
    for argument in ("autointerp_explainer_model_name", "autointerp_scorer_model_name"):
        with pytest.raises(ValueError, match=f"{argument} is 'other'"):
            autointerp(feature, upload_to_neuronpedia=False, **{argument: "other"})
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        autointerp(feature, upload_to_neuronpedia=False)
    assert server.requests == []


def test_a_missing_explainer_package_is_named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk")
    monkeypatch.setitem(sys.modules, "neuron_explainer", None)
    with pytest.raises(ImportError, match="pip install automated-interpretability"):
        autointerp(NeuronpediaFeature("m", 1, "d", 2), upload_to_neuronpedia=False)


def test_importing_reads_no_environment_file(tmp_path):
    (tmp_path / ".env").write_text("MARKER_FROM_ENV_FILE=1\n")
    code = (
        "import os, sys, sae_lens.analysis.neuronpedia_integration\n"
        "assert 'MARKER_FROM_ENV_FILE' not in os.environ\n"
        "assert not {'neuron_explainer', 'openai', 'dotenv'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
