"""Container images as archives that `docker load` and `ctr images import` take, made of a directory."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

from runvm.linux.architecture import host


def write(path: str, *, name: str, root: str, command: list[str], user: str = "", architecture: str = "") -> None:
    """Write an image called *name* to the file *path*: one layer, the directory *root*; *command* as its CMD, *user*
    as its USER; for the host's *architecture* unless another is named."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(root, arcname=".")
    layer = buffer.getvalue()
    settings = {"Cmd": command, "Env": ["PATH=/bin:/usr/bin"], "User": user}
    config = json.dumps(
        {
            "architecture": architecture or host(),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    members = {"layer.tar": layer, config_name: config, "manifest.json": json.dumps(manifest).encode()}
    with tarfile.open(path, "w") as tar:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
