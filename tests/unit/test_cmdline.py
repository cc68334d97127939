"""What of a command line and of an environment is kept, and that nothing else is."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted import planted

from memforensics.remedies.catalogue import load_catalogue
from memforensics.target.cmdline import MAX_WORD, MAX_WORDS, harmless_command, harmless_value
from memforensics.target.environ import allowed_variables


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("vllm serve org/model --max-model-len 8192 --api-key sk-1", "vllm serve org/model --max-model-len 8192 ..."),
        ("vllm serve org/model --max-num-batched-tokens 8192 --enable-prefix-caching", None),
        ("/usr/bin/python3 -u -m vllm.entrypoints.openai.api_server --tensor-parallel-size=8", None),
        ("python3 /srv/app/service.py 200", "python3 /srv/app/service.py ..."),
        ("python -X dev -c secret", "python -X dev -c ..."),
        ("llama-server -m /models/q4_k_m.gguf -c 4096 -ub 2048 --cache-ram 0 --mlock", None),
        ("llama-server --cache-ram=8192 --no-mmap --embedding --pooling mean", None),
        ("java -Xmx4g -XX:MaxDirectMemorySize=1g -cp a.jar org.acme.app.Main x", "java -Xmx4g"
         " -XX:MaxDirectMemorySize=1g -cp ... org.acme.app.Main ..."),
        ("java -Dio.netty.maxDirectMemory=0 -Dpassword=1 -jar app.jar",
         "java -Dio.netty.maxDirectMemory=0 ... -jar app.jar"),
        ("gunicorn app.main:app -w 4 --timeout 30 --max-requests 1000 -b unix:/x", "gunicorn app.main:app -w 4"
         " --timeout 30 --max-requests 1000 -b ..."),
        ("uvicorn app:app --port 8000 --workers 3", None),
        ("server --port 8000 --name alice", "server --port 8000 ..."),
        ("sleep 60", "sleep ..."),
    ],
)  # fmt: skip
def test_known_options_are_kept(words: str, kept: str | None) -> None:
    assert " ".join(harmless_command(words.split())) == (words if kept is None else kept)


def test_titles_set_by_programs() -> None:
    assert harmless_command(["gunicorn: worker [app.main:app]"]) == ("gunicorn:", "worker", "...")
    assert harmless_command(["VLLM::EngineCore"]) == ("VLLM::EngineCore",)
    assert harmless_command(["postgres: alice sales 10.0.0.3"]) == ("postgres:", "...")
    assert harmless_command([]) == ()


def test_200_planted_secrets_are_dropped() -> None:
    found = []
    for words, environment, secret in planted():
        kept = " ".join(harmless_command(words))
        variables = allowed_variables(f"{name}={value}".encode() for name, value in environment.items())
        if secret in kept + " ".join(variable.value for variable in variables):
            found.append((words, environment))
    assert found == []


def test_harmless_values_are_unchanged() -> None:
    for name, value in {
        "MALLOC_CONF": "background_thread:true,dirty_decay_ms:5000",
        "GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.trim_threshold=131072",
        "LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
        "UCX_TLS": "rc,ud,sm,self",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:128",
        "JAVA_TOOL_OPTIONS": "-Xmx2g -XX:+UseG1GC",
    }.items():
        assert harmless_value(name, value) == value


@given(st.lists(st.text(max_size=40), max_size=20))
def test_output_holds_only_words_of_the_input(words: list[str]) -> None:
    allowed = {piece for word in words for piece in (word, word.partition("=")[0] + "=...", *word.split(" "))}
    assert all(word == "..." or word in allowed for word in harmless_command(words))


HARD = """
import resource, sys
from memforensics.target.cmdline import harmless_command, harmless_value, looks_secret
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for word in ["a" * 200_000, "-" * 200_000, "--" + "a-" * 100_000, "://" * 70_000, "a:@" * 70_000, "password=" * 20_000]:
    harmless_command(["server", word, f"--option={word}", word + "password"])
    harmless_value("UCX_X", word)
    looks_secret(word)
"""


def test_long_words_take_linear_time() -> None:
    """4,000 characters took 64 s once, by a cubic filter: here such a filter is killed by its CPU limit."""
    assert subprocess.run([sys.executable, "-c", HARD], check=False).returncode == 0


def test_long_command_lines_are_cut() -> None:
    kept = harmless_command(["server", *["--port", "1"] * MAX_WORDS])
    assert len(kept) <= MAX_WORDS + 1
    assert kept[-1] == "..."
    assert harmless_command(["x" * (MAX_WORD + 1)]) == ("...",)


def test_options_of_the_catalogue_are_kept() -> None:
    """A condition on the command line cannot be met, or is always met, where the filter hides its option."""
    text = " ".join(str(entry) for entry in load_catalogue())
    for option in ("--cache-ram", "-cram"):
        assert option in text
        assert harmless_command(["llama-server", option, "0"]) == ("llama-server", option, "0")
