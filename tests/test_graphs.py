import torch

from sar_gen.graphs import Graphs


class Layer(torch.nn.Module):
    """Takes tensors in the forms that a UNet takes them in."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.calls = 0

    def forward(self, sample, timestep, added=None, more=()):
        self.calls += 1
        return (self.weight * sample + timestep + added["one"] + sum(more),)


class Capture:
    """In the place of CUDA: what is captured is computed again, from the very tensors it was captured with."""

    def __init__(self):
        self.count = 0

    def __call__(self, work):
        self.count += 1
        return work


def call(layer, value, size=3):
    given = {"added": {"one": torch.full((size,), 10.0 * value)}, "more": [torch.full((size,), 100.0 * value)]}
    return layer(torch.full((size,), float(value)), torch.tensor(float(value)), **given)[0]


def test_a_graph_is_given_each_calls_own_inputs():
    layer, capture = Layer(), Capture()
    with Graphs(capture).unet(layer):
        found = [call(layer, value)[0].item() for value in (1, 2, 3)]
    assert found == [113.0, 226.0, 339.0]  # 2 v + v + 10 v + 100 v
    assert capture.count == 1  # at the second call; the first one warms up
    assert call(layer, 1)[0].item() == 113.0


def test_what_it_gave_before_is_not_overwritten():
    layer = Layer()
    with Graphs(Capture()).unet(layer):
        call(layer, 1)
        second = call(layer, 2)
        call(layer, 3)
    assert second[0].item() == 226.0


def test_weights_written_in_place_are_seen():
    layer = Layer()
    with Graphs(Capture()).unet(layer):
        call(layer, 1), call(layer, 1)
        layer.weight.fill_(5.0)
        assert call(layer, 1)[0].item() == 116.0


def test_other_shapes_and_states_have_graphs_of_their_own_and_clear_drops_them():
    layer, capture = Layer(), Capture()
    graphs = Graphs(capture)
    for state in (False, True):
        with graphs.unet(layer, state):
            for size in (3, 4, 3, 4):
                call(layer, 1, size)
    assert capture.count == 4
    graphs.clear()
    with graphs.unet(layer):
        call(layer, 1), call(layer, 1)
    assert capture.count == 5


def test_nothing_is_captured_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    layer = Layer()
    with Graphs().unet(layer):
        assert "forward" not in layer.__dict__
        assert [call(layer, 1)[0].item() for _ in range(3)] == [113.0] * 3
    assert layer.calls == 3
