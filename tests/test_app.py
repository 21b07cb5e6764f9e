from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

import app
from sar_gen.settings import ROOT


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import sys; sys.argv = ['app.py', '--help']; import app; app.main()"
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - started < 5
    assert done.returncode == 0
    for option in ("--host", "--port", "--device", "--checkpoint", "--runs", "--no-open"):
        assert option in done.stdout
    assert "gradio" not in done.stderr
    assert "torch" not in done.stderr


def test_importing_the_page_imports_nothing_that_can_wait():
    heavy = "torch diffusers transformers matplotlib skimage scipy"
    code = f"import sys; import sar_gen.ui.page; print([n for n in '{heavy}'.split() if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_this_machine_by_default():
    assert app.parse([]).host == "127.0.0.1"


def test_a_taken_port_is_passed_over_unless_asked_for():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            app.free_port("127.0.0.1", port)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", app.PORT))
            taken.listen()
        except OSError:
            pass  # another program has it, which serves as well
        assert app.free_port("127.0.0.1", None) > app.PORT


def test_a_taken_port_is_one_sentence_with_status_1():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "app.py", "--no-open", "--port", port], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "choose another with --port" in done.stderr


def test_a_wrong_setting_is_one_sentence_with_status_2():
    environment = {**os.environ, "SAR_GEN_MAX_COUNT": "many"}
    done = subprocess.run(
        [sys.executable, "app.py", "--no-open"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("SAR_GEN_MAX_COUNT is 'many'")
