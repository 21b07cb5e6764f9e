"""LoRAs on a pipeline: loading one, taking its layers off and putting them on again, changing their values in place.

A LoRA's layers (PEFT's, each around one of the pipeline's own) are taken off and put on again as objects, without
loading. LoRAs of one shape share their layers, and only the values in them are written, so that what was compiled
with them stays good; PEFT calls it hot-swapping. ``peft.utils.hotswap`` itself is not used: it looks up a layer's
alpha by a name that no pattern matches (0.21 asks for ``….lora_A.NAME.weight``), and diffusers does not let it touch
text encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sar_gen import folders
from sar_gen.errors import InputError
from sar_gen.switching import Copy, copied, write
from sar_gen.weights import read_header

ADAPTER = "strategy"
_UP = (".lora_B.", ".lora.up.", ".lora_up.", ".lora_linear_layer.up.")


def load_lora(pipe: Any, path: Path, parts: Sequence[str]) -> None:
    """Put a LoRA on, and check that each of its layers has found its place (diffusers only warns).

    The steps are those of the pipeline's ``load_lora_weights`` but one: diffusers' training scripts write the
    attention layers as ``.lora.down`` and all others as ``.lora_A``, and reading such a file it goes by the first
    key alone and drops what is named the other way.

    Args:
        pipe: diffusers pipeline without a LoRA.
        path: of the LoRA.
        parts: those that it is for.

    Raises:
        InputError: it holds something else too, or layers that the pipeline does not have.
    """
    tensors, alphas, metadata = pipe.lora_state_dict(
        path.parent,
        weight_name=path.name,
        use_safetensors=True,
        local_files_only=True,
        unet_config=pipe.unet.config,
        return_lora_metadata=True,
    )
    if not all("lora" in key for key in tensors):
        raise InputError(f"the LoRA {path.name} holds more than a LoRA's matrices")
    options = {
        "network_alphas": alphas,
        "adapter_name": ADAPTER,
        "metadata": metadata,
        "_pipeline": pipe,
        "low_cpu_mem_usage": True,  # the matrices of a new layer are not drawn first
    }
    tensors = {_peft_name(key): tensor for key, tensor in tensors.items()}
    pipe.load_lora_into_unet(tensors, unet=pipe.unet, **options)
    for encoder in folders.TOKEN_KEYS.values():
        if getattr(pipe, encoder, None) is not None:
            pipe.load_lora_into_text_encoder(
                tensors, text_encoder=getattr(pipe, encoder), prefix=encoder, lora_scale=pipe.lora_scale, **options
            )
    wanted = sum(any(mark in key for mark in _UP) for key in read_header(path).tensors)
    found = sum(_lora_layers(getattr(pipe, part)) for part in parts)
    if found != wanted:
        raise InputError(f"only {found} of the {wanted} layers of the LoRA {path.name} fit the base")


def _peft_name(key: str) -> str:
    """Return a UNet's key with PEFT's names of the two matrices; text encoders' keys are converted by diffusers."""
    if not key.startswith("unet."):
        return key
    return key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def _lora_layers(module: torch.nn.Module) -> int:
    """Count the layers that carry our adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(
        isinstance(layer, BaseTunerLayer) and ADAPTER in getattr(layer, "lora_A", {}) for layer in module.modules()
    )


@dataclass(frozen=True)
class _Place:
    """One layer of a LoRA: PEFT's ``layer`` is around ``parent.child``."""

    part: str
    name: str
    parent: torch.nn.Module
    child: str
    layer: Any


@dataclass
class Layers:
    """The layers of a LoRA around a pipeline's own, on or off.

    Attributes:
        shape: equal for LoRAs whose values fit these layers.
        holds: source of the LoRA whose values they hold.
    """

    shape: tuple[Any, ...]
    holds: str
    _places: tuple[_Place, ...]
    _configs: dict[str, Any]

    def fits(self) -> bool:
        """Tell whether the layers that they go around are still in their places."""
        return all(place.parent._modules[place.child] is place.layer.get_base_layer() for place in self._places)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the matrices by name, those of the layers themselves."""
        return {
            f"{place.part}.{place.name}.{name}": parameter.data
            for place in self._places
            for name, parameter in _matrices(place.layer)
        }

    def scales(self) -> list[Any]:
        """Return what each layer's product is multiplied with."""
        return [place.layer.scaling[ADAPTER] for place in self._places]

    def take_off(self, pipe: Any) -> None:
        """Put the pipeline's own layers back in their places."""
        for place in self._places:
            place.parent._modules[place.child] = place.layer.get_base_layer()
        for part in self._configs:
            module = getattr(pipe, part)
            if hasattr(module, "peft_config"):
                del module.peft_config
            module._hf_peft_config_loaded = None

    def put_on(self, pipe: Any, values: LoraValues | None = None) -> None:
        """Put these layers in their places, on the device of those that they go around.

        Args:
            pipe: the pipeline that they were loaded on; they may be on already.
            values: of a LoRA of their shape, to write into them; what they hold stays when left out.
        """
        for place in self._places:
            device = place.layer.get_base_layer().weight.device
            for _, matrix in _matrices(place.layer):
                if matrix.device != device:
                    matrix.data = matrix.data.to(device)
            place.parent._modules[place.child] = place.layer
        if values is not None:
            write(values.matrices, self.tensors())
            for place, scale in zip(self._places, values.scales, strict=True):
                place.layer.scaling[ADAPTER] = scale
            self._configs, self.holds = dict(values.configs), values.source
        for part, config in self._configs.items():
            module = getattr(pipe, part)
            module.peft_config, module._hf_peft_config_loaded = config, True


@dataclass(frozen=True)
class LoraValues:
    """What a LoRA's layers hold, on the host.

    Attributes:
        source: of the LoRA.
        shape: of the layers that it fits.
        matrices: by name.
        scales: in the order of the layers.
        configs: PEFT's, by part.
    """

    source: str
    shape: tuple[Any, ...]
    matrices: Copy
    scales: list[Any]
    configs: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of the matrices."""
        return self.matrices.size


def layers_on(pipe: Any, parts: Sequence[str], source: str) -> Layers:
    """Return the layers of the LoRA that was just loaded.

    Args:
        pipe: diffusers pipeline.
        parts: those that the LoRA is on.
        source: of the LoRA.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    places = []
    for part in parts:
        module = getattr(pipe, part)
        for name, layer in module.named_modules():
            if isinstance(layer, BaseTunerLayer):
                parent, _, child = name.rpartition(".")
                places.append(_Place(part, name, module.get_submodule(parent), child, layer))
    shape = tuple(
        (
            place.part,
            place.name,
            type(place.layer).__name__,
            *((name, tuple(matrix.shape), str(matrix.dtype)) for name, matrix in _matrices(place.layer)),
        )
        for place in places
    )
    configs = {part: getattr(pipe, part).peft_config for part in parts if hasattr(getattr(pipe, part), "peft_config")}
    options = tuple(
        (part, *(getattr(config.get(ADAPTER), name, None) for name in ("use_dora", "use_rslora", "lora_dropout")))
        for part, config in configs.items()
    )
    return Layers((shape, options), source, tuple(places), configs)


def values_of(layers: Layers, pinned: bool = False) -> LoraValues:
    """Return what layers hold, copied to the host.

    Args:
        layers: of a LoRA.
        pinned: see ``copied``.
    """
    return LoraValues(
        layers.holds, layers.shape, copied(layers.tensors(), pinned), layers.scales(), dict(layers._configs)
    )


def _matrices(layer: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, matrix) for name, matrix in layer.named_parameters() if name.startswith("lora_")]
