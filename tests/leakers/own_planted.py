"""A server whose 200 workers have secrets in their arguments or environment (tests/unit/planted.py).

own_planted.py PROGRAM
"""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from planted import planted

workers = [
    subprocess.Popen(words, executable=sys.argv[1], env={"PATH": os.environ["PATH"], **environment})
    for words, environment, _ in planted()
]
print("ready", flush=True)
while True:
    time.sleep(1)
