"""What Triptych's Triton models run: the loop, sampler tables, noise, receipts. NumPy and ONNX Runtime; never torch."""
