"""eBPF tracing.

`bpf/`: the C sources. `loader/`: compiles, loads and reads them. `stacks/`: unwind rules and Python frames. `mmap/` and
`faults/`: the two probes. `trace_loop` drives either over a tree of processes.
"""
