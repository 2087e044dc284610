"""A double of llama-swap (https://github.com/mostlygeek/llama-swap), which no package registry has.

It reads the same configuration, starts the same commands as real processes, waits for their health, swaps them by the
same rules and answers with the same statuses and bodies, as far as a client of chat completions sees them. The tests
that hold it to that run against the real program too, where LLAMA_SWAP_BIN names it.
"""
