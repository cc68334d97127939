"""Known software, recognised by names and first bytes: the role of a process, the runtimes in it, a file's format.

To add one, add a row to ROLES_BY_TITLE, ROLES_BY_PROGRAM, ROLES_BY_CLASS, RUNTIMES or FORMATS, and a test. Pure.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from memforensics.case.model import Runtime
from memforensics.text import basename

_Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return tuple((re.compile(pattern), name) for pattern, name in pairs)


# --- the role of a process -------------------------------------------------------------------------------------------

# The start of a title that the program set itself (setproctitle).
ROLES_BY_TITLE = _rules(
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
# The program, or the script or module that a Python runs, with its first argument: "vllm serve".
ROLES_BY_PROGRAM = _rules(
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
# The main class of a Java program.
ROLES_BY_CLASS = {
    "org.opensearch.bootstrap.OpenSearch": "OpenSearch",
    "org.elasticsearch.bootstrap.Elasticsearch": "Elasticsearch",
    "org.elasticsearch.server/org.elasticsearch.bootstrap.Elasticsearch": "Elasticsearch",
}
_PYTHON = re.compile(r"(python|pypy)[\d.]*t?")
_OPTIONS_WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")


def role_of(words: Sequence[str]) -> str | None:
    """The role of a process by the words of its command line: `vLLM engine`, `llama-server`, ... None if they tell
    nothing. A name among the other arguments does not count."""
    line = " ".join(words)
    title = _first(ROLES_BY_TITLE, line)
    if title is not None or not words:
        return title
    if basename(words[0]) == "java":
        return next((ROLES_BY_CLASS[word] for word in words if word in ROLES_BY_CLASS), None)
    return _first(ROLES_BY_PROGRAM, _program(words))


def _first(rules: _Rules, text: str) -> str | None:
    return next((name for pattern, name in rules if pattern.match(text)), None)


def _program(words: Sequence[str]) -> str:
    """The name of the program, script or module, and its first argument; "" if Python was given code (-c)."""
    at = 0
    name = basename(words[0])
    if _PYTHON.fullmatch(name):
        at = 1
        while at < len(words) and words[at].startswith("-") and words[at] not in ("-m", "-c", "-"):
            at += 2 if words[at] in _OPTIONS_WITH_VALUE else 1
        if at < len(words) and words[at] == "-m":
            at += 1
        elif at < len(words) and words[at] in ("-c", "-"):
            return ""
        name = basename(words[at]) if at < len(words) else ""
    return " ".join([name, *words[at + 1 : at + 2]])


# --- the runtimes in a process ---------------------------------------------------------------------------------------

# The name of a mapped file. The groups are its version, where the name has it.
RUNTIMES = _rules(
    (r"libpython(\d+\.\d+)t?\.so.*", "cpython"),
    (r"python(\d+\.\d+)t?", "cpython"),
    (r".*\.cpython-(\d)(\d+)t?-.*\.so", "cpython"),
    (r"libc\.so\.6|libc-(\d+\.\d+)\.so", "glibc"),
    (r"ld-musl-.*|libc\.musl-.*", "musl"),
    (r"libjvm\.so", "jvm"),
    (r"libjemalloc.*\.so.*", "jemalloc"),
    (r"libtcmalloc.*\.so.*", "tcmalloc"),
    (r"libmimalloc.*\.so.*", "mimalloc"),
    (r"libtorch_cpu.*\.so", "torch"),
    (r"libonnxruntime\.so(?:\.(\d+\.\d+\.\d+))?", "onnxruntime"),
    (r"libucs(?:-[0-9a-f]+)?\.so.*", "ucx"),
    (r"node", "node"),
)


def runtimes_of(paths: Iterable[str]) -> tuple[Runtime, ...]:
    """The runtimes that the paths of the mapped files name, each once, with a version if any of its files has one."""
    found: dict[str, Runtime] = {}
    for path in sorted(paths):
        name = basename(path)
        match, runtime = next(((m, known) for pattern, known in RUNTIMES if (m := pattern.fullmatch(name))), (None, ""))
        if match is None:
            continue
        version = ".".join(group for group in match.groups() if group) or None
        known = found.get(runtime)
        if known is None or (known.version is None and version is not None):
            found[runtime] = Runtime(name=runtime, version=version, path=path)
    return tuple(found[name] for name in sorted(found))


# --- the format of a file --------------------------------------------------------------------------------------------

HEAD_BYTES = 64  # what `file_format` needs of a file
_MAX_SAFETENSORS_HEADER = 100_000_000  # the limit of safetensors itself


def _is_gguf(head: bytes, _: int) -> bool:
    return head[:4] == b"GGUF" and 1 <= min(int.from_bytes(head[4:8], order) for order in ("little", "big")) <= 255


def _is_safetensors(head: bytes, size: int) -> bool:
    header = int.from_bytes(head[:8], "little")
    fits = head[8:9] == b"{" and 2 <= header <= min(_MAX_SAFETENSORS_HEADER, size - 8)
    return fits and head[9:].lstrip()[:1] in (b'"', b"}")


def _is_ggml(head: bytes, _: int) -> bool:
    return head[:4] in (b"lmgg", b"tjgg", b"fmgg", b"algg")  # 0x67676d6c "ggml", "ggjt", "ggmf", "ggla", little-endian


def _is_pytorch(head: bytes, _: int) -> bool:
    """A ZIP archive whose first entry is NAME/data.pkl (torch.save)."""
    first = head[30:].split(b"PK")[0].partition(b"/")[2][:8]
    return head[:4] == b"PK\x03\x04" and first in (b"data.pkl", b".format_")


def _has(magic: bytes, at: int = 0) -> Callable[[bytes, int], bool]:
    return lambda head, _: head[at : at + len(magic)] == magic


# A test of the first HEAD_BYTES and the size. ONNX files have no magic, and a pickle can hold anything.
FORMATS: tuple[tuple[str, Callable[[bytes, int], bool]], ...] = (
    ("GGUF", _is_gguf),
    ("safetensors", _is_safetensors),
    ("GGML", _is_ggml),
    ("PyTorch", _is_pytorch),
    ("NumPy", _has(b"\x93NUMPY")),
    ("HDF5", _has(b"\x89HDF\r\n\x1a\n")),
    ("TensorFlow Lite", _has(b"TFL3", 4)),
)


def file_format(head: bytes, size: int) -> str | None:
    """The format of a file of model weights, by its first HEAD_BYTES and its size; None for any other file."""
    return next((name for name, matches in FORMATS if matches(head, size)), None)
