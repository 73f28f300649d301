"""ONNX's node cases: each operator's own test cases, written in the language, and run as kernels in float32."""
