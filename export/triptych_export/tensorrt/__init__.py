"""TensorRT engines out of exported stages: the library, the profiles, the builder and the store."""
