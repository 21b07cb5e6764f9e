"""The command `serve` and its clients, as processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

import app
from sar_gen import cli_serve
from sar_gen.errors import InputError
from sar_gen.settings import ROOT, Settings
from tests import tiny


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli-serve")
    tiny.checkpoint(root / "checkpoints" / "base")
    return {
        **os.environ,
        "SAR_GEN_HOME": str(root / "home"),
        "SAR_GEN_RUNS": str(root / "runs"),
        "SAR_GEN_CHECKPOINTS": str(root / "checkpoints"),
        "SAR_GEN_CHECKPOINT": "base",
        "SAR_GEN_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def command(environment, *arguments, program=("-m", "sar_gen")):
    return subprocess.run(
        [sys.executable, *program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def served(environment):
    """A server in a process of its own, ended by Ctrl+C."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "sar_gen", "serve", "--port", str(port)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stdout.readline()
    assert line.startswith(f"The engine is at http://127.0.0.1:{port}: python app.py --backend http"), line
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert out == ""
    assert "Traceback" not in errors


def test_a_command_line_generates_there(environment, served, tmp_path):
    # This machine has no checkpoint of its own: it lists and uses the backend's.
    bare = {**environment, "SAR_GEN_CHECKPOINTS": str(tmp_path), "SAR_GEN_RUNS": str(tmp_path / "runs")}
    there = {**bare, "SAR_GEN_BACKEND": served}
    listed = json.loads(command(there, "checkpoints", "list", "--json").stdout)
    assert [row["id"] for row in listed] == ["base"]
    arguments = ("generate", "a river", "--steps", "2", "--count", "2", "--json")
    done = command(bare, *arguments, "--backend", served)
    assert done.returncode == 0, done.stderr
    far = json.loads(done.stdout)
    assert [image["seed"] for image in far["images"]] == [0, 1]
    again = command(there, "runs", "replay", far["run"])
    assert "2 of 2 patches are bit-equal" in again.stderr


def test_what_works_with_files_leaves_the_backend_aside(served, environment):
    there = {**environment, "SAR_GEN_BACKEND": served}
    found = json.loads(command(there, "checkpoints", "verify", "base", "--json").stdout)
    assert "unet/diffusion_pytorch_model.safetensors" in found  # those of this machine


def test_the_health_is_asked_without_a_client(served):
    with urllib.request.urlopen(f"{served}/health", timeout=10) as answer:
        assert json.load(answer) == {"ok": True}


def test_a_backend_that_is_not_there_is_one_sentence(environment):
    port = free_port()
    done = command(environment, "generate", "a river", "--backend", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"The backend http://127.0.0.1:{port} cannot be reached (")
    assert done.stderr.count("\n") == 1


def test_the_page_says_at_start_that_nothing_answers(environment):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--no-open", "--port", str(free_port()), "--backend", f"127.0.0.1:{port}"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr.readline().startswith(f"The backend http://127.0.0.1:{port} cannot be reached (")
        assert process.stdout.readline().startswith("SAR studio is at")  # it goes on: Compare works
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_page_refuses_what_is_no_address(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["app.py", "--no-open", "--backend", "ftp://x"])
    assert app.main() == 2
    assert (
        capsys.readouterr().err == "The backend 'ftp://x' is no address; give one such as http://gpu-machine:8000.\n"
    )


def test_a_taken_port(environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        started = time.monotonic()
        done = command(environment, "serve", "--port", str(port))
    assert done.returncode == 1
    assert "choose another with --port" in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"replicas": 2}, "add --ray local"),
        ({"gpus_per_replica": 1.0}, "add --ray local"),
        ({"checkpoint": "nobody"}, "The checkpoint 'nobody' is unknown"),
        ({"checkpoint": "sdxl-base"}, "is not on this machine yet"),
    ],
)
def test_wrong_options_are_one_sentence(monkeypatch, options, sentence):
    monkeypatch.delenv("SAR_GEN_CHECKPOINT", raising=False)
    with pytest.raises(InputError, match=sentence):
        cli_serve.serve(**options)


def test_ray_is_asked_for_by_its_name(monkeypatch):
    real = cli_serve.importlib.util.find_spec
    monkeypatch.setattr(cli_serve.importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    with pytest.raises(InputError, match=r"pip install -r requirements-ray\.txt"):
        cli_serve.serve(ray="local")


def test_others_may_come_only_where_it_is_said(monkeypatch, capsys):
    monkeypatch.setattr(cli_serve, "_serve_here", lambda *_: None)
    monkeypatch.setattr(cli_serve, "_check_checkpoint", lambda *_: None)
    cli_serve.serve(host="0.0.0.0")
    assert "set SAR_GEN_BACKEND_TOKEN" in capsys.readouterr().err
    for host, token in (("0.0.0.0", "secret"), ("127.0.0.1", ""), ("::1", ""), ("localhost", "")):
        monkeypatch.setenv("SAR_GEN_BACKEND_TOKEN", token)
        cli_serve.serve(host=host)
        assert capsys.readouterr().err == ""


def test_settings_of_a_backend():
    found = Settings.from_env({"SAR_GEN_BACKEND": "gpu:8000", "SAR_GEN_BACKEND_TOKEN": "secret"})
    assert (found.backend, found.backend_token) == ("gpu:8000", "secret")
    assert "secret" not in repr(found)
    assert found.here().backend == ""
    assert app.parse(["--backend", "gpu:8000"]).backend == "gpu:8000"
