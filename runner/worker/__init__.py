"""The runner: claim, spawn, stream, report. It holds no rule that another host would have to agree on."""
