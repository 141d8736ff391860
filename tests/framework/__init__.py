"""What integration and fault tests are written with: bundles, runtimes, containers, terminals, engines, the host.

A test states the contract of an OCI runtime, so it runs on runc too: `RUNTIME=runc pytest tests/integration`.
"""
