"""Sets variables after its start, as vLLM and NIXL do for UCX, then prints "ready"."""

import os
import sys

os.environ["UCX_RCACHE_MAX_UNRELEASED"] = "1024"
os.environ["OWN_PASSWORD"] = "secret"
print("ready", flush=True)
sys.stdin.readline()
