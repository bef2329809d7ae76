"""Builds the agent's image by deploy/Containerfile, on a base of Debian packages; owns nothing that runs.

No image registry is asked: what a user's build pulls as its base is put together by mmdebstrap here.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from tests.e2e.cluster.build import CACHE, BuildError, locked, outside

ROOT = Path(__file__).resolve().parents[3]
CONTAINERFILE = "deploy/Containerfile"
SUITE = "bookworm"
BASE = "localhost/weft-e2e-base:latest"
INPUTS = (
    *("requirements.lock", "requirements-build.lock", "pyproject.toml", "README.md"),
    *("shim", "proto", "ctl", "daemon", "datapath", "ipam", "lab"),
)
"""What deploy/Containerfile copies."""
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")

# Packages come over what the machine trusts, which may be more than Debian does.
BASE_CONTAINERFILE = f"""\
FROM scratch
ADD base.tar /
ADD ca-certificates.crt /usr/local/share/ca-certificates/machine.crt
ENV PIP_CERT={AUTHORITIES}
"""


def agent_image(name: str, source: Path = ROOT) -> Path:
    """Builds the image, unless nothing changed since it was built, and returns its archive.

    From nothing two minutes on two cores; seconds when only our sources changed, as layers are kept.

    Args:
        name: the reference the archive gives to the image.
        source: the tree that it is built from.

    Raises:
        BuildError: a program is missing, or the build fails; with the end of what it printed.
    """
    _require_programs()
    of_name = f"agent-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    archive = CACHE / f"{of_name}-{_identity(source)[:12]}.tar"
    with locked(CACHE / "agent.lock"):
        if archive.exists():
            return archive
        for old in CACHE.glob(f"{of_name}-*.tar"):
            old.unlink()
        _build(source, "--tag", name)
        part = archive.with_suffix(".part")
        part.unlink(missing_ok=True)
        _buildah("push", name, f"docker-archive:{part}:{name}")
        part.rename(archive)
    return archive


def shim(architecture: str) -> Path:
    """Builds the shim for an architecture, as Debian names it, by the image's recipe; kept as the image is.

    Raises:
        BuildError: a program is missing, or the build fails.
    """
    _require_programs()
    directory = CACHE / f"shim-{architecture}-{_identity(ROOT)[:12]}"
    with locked(CACHE / "agent.lock"):
        if not directory.exists():
            for old in CACHE.glob(f"shim-{architecture}-*"):
                shutil.rmtree(old)
            part = CACHE / f"shim-{architecture}.part"
            shutil.rmtree(part, ignore_errors=True)
            output = f"type=local,dest={part}"
            _build(ROOT, "--target", "shim", "--build-arg", f"TARGETARCH={architecture}", "--output", output)
            part.rename(directory)
    return directory / "weft"


def _require_programs() -> None:
    for program in ("buildah", "mmdebstrap"):
        if not shutil.which(program):
            raise BuildError(f"the agent's image needs {program}: apt-get install {program}")


def _build(source: Path, *arguments: str) -> None:
    _base()
    options = ("--isolation", "chroot", "--layers", "--pull-never", "--build-arg", f"BASE={BASE}")
    _buildah("bud", *options, *arguments, "--file", str(source / CONTAINERFILE), str(source))


def _base() -> None:
    """Makes the base image, unless it is there."""
    directory = CACHE / "base"
    recipe = hashlib.sha256(f"{SUITE}{BASE_CONTAINERFILE}".encode() + AUTHORITIES.read_bytes()).hexdigest()
    made = directory / "recipe"
    present = _buildah("images", "--format", "{{.Name}}:{{.Tag}}").split()
    if made.exists() and made.read_text() == recipe and BASE in present:
        return
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    _run("mmdebstrap", "--variant=minbase", "--quiet", SUITE, str(directory / "base.tar"))
    shutil.copy(AUTHORITIES, directory / "ca-certificates.crt")
    (directory / "Containerfile").write_text(BASE_CONTAINERFILE)
    options = ("--isolation", "chroot", "--tag", BASE, "--file", str(directory / "Containerfile"))
    _buildah("bud", *options, str(directory))
    (directory / "base.tar").unlink()
    made.write_text(recipe)


def _identity(source: Path) -> str:
    paths = [source / CONTAINERFILE, *(source / entry for entry in INPUTS)]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in files:
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(source)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _buildah(command: str, *arguments: str) -> str:
    storage = ("--root", str(CACHE / "containers"), "--runroot", str(CACHE / "containers.run"))
    return _run("buildah", *storage, command, *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(
        outside(*command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"`{' '.join(command)}` failed; the end of its output:\n{done.stdout[-3000:]}")
    return done.stdout
