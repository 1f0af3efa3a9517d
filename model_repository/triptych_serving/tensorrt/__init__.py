"""Engines on a GPU: the loop's `Denoiser` and the stages that Triton's own TensorRT backend does not run."""
