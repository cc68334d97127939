"""Everything that observes the live process. One module (or folder) a probe; all speak probes.base.Probe."""
