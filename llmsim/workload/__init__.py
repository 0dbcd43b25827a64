"""Where requests come from: trace readers, arrival processes, length models, prompt identity.

Start with `chunk` (what the engine reads: columns in chunks). `readers` holds one class per
published trace format, `synthetic` the generators. Latent draws happen here, when the workload
is built, from named streams, so that every policy meets the same world.
"""
