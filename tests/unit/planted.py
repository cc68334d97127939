"""200 secrets in the places where programs receive them: (command line, environment, the secret)."""

import random
import string

_ALPHABET = string.ascii_letters + string.digits


def _word(rng: random.Random, kind: int) -> str:
    """A secret of some shape: random, hexadecimal, two words, digits, with a known prefix, with punctuation."""
    letters = "".join(rng.choices(_ALPHABET, k=rng.randint(12, 40)))
    return (
        letters,
        "".join(rng.choices("0123456789abcdef", k=32)),
        f"hunter{rng.randint(100, 999)}horse",
        str(rng.randint(10**7, 10**9)),
        "sk-" + letters,
        f"Pa/ss{letters[:6]}!",
        "ghp_" + letters,
        f"correcthorse{letters[:4].lower()}",
    )[kind % 8]


_COMMANDS = """
server --api-key {}
server --api-key A {}
server --api_key={}
server --token {}
server --tokens {}
server --key {}
server --pwd {}
server --pass {}
server --password={}
server --passphrase {}
server --bearer {}
server --access-key={}
server --secret-key {}
server --cookie {}
server --auth {}
server --credentials {}
server -u user:{}
server -p{}
server -p {}
server {}
server start {}
curl -H Authorization:{}
curl -H|Authorization: Bearer {}
curl -H|X-Api-Key: {}
curl https://host/path?sig={}
curl https://{}@host/path
curl https://user:{}@host/path
redis-cli -u redis://:{}@host
worker postgres://me:{}@db/x
worker --broker redis://:{}@host:6379/0
worker --broker=amqp://guest:{}@host//
python -c|import x; x.login("{}")
python -m app.server --db postgresql://a:{}@b/c
python -m app.server {}
python server.py {}
python server.py --config|{{"api_key":"{}"}}
python server.py --config={{"token":"{}"}}
node server.js --jwt {}
node --require|./x.js server.js {}
java -Dpassword={} org.acme.app.Main
java -Djavax.net.ssl.keyStorePassword={} -jar app.jar
java -jar app.jar --spring.datasource.password={}
java -cp a.jar org.acme.app.Main {}
bash -c|export TOKEN={}; exec server
sh -c|mysql -p{}
mysql -uroot -p{}
mysqldump --password={} db
env TOKEN={} server
vllm serve org/model --api-key {}
vllm serve org/model --hf-token {}
vllm serve {}
uvicorn app:app --ssl-keyfile-password {}
gunicorn app:app --env|SECRET={}
gunicorn app:app -e|KEY={}
llama-server -m model.gguf --api-key {}
llama-server {}
torchrun --rdzv-conf|token={} train.py
celery -A app worker -b|redis://:{}@h/0
openssl enc -pass|pass:{}
ssh -o|ProxyCommand=sshpass -p {} x
wget --header|Cookie: session={}
server --unknown-option {}
server --unknown={}
server -x {}
server -- {}
title:|{}
""".strip().splitlines()

_VARIABLES = """
JAVA_OPTS -Xmx2g -Dpassword={} -Dx=1
JAVA_TOOL_OPTIONS -javaagent:/a.jar=token={}
NODE_OPTIONS --require=/x.js --token={}
OPENSEARCH_JAVA_OPTS -Dpass={}
ES_JAVA_OPTS -Dkeystore.secret={} -Xms1g
RAY_ADDRESS ray://user:{}@host:1
VLLM_ARGS --api-key {}
NCCL_CONF token={}
UCX_NOTE password:{}
UCX_NOTE Authorization: Bearer {}
UCX_URL https://me:{}@host/
LMCACHE_REMOTE_URL redis://:{}@host:6379
TORCH_NOTE api_key={},x=1
MALLOC_CONF narenas:1,secret:{}
""".strip().splitlines()


def planted() -> list[tuple[list[str], dict[str, str], str]]:
    """The 200 secrets, the same each time."""
    rng = random.Random(200)
    out: list[tuple[list[str], dict[str, str], str]] = []
    at = 0
    while len(out) < 200:
        template = (_COMMANDS + _VARIABLES)[at % (len(_COMMANDS) + len(_VARIABLES))]
        secret = _word(rng, at + at // (len(_COMMANDS) + len(_VARIABLES)))
        at += 1
        if template in _VARIABLES:
            name, _, value = template.partition(" ")
            out.append((["server"], {name: value.format(secret)}, secret))
            continue
        head, *tail = template.split("|")
        words = [*head.split(), *tail[:1]] if "|" in template else template.split()
        out.append(([word.format(secret) for word in words], {}, secret))
    return out
