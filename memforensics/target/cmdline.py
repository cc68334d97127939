"""The words of a command line that may be kept. Pure: takes the words of /proc/PID/cmdline.

An argument can hold a password, a prompt or a customer's name, in any position and under any option. So there is an
allow-list: the program, the script or module that it runs, and known options with values of a harmless shape (numbers,
sizes, names, paths) are kept. Any run of other words becomes `...`.

The target chooses its own arguments, so the text is cut first and every filter takes linear time.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from memforensics.text import basename


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LEFT_OUT = "..."
MAX_WORDS = 512  # of a command line
MAX_WORD = 512  # characters; no harmless word is longer

# An option is kept if each part of its name (--max-model-len: max, model, len) is one of these.
_PARTS = _words("""
    accept active allow alloc arena async attention attn auto backlog batch batched batching batches blas block blocks
    bits buffer bucket buckets budget bytes cache caching capture checkpoint checkpoints chunk chunked chunks compile
    concurrency concurrent concurrency connections cont context count cpu cpus ctx cuda cudagraph data decay decode deep
    default defrag delay depth deterministic device devices dim disable distributed dp draft dtype dynamic eager embd
    embedding embeddings enable engine entries ep eval exec executor expandable expert experts factor fetch flash float
    force fp fraction freq gb gc gpu gpus graceful graph graphs group groups grpc headers heap hidden hop host http huge
    hugepages id idle images index init input instance instances interval iterations iteration jit jobs keep kernel kv
    layer layers len length level limit limits live load local lock log logging logs long lookahead lora loras low max
    mb mem memory metric metrics min mixed mlock mm mmap mode model moe mp multi multimodal native ngl no node nodes non
    num numa nnodes off offload on oom open out output pages paged parallel parallelism param partial patience percent
    period pinned pipeline pool pooling port poll pp prealloc predict prefetch prefill prefix preload preemption process
    processes profile prompt proxy purge pull queue ram random range rank rate ratio read refresh reload remote repeat
    replicas request requests reserve reserved resident retries retry reuse root rope rounds rpc sample samples
    sampling scale scheduler scheduling seconds seed self seq seqs sequence sequences serve server session sessions
    shard shards shared shm shutdown size skip sleep slot slots sock sockets speculative split stages start static stats
    step steps stop stream streams swap sync system tasks task temp tensor thread threads threshold throttle tier time
    timeout tp trace tracing train trim trust tune tuning ubatch unified unlimited unload update usage use util
    utilization verbose verbosity version vocab wait warmup watch weights window worker workers world write zero
    code
    """)
_COUNTED = frozenset({"token", "tokens"})  # --max-tokens counts; --token is a secret
_COUNTS = frozenset({"max", "min", "num", "batched", "total", "prompt", "new"})
# Short options of interpreters, servers and llama.cpp; they are kept, with their value if it is a number.
_SHORT = _words("-c -b -ub -t -tb -np -ngl -n -w -O -OO -u -I -E -s -S -B -cb -fa -cram -sm -mg -q -v -tp -dp -pp")
# Options whose value names software, never a person or a service.
_NAMED = _words("""
    --model --model-path --model-name --model-id --tokenizer --served-model-name --dtype --kv-cache-dtype --quantization
    --load-format --load-mode --pooling --pooling-type --device --attention-backend --distributed-executor-backend
    --log-level --worker-class --kv-role --runner --task --architecture --cache-type-k --cache-type-v --split-mode
    --numa --model-impl --convert --embedding-backend --mem-fraction-static --schedule-policy
    """)
_TRUTH = re.compile(r"(?:true|false|auto|none|on|off|yes|no|all)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d{1,15}(?:[.:,x]\d{1,15}){0,8}(?:[kmgt]i?b?|b|%|s|ms|us|m|h)?", re.IGNORECASE)
_OPTION_NAME = re.compile(r"--?[A-Za-z][A-Za-z0-9]*(?:[-_.][A-Za-z0-9]+){0,8}")
_PATH = re.compile(r"[\w./+:~-]+")
_PROGRAM = re.compile(r"[\w./+:~()\[\]-]+")
_SCRIPT = re.compile(r"[\w./+~-]+\.(?:py|pyz|pyc|js|mjs|cjs|ts|jar|sh|rb|pl|php|lua|R)")
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?::[A-Za-z_]\w*(?:\(\))?)?")
_CLASS = re.compile(r"[a-z]\w*(?:\.\w+){2,12}")
_MODEL = re.compile(r"[\w.-]+/[\w.-]+|[\w./-]+\.(?:gguf|safetensors|onnx|pt|bin)")
_JVM = re.compile(
    r"-X(?:mx|ms|mn|ss|log|int|comp|share|batch|rs|mixed)[\w:.=,+-]{0,60}"
    r"|-XX:(?:[+-]\w{1,60}|\w{1,60}=(?:\d{1,15}[kKmMgG]?|true|false))"
    r"|-D(?:io\.netty|jdk\.nio|jdk\.internal|java\.awt|java\.net|sun\.nio|netty|log4j2?|lucene)\.[\w.]{1,80}"
    r"=(?:\d{1,15}|true|false)|-server|-client|-d64|-ea|-da"
)
_INTERPRETERS = re.compile(r"(?:python|pypy|node|nodejs|deno|bun|ruby|perl|php|lua|Rscript|bash|sh|dash|java)[\d.]*t?")
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*t?")
_LAUNCHERS = _words(
    "uvicorn gunicorn hypercorn celery torchrun accelerate granian flask fastapi daphne waitress-serve dask ray"
)
_VERBS = _words(
    "serve server run worker start launch chat complete api predict runner beat up dev api_server launch_server"
)

# --- secrets, in any position ----------------------------------------------------------------------------------------

_SECRET_PREFIX = re.compile(
    r"(?:sk|pk|rk|ghp|gho|ghu|ghs|ghr|hf|npm|pypi|glpat|gsk|xai|nvapi|whsec|dop_v1|shpat|sq0|key|tok)[-_][\w-]{6,}"
    r"|github_pat_\w{6,}|xox[a-z]-[\w-]{6,}|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{8,}|AIza[\w-]{10,}|ya29\.[\w-]{6,}"
    r"|eyJ[\w-]{8,}|SG\.[\w-]{8,}"
)
_RUN = re.compile(r"[A-Za-z0-9]{20,}")
_SECRET_WORD = re.compile(
    r"pass|pwd|secret|token|credential|auth|cookie|bearer|signature|api[-_]?key|access[-_]?key|private", re.IGNORECASE
)
_MIN_ENTROPY = 3.0  # bits a character of a run of 20 and more: random hex has about 3.6, English words about 2.5


def looks_secret(text: str) -> bool:
    """Whether the text looks like a key: a known prefix, or a long run of letters and digits without a pattern."""
    if _SECRET_PREFIX.search(text):
        return True
    for match in _RUN.finditer(text):
        run = match[0]
        mixed = any(c.isdigit() for c in run) and any(c.isalpha() for c in run)
        if (mixed or len(run) >= 32) and _entropy(run) >= _MIN_ENTROPY:
            return True
    return False


def _entropy(text: str) -> float:
    """Shannon entropy, bits a character."""
    n = len(text)
    return -sum(count / n * math.log2(count / n) for count in Counter(text).values())


# --- command lines --------------------------------------------------------------------------------------------------


def harmless_command(words: Sequence[str]) -> tuple[str, ...]:
    """The command line with only the words that are known to be harmless."""
    kept = list(_kept(words[:MAX_WORDS]))
    if len(words) > MAX_WORDS:
        kept.append(None)
    return _joined(kept)


def harmless_options(words: Iterable[str]) -> tuple[str, ...]:
    """The same for options without a program: JAVA_TOOL_OPTIONS, NODE_OPTIONS."""
    return _joined(list(_options(list(words)[:MAX_WORDS], 0, "")))


def _joined(kept: Sequence[str | None]) -> tuple[str, ...]:
    out: list[str] = []
    for word in kept:
        if word is not None:
            out.append(word)
        elif not out or out[-1] != LEFT_OUT:
            out.append(LEFT_OUT)
    return tuple(out)


def _kept(words: Sequence[str]) -> Iterator[str | None]:
    if not words:
        return
    title, space, rest = words[0][: MAX_WORD + 1].partition(" ")
    yield title if _fits(_PROGRAM, title) else None
    if space:  # a title that the program gave itself: "gunicorn: worker [app]"
        role = rest.partition(" ")[0]
        yield role if role in ("master", "worker", "process") else None
        if rest != role:
            yield None
    if len(words) == 1:
        return
    program = basename(title)
    at = 1
    if _INTERPRETERS.fullmatch(program):
        at, shown = _interpreted(words, bool(_PYTHON.fullmatch(program)), program == "java")
        yield from shown
    elif program in _LAUNCHERS or words[1] in _VERBS:
        yield from _started(words[1:2])
        at = 2
    yield from _options(words, at, program)


def _interpreted(words: Sequence[str], is_python: bool, is_java: bool) -> tuple[int, list[str | None]]:
    """The interpreter's own options, and what it runs: (the next word's number, what is kept)."""
    at, shown = 1, list[str | None]()
    while at < len(words) and words[at].startswith("-"):
        word = words[at]
        if is_python and word == "-m" and at + 1 < len(words):
            module = words[at + 1]
            shown += [word, module if _fits(_MODULE, module) else None]
            return at + 2, shown
        if word in ("-c", "-e", "--eval", "-p", "-r"):  # code
            return at + 2, [*shown, word, None]
        if is_java and word == "-jar" and at + 1 < len(words):
            return at + 2, [*shown, word, words[at + 1] if _fits(_SCRIPT, words[at + 1]) else None]
        if is_java and word in ("-cp", "-classpath", "--class-path", "-p", "--module-path", "--add-modules"):
            shown += [word, None]
            at += 2
            continue
        if is_java:
            shown.append(word if _fits(_JVM, word) else None)
        elif is_python and word in ("-X", "-W") and at + 1 < len(words):
            value = words[at + 1]
            shown += [word, value if _fits(_MODULE, value.partition("=")[0]) and len(value) < 60 else None]
            at += 1
        else:
            shown.append(word if word in _SHORT or re.fullmatch(r"-[bBdEhiIOqsSuvVxPR]{1,4}", word) else None)
        at += 1
    if at < len(words):
        word = words[at]
        started = _fits(_SCRIPT, word) or (is_java and _fits(_CLASS, word)) or ("/" in word and _fits(_PATH, word))
        shown.append(word if started and not _SECRET_WORD.search(word) else None)
        at += 1
    return at, shown


def _started(words: Sequence[str]) -> Iterator[str | None]:
    for word in words:
        fits = word in _VERBS or (":" in word and _fits(_MODULE, word)) or word.startswith("-")
        yield word if fits and (not word.startswith("-") or _is_harmless(word)) else None


def _options(words: Sequence[str], at: int, program: str) -> Iterator[str | None]:
    verb = words[at - 1] if at > 0 else ""
    while at < len(words):
        word = words[at]
        following = words[at + 1] if at + 1 < len(words) else None
        if not word.startswith("-"):
            is_model = verb in ("serve", "run", "launch") and _fits(_MODEL, word)
            is_app = program in _LAUNCHERS and ":" in word and _fits(_MODULE, word)
            yield word if word in _VERBS or is_model or is_app else None
            verb = word
            at += 1
            continue
        verb = ""
        name, equals, value = word.partition("=")
        if _fits(_JVM, word):
            yield word
        elif name in _NAMED or (name == "-m" and program.startswith("llama")):
            if equals:
                yield word if _is_name(value) else f"{name}={LEFT_OUT}"
            else:
                yield name
                if following is not None and not following.startswith("-"):
                    yield following if _is_name(following) else None
                    at += 1
        elif name in _SHORT or _is_harmless(name):
            if equals:
                yield word if _is_quantity(value) else f"{name}={LEFT_OUT}"
            else:
                yield name
                if following is not None and _is_quantity(following):
                    yield following
                    at += 1
        else:
            yield None
        at += 1


def _is_harmless(name: str) -> bool:
    """Whether each part of the option's name is a known word."""
    if not _fits(_OPTION_NAME, name) or not name.startswith("--"):
        return False
    parts = re.split(r"[-_.]", name.lstrip("-").lower())
    counted = bool(_COUNTS.intersection(parts))
    return all(part in _PARTS or part.isdigit() or (counted and part in (_COUNTED | _COUNTS)) for part in parts)


def _is_quantity(text: str) -> bool:
    return len(text) <= 64 and (_NUMBER.fullmatch(text) is not None or _TRUTH.fullmatch(text) is not None)


def _is_name(text: str) -> bool:
    return _is_quantity(text) or (_fits(_PATH, text) and "//" not in text)


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= MAX_WORD and pattern.fullmatch(text) is not None and not looks_secret(text)


# --- values of environment variables --------------------------------------------------------------------------------

_OPTIONS_VARIABLE = re.compile(r"\w*(?:OPTS|OPTIONS|ARGS|FLAGS)")
_SEPARATOR = re.compile(r"([\s,;|]+)")


def harmless_value(name: str, value: str) -> str:
    """The value of an allow-listed variable without anything that looks like a secret. Options are filtered as on a
    command line. In any other value a piece that names or looks like a secret becomes `...`, and the text before an @,
    too."""
    if _OPTIONS_VARIABLE.fullmatch(name):
        return " ".join(harmless_options(value.split()))
    out: list[str] = []
    hide = False  # to the end of the list item: "Authorization: Bearer ..." has two words
    for piece in _SEPARATOR.split(value):
        if _SEPARATOR.fullmatch(piece) or not piece:
            hide = hide and piece.isspace()
            out.append(piece)
            continue
        key, mark, _ = piece.partition("=") if "=" in piece else piece.partition(":")
        if hide or looks_secret(piece):
            out.append(LEFT_OUT)
        elif _SECRET_WORD.search(key):
            out.append(f"{key}{mark}{LEFT_OUT}" if mark else piece)
            hide = not mark or piece.endswith(mark)
        elif "@" in piece:
            out.append(LEFT_OUT + piece[piece.rindex("@") :])
        else:
            out.append(piece)
    return "".join(out)
