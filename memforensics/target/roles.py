"""The role of a process, where its command line tells it. Pure: takes the words of /proc/PID/cmdline."""

import re
from collections.abc import Sequence

# Word of the command line -> role. The first that matches wins; the more particular ones stand first.
_ROLES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"VLLM::EngineCore", "vLLM engine"),
        (r"VLLM::Worker", "vLLM worker"),
        (r"sglang::scheduler", "SGLang scheduler"),
        (r"sglang::detokenizer", "SGLang detokenizer"),
        (r"(^|/)vllm serve|-m vllm\.|vllm\.entrypoints", "vLLM server"),
        (r"sglang\.launch_server|-m sglang", "SGLang server"),
        (r"text-generation-(server|launcher|router)", "TGI"),
        (r"text-embeddings-router", "TEI"),
        (r"(^|/)llama-server\b", "llama-server"),
        (r"org\.opensearch\.bootstrap\.OpenSearch", "OpenSearch"),
        (r"org\.elasticsearch\.", "Elasticsearch"),
        (r"(^|/)tritonserver\b", "Triton server"),
        (r"(^|/)ollama\b", "Ollama"),
        (r"ray::", "Ray worker"),
        (r"(^|/| )gunicorn\b", "gunicorn"),
        (r"(^|/| )uvicorn\b", "uvicorn"),
        (r"(^|/| )hypercorn\b", "hypercorn"),
        (r"(^|/| )celery\b", "celery"),
    )
)


def role_of(words: Sequence[str]) -> str | None:
    """`vLLM engine`, `llama-server`, ...; None where the command line tells nothing."""
    line = " ".join(words)
    return next((role for pattern, role in _ROLES if pattern.search(line)), None)
