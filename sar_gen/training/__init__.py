"""Training of the project's own models. Only the modules that train import torch, when they are called."""
