import os
import subprocess
import sys

import pytest

from sar_gen.errors import SarGenError
from sar_gen.files import sha256_of, write_atomic


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "file.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_hash_of_known_bytes(tmp_path):
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def full_disk(tmp_path):
    """A 64 KiB file system in memory; needs root, which CI has."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_sentence_and_keeps_the_old_file(full_disk):
    path = full_disk / "patch.npy"
    write_atomic(path, b"old")
    with pytest.raises(SarGenError, match="is full; free some space"):
        write_atomic(path, bytes(1 << 20))
    assert path.read_bytes() == b"old"
    assert list(full_disk.iterdir()) == [path]


def test_unwritable_folder_is_one_sentence(tmp_path):
    """Root may write anywhere, so the write is tried as another user."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from sar_gen.errors import SarGenError; from sar_gen.files import write_atomic\n"
        "if os.getuid() == 0:\n"
        "    os.setgid(65534); os.setuid(65534)\n"
        "try: write_atomic(Path(sys.argv[1]) / 'x', b'1')\n"
        "except SarGenError as error: print(error)\n"
    )
    if os.getuid() == 0:
        for parent in folder.parents:
            if parent.is_relative_to("/tmp") and parent != parent.parent:
                parent.chmod(parent.stat().st_mode | 0o055)
    result = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert "cannot be written" in result.stdout, result.stderr
    assert list(folder.iterdir()) == []
