"""llama-server out of the package xllamacpp: `python -m taskyard.runner.local.server -m MODEL --port 8080`.

It is llama.cpp's own HTTP server behind the options of llama-server that are used here, with their names and meaning
(https://github.com/ggml-org/llama.cpp/tree/master/tools/server). Two things differ: one thread and one slot unless told
otherwise, for two threads that wait for each other on a busy machine are twenty times slower than one; and the port
opens when the model is loaded, so that /health is refused first and never says 503.
"""

import argparse
import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or with --until-eof until standard input ends. Does not return."""
    options = parser().parse_args(arguments)
    if options.until_eof:
        threading.Thread(target=_until_eof, daemon=True).start()
    server = start(options)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # only now: the server has set handlers of its own
        signal.signal(number, lambda _number, _frame: stop.set())
    print("listening on", server.listening_address, flush=True)
    while not stop.wait(0.2):  # a wait without an end would let no signal through
        pass
    os._exit(0)  # the server's threads know no way to end


def parser() -> argparse.ArgumentParser:
    """The options of llama-server that have a meaning here, or that a command line for a GPU contains."""
    found = argparse.ArgumentParser("llama-server", allow_abbrev=False)
    add = found.add_argument
    add("-m", "--model", required=True, help="a GGUF file")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8080)
    add("-a", "--alias", help="names to answer to, with commas between")
    add("-c", "--ctx-size", type=int, default=0, help="tokens; 0: what the model was trained for")
    add("-np", "--parallel", type=int, default=1)
    add("-kvu", "--kv-unified", action="store_true", help="the slots share one context")
    add("-t", "--threads", type=int, default=1)
    add("--api-key", action="append", default=[])
    add("--chat-template-file", type=Path)
    add("--until-eof", action="store_true", help="end when standard input does (not an option of llama-server)")
    # llama-server takes these; without a GPU, and with this model, they change nothing.
    add("-ngl", "--n-gpu-layers", "--gpu-layers")
    add("-fa", "--flash-attn", choices=["on", "off", "auto"])
    add("-ctk", "--cache-type-k")
    add("-ctv", "--cache-type-v")
    add("-rea", "--reasoning", choices=["on", "off", "auto"])
    add("--offline", action="store_true")
    return found


def start(options: argparse.Namespace) -> Any:
    """Load the model and open the port."""
    if not Path(options.model).is_file():
        sys.exit(f"There is no model {options.model}.")
    xllamacpp = importlib.import_module("xllamacpp")  # it has no types
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.kv_unified = options.kv_unified
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.api_keys = options.api_key
    params.use_jinja = True
    params.ui = False
    if options.alias:
        params.model_alias = set(options.alias.split(","))
    if options.chat_template_file:
        params.chat_template = options.chat_template_file.read_text()
    return xllamacpp.Server(params)


def _until_eof() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
