"""Roles by command line: as these programs are really started, and command lines that only mention them."""

import pytest

from memforensics.target.software import role_of

STARTED = {
    "VLLM::EngineCore": "vLLM engine",
    "VLLM::EngineCore_DP0": "vLLM engine",
    "VLLM::Worker_TP1": "vLLM worker",
    "/usr/bin/python3 /usr/local/bin/vllm serve Qwen/Qwen3-8B --port 8000": "vLLM server",
    "python3 -m vllm.entrypoints.openai.api_server --model m": "vLLM server",
    "sglang::scheduler_TP0": "SGLang scheduler",
    "sglang::detokenizer": "SGLang detokenizer",
    "python -m sglang.launch_server --model-path m": "SGLang server",
    "/opt/venv/bin/python /opt/venv/bin/sglang serve --model-path m": "SGLang server",
    "text-generation-launcher --model-id m": "TGI launcher",
    "text-generation-router --port 80": "TGI router",
    "/opt/conda/bin/python3.11 /opt/conda/bin/text-generation-server serve m --shard": "TGI server",
    "text-embeddings-router --model-id m": "TEI",
    "./build/bin/llama-server -m model.gguf -c 4096": "llama-server",
    "/app/llama-server --port 8080": "llama-server",
    "python -X dev -u -m llama_cpp.server --model m.gguf": "llama-server (llama-cpp-python)",
    "/usr/share/opensearch/jdk/bin/java -Xms1g -cp /usr/share/opensearch/lib/* org.opensearch.bootstrap.OpenSearch":
        "OpenSearch",
    "gunicorn: master [app:app]": "gunicorn master",
    "gunicorn: worker [app:app]": "gunicorn worker",
    "/venv/bin/python /venv/bin/gunicorn -w 4 app:app": "gunicorn",
    "/venv/bin/python3.12 /venv/bin/uvicorn main:app --workers 2": "uvicorn",
    "python -m uvicorn main:app": "uvicorn",
    "ray::RayWorkerWrapper.execute_method": "Ray worker",
    "/usr/local/bin/ollama serve": "Ollama",
}  # fmt: skip
OTHERS = [
    "",
    "python",
    "python train.py --notes uvicorn",
    "pip install gunicorn vllm",
    "vim llama-server.md",
    "grep -r sglang .",
    "python -c import vllm",
    "tail -f /var/log/opensearch/org.opensearch.bootstrap.OpenSearch.log",
    "bash -c python -m vllm.entrypoints.openai.api_server",
    "/usr/bin/python3 /srv/vllm_proxy.py",
]


@pytest.mark.parametrize("line", STARTED)
def test_role_of_a_started_program(line: str) -> None:
    assert role_of(line.split(" ")) == STARTED[line]


@pytest.mark.parametrize("line", OTHERS)
def test_mention_gives_no_role(line: str) -> None:
    assert role_of(line.split(" ") if line else []) is None
