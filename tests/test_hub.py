"""Downloads from a loopback server that serves tiny repositories in the hub's layout.

The client runs in a process of its own: huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sar_gen import hub
from sar_gen.errors import InputError
from sar_gen.settings import ROOT
from tests import fake

UNET = "unet/diffusion_pytorch_model.safetensors"
COMMIT = "1" * 40


class Hub(http.server.ThreadingHTTPServer):
    """Serves ``repos[owner/name]`` at ``commits``; large files are redirected, as the hub does with LFS files."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Path] = {}
        self.commits: dict[str, str] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after: dict[str, int] = {}  # file: bytes, once
        self.stall_after: dict[str, int] = {}
        self.ended = threading.Event()
        self.ignore_ranges = False
        self.damage: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo, folder, commit=COMMIT):
        self.repos[repo], self.commits[repo] = folder, commit

    def bodies(self, *files):
        return [r for r in self.requests if r[0] == "GET" and "/cdn/" in r[1] and (not files or r[1].endswith(files))]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+))?", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        cdn = re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path)
        repo = next((m[1] for m in (api, resolve, cdn) if m), "")
        if repo == "owner/gated":
            return self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        if repo not in self.server.repos:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if api:
            return self._send(200, json.dumps(self._info(repo)).encode())
        file = self.server.repos[repo] / (resolve or cdn)[3 if resolve else 2]
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        headers = {"X-Repo-Commit": self.server.commits[repo], "Accept-Ranges": "bytes"}
        if resolve and file.suffix in (".safetensors", ".bin"):
            headers |= {
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.server.url}/cdn/{repo}/{resolve[3]}",
            }
            return self._send(302, b"", headers)
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers["ETag"] = f'"{git}"'
        return self._send_file(str(file), data, headers, body)

    def _info(self, repo):
        siblings = []
        for file in sorted(p for p in self.server.repos[repo].rglob("*") if p.is_file()):
            data = file.read_bytes()
            name = file.relative_to(self.server.repos[repo]).as_posix()
            entry = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            if file.suffix in (".safetensors", ".bin"):
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            siblings.append(entry)
        return {"id": repo, "modelId": repo, "sha": self.server.commits[repo], "siblings": siblings}

    def _send(self, status, data, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _send_file(self, name, data, headers, body):
        status, start = 200, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and not self.server.ignore_ranges:
            status, start = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if any(name.endswith(file) for file in self.server.damage):
            data = data[:-1] + bytes([data[-1] ^ 1])
        part = data[start:]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        for file in [f for f in self.server.cut_after if name.endswith(f)]:
            self.wfile.write(part[: self.server.cut_after.pop(file)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        for file in [f for f in self.server.stall_after if name.endswith(f)]:
            self.wfile.write(part[: self.server.stall_after.pop(file)])
            self.wfile.flush()
            # The client is killed meanwhile. A late write would fail and be reported within whichever test runs then.
            self.server.ended.wait(60)
            self.close_connection = True
            return
        self.wfile.write(part)


CLIENT = """
import json, sys
from sar_gen import checkpoints
from sar_gen.errors import InputError, SarGenError
from sar_gen.settings import Settings
settings = Settings.from_env()
seen = []
try:
    result = WORK
except SarGenError as error:
    result = {"error": str(error), "input": isinstance(error, InputError)}
print(json.dumps({"result": result, "progress": [[p.file, p.done, p.total] for p in seen],
                  "texts": [str(p) for p in seen]}, default=str))
"""
PULL = "str(checkpoints.pull(checkpoints.catalogue(settings)[{id!r}], settings, seen.append))"
ADD = "vars(checkpoints.add_checkpoint({source!r}, settings, base={base!r}))"


@pytest.fixture
def server():
    server = Hub()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()  # waits for the threads of the requests: none outlives its test


@pytest.fixture
def client(server, tmp_path):
    """Runs an expression in a process of its own whose hub is the server; ``start`` returns the running process."""
    (tmp_path / "checkpoints").mkdir()

    def start(work, **environment):
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SAR_GEN_"))}
        environment = {
            **kept,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
            "SAR_GEN_HOME": str(tmp_path / "home"),
            "SAR_GEN_CHECKPOINTS": str(tmp_path / "checkpoints"),
            **environment,
        }
        return subprocess.Popen(
            [sys.executable, "-c", CLIENT.replace("WORK", work)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(work, **environment):
        out, err = start(work, **environment).communicate(timeout=120)
        assert out, err
        return json.loads(out)

    run.start = start
    return run


def _public(server, tmp_path, **options):
    """Put a repository in the place of a public SD 1.5 model."""
    folder = fake.pipeline(tmp_path / "remote", "sd15", **options)
    server.add("sylviaHoch/SAR-StableDiffusion", folder)
    return folder


def test_a_download_that_is_cut_goes_on_with_a_range_request(server, client, tmp_path):
    remote = _public(server, tmp_path, size=1000)  # 3 MB in the UNet
    (remote / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (remote / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"another variant")
    (remote / "safety_checker").mkdir()
    (remote / "safety_checker" / "model.safetensors").write_bytes(b"not needed")
    (remote / "README.md").write_text("not needed")
    server.cut_after[UNET] = 2_000_000

    answer = client(PULL.format(id="hochstuhl-s1"))
    folder = Path(answer["result"])
    assert (folder / UNET).read_bytes() == (remote / UNET).read_bytes()
    ranges = [r[2] for r in server.bodies(UNET)]
    assert len(ranges) == 2
    assert ranges[0] is None
    resumed = int(re.fullmatch(r"bytes=(\d+)-", ranges[1])[1])
    assert 0 < resumed <= 2_000_000

    asked = {request[1].split("/", 5)[-1] for request in server.requests if "/resolve/" in request[1]}
    assert not any("safety_checker" in name or name.endswith((".bin", ".md")) or "fp16" in name for name in asked)
    files = [path for path in folder.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    done = [row[1] for row in answer["progress"][1:]]  # the first row is of model_index.json alone
    assert done == sorted(done)
    assert answer["progress"][-1][1:] == [total, total]
    assert re.search(r"^3\.\d MB of 3\.\d MB, .*B/s, 0:00 to go \(", answer["texts"][-1])

    # Again: everything is there, the server is not asked at all; the commit stays pinned when main moves on.
    server.requests.clear()
    server.commits["sylviaHoch/SAR-StableDiffusion"] = "2" * 40
    again = client(PULL.format(id="hochstuhl-s1"))
    assert again["result"] == str(folder)
    assert folder.name == COMMIT
    assert server.requests == []
    assert json.loads((tmp_path / "home" / "pins.json").read_text()) == {"sylviaHoch/SAR-StableDiffusion": COMMIT}
    state = client("checkpoints.verify(checkpoints.catalogue(settings)['hochstuhl-s1'], settings)", HF_HUB_OFFLINE="1")
    assert set(state["result"].values()) == {"ok"}
    assert UNET in state["result"]


def test_a_download_whose_process_is_killed_goes_on_in_the_next_one(server, client, tmp_path):
    remote = _public(server, tmp_path, size=1000)
    server.stall_after[UNET] = 2_500_000
    process = client.start(PULL.format(id="hochstuhl-s1"))
    blobs = tmp_path / "hf" / "hub"
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size >= 2_000_000 for p in blobs.rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there = max(p.stat().st_size for p in blobs.rglob("*.incomplete"))
    assert there >= 2_000_000
    missing = client("checkpoints.missing_files(checkpoints.catalogue(settings)['hochstuhl-s1'], settings)")
    assert UNET in missing["result"]

    server.requests.clear()
    folder = Path(client(PULL.format(id="hochstuhl-s1"))["result"])
    assert [r[2] for r in server.bodies(UNET)] == [f"bytes={there}-"]
    assert (folder / UNET).read_bytes() == (remote / UNET).read_bytes()
    assert not list(blobs.rglob("*.incomplete"))


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(server, client, tmp_path):
    remote = _public(server, tmp_path, size=1000)
    server.cut_after[UNET] = 2_000_000
    server.ignore_ranges = True
    answer = client(PULL.format(id="hochstuhl-s1"))
    assert (Path(answer["result"]) / UNET).read_bytes() == (remote / UNET).read_bytes()
    assert answer["progress"][-1][1] == answer["progress"][-1][2]


def test_a_damaged_file_is_thrown_away_and_fetched_again(server, client, tmp_path):
    _public(server, tmp_path)
    server.damage.add(UNET)
    answer = client(PULL.format(id="hochstuhl-s1"))["result"]
    assert "arrived damaged (its hash differs) and was deleted" in answer["error"]
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    server.damage.clear()
    assert COMMIT in client(PULL.format(id="hochstuhl-s1"))["result"]


def test_only_the_fp16_variant_of_the_pinned_sdxl_is_fetched(server, client, tmp_path):
    remote = fake.pipeline(tmp_path / "remote", "sdxl", variant="fp16")
    fake.pipeline(remote, "sdxl")  # float32 beside it
    (remote / "vae_decoder").mkdir()
    (remote / "vae_decoder" / "model.onnx").write_bytes(b"not needed")
    pinned = "462165984030d82259a11f4367a4eed129e94a7b"
    server.add("stabilityai/stable-diffusion-xl-base-1.0", remote, pinned)
    folder = Path(client(PULL.format(id="sdxl-base"))["result"])
    assert folder.name == pinned
    weights = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors"))
    assert weights == [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert not (folder / "vae_decoder").exists()


def test_what_another_tool_downloaded_is_found_offline(server, client, tmp_path):
    remote = fake.pipeline(tmp_path / "remote", "sdxl", variant="fp16")
    snapshot = (
        tmp_path
        / "hf/hub/models--stabilityai--stable-diffusion-xl-base-1.0/snapshots"
        / "462165984030d82259a11f4367a4eed129e94a7b"
    )
    snapshot.parent.mkdir(parents=True)
    remote.rename(snapshot)
    work = "str(checkpoints.local_folder(checkpoints.catalogue(settings)['sdxl-base'], settings))"
    assert client(work, HF_HUB_OFFLINE="1")["result"] == str(snapshot)
    (snapshot / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    error = client(work, HF_HUB_OFFLINE="1")["result"]["error"]
    assert "unet/diffusion_pytorch_model.fp16.safetensors of stabilityai/stable-diffusion-xl-base-1.0 missing" in error
    assert "python -m sar_gen checkpoints pull sdxl-base" in error


def test_without_a_network_one_sentence_says_what_was_needed_and_how_to_bring_it(server, client):
    for environment, words in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE forbids"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
    ):
        answer = client(PULL.format(id="hochstuhl-s1"), **environment)["result"]
        assert answer["error"].startswith("The list of files of sylviaHoch/SAR-StableDiffusion is needed and")
        assert words in answer["error"]
        assert "python -m sar_gen checkpoints pull hochstuhl-s1" in answer["error"]
        assert "checkpoints add FOLDER" in answer["error"]
        assert answer["input"] is False
        assert "\n" not in answer["error"]


def test_repositories_that_are_not_loaded_are_refused_before_their_weights_are_fetched(server, client, tmp_path):
    pickled = fake.pipeline(tmp_path / "pickled", "sd15")
    (pickled / UNET).rename(pickled / "unet" / "diffusion_pytorch_model.bin")
    foreign = fake.pipeline(tmp_path / "foreign", "sd15")
    index = json.loads((foreign / "model_index.json").read_text())
    (foreign / "model_index.json").write_text(json.dumps({**index, "_class_name": "MMDiffPipeline"}))
    server.add("owner/pickled", pickled)
    server.add("owner/foreign", foreign)
    cases = {
        "owner/pickled": "only the pickle unet/diffusion_pytorch_model.bin, which can run code",
        "owner/foreign": "is a MMDiffPipeline pipeline, which is not loaded",
        "owner/nothing": "the hub has no such thing",
        "owner/gated": "needs a login",
    }
    for repo, words in cases.items():
        answer = client(ADD.format(source=repo, base=None))["result"]
        assert words in answer["error"], repo
        assert answer["input"] is True
    assert not server.bodies()
    assert client("list(checkpoints.catalogue(settings))")["result"] == [
        "sdxl-base",
        "hochstuhl-s1",
        "hochstuhl-capella",
    ]


def test_a_hub_id_of_the_users_own_is_added_pinned_and_pulled(server, client, tmp_path):
    server.add("owner/Mine", fake.pipeline(tmp_path / "remote", "sdxl"))
    added = client(ADD.format(source="owner/Mine", base=None))["result"]
    assert (added["id"], added["family"], added["revision"]) == ("mine", "sdxl", COMMIT)
    assert added["amplitude_encoding"] == "unknown"
    assert not server.bodies()
    assert client(PULL.format(id="mine"))["result"].endswith(COMMIT)


def test_a_lora_repository_goes_on_a_base_of_its_family(server, client, tmp_path):
    remote = tmp_path / "remote"
    fake.lora(remote / "pytorch_lora_weights.safetensors", context=768)
    (remote / "training_args.bin").write_bytes(b"\x80\x04")
    server.add("owner/lora", remote)
    refused = client(ADD.format(source="owner/lora", base="sdxl-base"))["result"]["error"]
    assert "was made for SD 1.5 and its base is SDXL" in refused
    assert "give its base" in client(ADD.format(source="owner/lora", base=None))["result"]["error"]
    added = client(ADD.format(source="owner/lora", base="hochstuhl-s1"))["result"]
    assert (added["base"], added["strategy"], added["family"]) == ("hochstuhl-s1", "unet-lora", "sd15")
    asked = {request[1] for request in server.requests}
    assert not any(path.endswith(".bin") for path in asked)
    found = client("checkpoints.missing_files(checkpoints.catalogue(settings)['lora'], settings)", HF_HUB_OFFLINE="1")
    assert found["result"] == []


def test_pipeline_files_are_the_configurations_words_and_chosen_weights():
    names = [
        "unet/config.json",
        "unet/a/deeper.safetensors",
        UNET,
        "unet/diffusion_pytorch_model.onnx",
        "x.safetensors",
    ]
    names += ["tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/run.py", "model_index.json"]
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "image_encoder": [None, None],
    }
    found = hub.pipeline_files(names, index, None, "Test")
    assert found == ["model_index.json", "unet/config.json", UNET, "tokenizer/merges.txt", "tokenizer/vocab.json"]
    with pytest.raises(InputError, match="Test has no weights for its unet"):
        hub.pipeline_files(["unet/config.json"], index, None, "Test")


def test_progress_reads_as_a_line():
    assert str(hub.Progress("a", 0, 2_000_000_000)) == "0 B of 2.00 GB (a)"
    assert str(hub.Progress("a", 1_500, 2_500_000, 1000.0, 125.0)) == "1.5 kB of 2.5 MB, 1.0 kB/s, 2:05 to go (a)"
