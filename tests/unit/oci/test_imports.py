"""config.json is read on every `create`: what that loads is held here."""

import subprocess
import sys
from pathlib import Path

import runvm

HEAVY = ("argparse", "asyncio", "dataclasses", "inspect", "logging", "pathlib", "shutil", "subprocess", "tempfile")
NOT_FOR_IT = ("runvm.oci.hooks", "runvm.oci.defaults", "runvm.oci.features", "runvm.oci.process", "signal", "select")


def test_reading_config_json_loads_little() -> None:
    """-S: the host's site-packages may load anything by .pth files."""
    source = Path(runvm.__file__).parent.parent
    script = f"import sys; sys.path.insert(0, {str(source)!r}); import runvm.oci.spec; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-IS", "-c", script], check=True, capture_output=True, text=True)
    assert {*HEAVY, *NOT_FOR_IT}.isdisjoint(run.stdout.split())
