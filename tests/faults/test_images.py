"""Guest images that are damaged: `image build`, which the errors and `doctor` name, mends them."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from framework.process import Result
    from framework.runtime import Runtime

pytestmark = pytest.mark.only("runvm", "runc has no images of its own")


def test_a_damaged_image_is_built_anew(runtime: Runtime) -> None:
    """Bits of the kernel that have changed; an initramfs cut short, and a manifest without sense: each time what is
    there afterwards is what was there before, of the same name."""
    real = os.environ.get("RUNVM_TEST_DATA_DIR", "/var/lib/runvm")
    data = f"{runtime.scratch}/damaged"
    os.makedirs(f"{data}/images")
    os.symlink(f"{real}/cache", f"{data}/cache")
    newest = os.path.realpath(f"{real}/images/current")
    subprocess.run(["cp", "-a", newest, f"{real}/images/current", f"{data}/images"], check=True)
    config = f"{data}/config.toml"
    with open(config, "w", encoding="utf-8") as file:
        file.write(f'data_dir = "{data}"\n')

    def build() -> Result:
        done = runtime.call("image", "build", env=dict(os.environ) | {"RUNVM_CONFIG": config}, timeout=600)
        return done.expect(0)

    def hashes() -> list[str]:
        files = [f"{image}/vmlinuz", f"{image}/initramfs", f"{image}/modules/modules.dep"]
        return subprocess.run(["sha256sum", *files], check=True, capture_output=True, text=True).stdout.splitlines()

    try:
        name = build().text  # of this checkout's agent, by this checkout's builder
        image = f"{data}/images/{name}"
        before = hashes()
        with open(f"{image}/vmlinuz", "r+b") as kernel:
            kernel.seek(1 << 20)
            kernel.write(os.urandom(100))
        done = build()
        said = f"the guest image {name} isn't as it was built: it is built anew"
        assert said in [entry["msg"] for entry in done.log]
        assert (done.text, hashes()) == (name, before)
        os.truncate(f"{image}/initramfs", 1 << 20)
        os.truncate(f"{image}/manifest.json", 10)
        assert (build().text, hashes()) == (name, before)
    finally:
        shutil.rmtree(data)
