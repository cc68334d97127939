"""The role of a process, where its command line tells it. Pure: takes the words of /proc/PID/cmdline.

Two things tell: a title that the program gave itself (setproctitle: "VLLM::EngineCore"), and what was started: the
program, or the script or module that a Python was given. A name among the other arguments tells nothing.
"""

import re
from collections.abc import Sequence

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), role) for pattern, role in pairs)


# Of titles: the beginning of the whole line.
_TITLES = _rules(
    (r"VLLM::EngineCore", "vLLM engine"),
    (r"VLLM::Worker", "vLLM worker"),
    (r"VLLM::DPCoordinator", "vLLM coordinator"),
    (r"VLLM::", "vLLM server"),  # ApiServer
    (r"sglang::scheduler", "SGLang scheduler"),
    (r"sglang::detokenizer", "SGLang detokenizer"),
    (r"sglang::", "SGLang server"),
    (r"ray::IDLE", "Ray worker, idle"),
    (r"ray::", "Ray worker"),
    (r"gunicorn: master", "gunicorn master"),
    (r"gunicorn: worker", "gunicorn worker"),
    (r"\[celeryd: ", "celery worker"),
)
# Of what was started, with its first argument: "vllm serve", "sglang.launch_server --model-path".
_STARTED = _rules(
    (r"vllm (serve|chat|complete)\b", "vLLM server"),
    (r"vllm(\.|$)", "vLLM server"),
    (r"sglang(\.| serve\b|$)", "SGLang server"),
    (r"text-generation-launcher\b", "TGI launcher"),
    (r"text-generation-router\b", "TGI router"),
    (r"(text-generation-server|text_generation_server\S*)( |$)", "TGI server"),
    (r"text-embeddings-router\b", "TEI"),
    (r"llama-server\b", "llama-server"),
    (r"llama_cpp\.server\b", "llama-server (llama-cpp-python)"),
    (r"tritonserver\b", "Triton server"),
    (r"ollama runner\b", "Ollama runner"),
    (r"ollama\b", "Ollama"),
    (r"lmdeploy serve\b", "LMDeploy server"),
    (r"raylet\b", "Ray node"),
    (r"gunicorn\b", "gunicorn"),
    (r"uvicorn\b", "uvicorn"),
    (r"hypercorn\b", "hypercorn"),
    (r"celery\b", "celery"),
)
_JAVA_CLASSES = {
    "org.opensearch.bootstrap.OpenSearch": "OpenSearch",
    "org.elasticsearch.bootstrap.Elasticsearch": "Elasticsearch",
    "org.elasticsearch.server/org.elasticsearch.bootstrap.Elasticsearch": "Elasticsearch",
}
_PYTHON = re.compile(r"(python|pypy)[\d.]*t?")
_WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")


def role_of(words: Sequence[str]) -> str | None:
    """`vLLM engine`, `llama-server`, ...; None where the command line tells nothing."""
    line = " ".join(words)
    title = next((role for pattern, role in _TITLES if pattern.match(line)), None)
    if title is not None or not words:
        return title
    if words[0].rpartition("/")[2] == "java":
        return next((_JAVA_CLASSES[word] for word in words if word in _JAVA_CLASSES), None)
    started = _started(words)
    return next((role for pattern, role in _STARTED if pattern.match(started)), None)


def _started(words: Sequence[str]) -> str:
    """The name of the program, script or module, and its first argument; "" where code was given (-c)."""
    at = 0
    name = words[0].rpartition("/")[2]
    if _PYTHON.fullmatch(name):
        at = 1
        while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
            at += 2 if words[at] in _WITH_VALUE else 1
        if at < len(words) and words[at] == "-m":
            at += 1
        elif at < len(words) and words[at] in ("-c", "-"):
            return ""
        name = words[at].rpartition("/")[2] if at < len(words) else ""
    return " ".join([name, *words[at + 1 : at + 2]])
