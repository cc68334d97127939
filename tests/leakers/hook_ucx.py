"""Initialises the UCX whose libucp is the argument, so that UCX installs its memory hooks, and waits."""

import ctypes
import sys
import time

ucp = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
config, context = ctypes.c_void_p(), ctypes.c_void_p()
assert ucp.ucp_config_read(None, None, ctypes.byref(config)) == 0
parameters = (ctypes.c_uint64 * 64)()
parameters[0], parameters[1] = 1, 1 | 2  # field_mask = FEATURES, features = TAG | RMA
assert ucp.ucp_init_version(1, 19, parameters, config, ctypes.byref(context)) == 0
print("ready", flush=True)
time.sleep(600)
