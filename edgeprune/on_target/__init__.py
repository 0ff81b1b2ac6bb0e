"""What runs on targets; nothing here imports what lies outside of this folder.

`agent`, `runner`, `engine_llama` and `install` ask for Python 3.9 and its standard library alone;
the runtime that is sent brings llama.cpp's library. `engine_onnx` needs numpy and onnxruntime, and
`serve` llama-cpp-python's server, which are sent, too.
"""
