import os

# Before any library reads it: tests never reach for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

import gc

import pytest

from sar_gen.settings import Settings


@pytest.fixture(scope="module", autouse=True)
def what_is_there_is_not_searched():
    """What libraries and other modules' tests have left is not looked through each time that memory is given back.

    ``gc.collect`` takes half a second in a process that has imported everything, and switching a checkpoint calls it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def settings(tmp_path):
    """Settings with a home and a runs folder of their own."""
    return Settings(home=tmp_path / "home", runs=tmp_path / "runs", device="cpu")


@pytest.fixture(scope="module")
def one_thread():
    """torch on one thread: tiny tensors are quicker so."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line; returns exit status, stdout and stderr."""
    from sar_gen import cli

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["sar_gen", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
